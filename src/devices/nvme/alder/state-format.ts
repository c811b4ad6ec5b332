// SPDX-License-Identifier: Apache-2.0
/**
 * Format `org.devstate.nvme.alder` 1.0: four records, each one MessagePack map in the subset of the envelope's metadata
 * (one encoding per value, so that equal states are equal bytes).
 *
 * | type    | record   | holds                                                         |
 * |---------|----------|---------------------------------------------------------------|
 * | 0x10000 | identity | parameters and namespace identifiers, which must be equal here |
 * | 0x10001 | function | PCI config space, controller registers, MSI-X table           |
 * | 0x10002 | queues   | submission and completion queues, completions held back       |
 * | 0x10003 | admin    | features, asynchronous events, health                         |
 * | 0x10004 | commands | commands to be carried out from their beginning; only if there are any |
 *
 * A quiesced controller has completed its commands, or holds their completions back. Commands there are only where a
 * state of another vendor's controller was loaded that had some, and is saved again before it has run.
 */

import type { SaveRound, StateFormat, StateLoader, StateRecord } from '../../../device/index.js';
import { decodeMetadataMap, encodeMetadataMap, NVME_ALDER } from '../../../formats/index.js';
import { Errno, RequestError } from '../../../wire/index.js';
import type * as z from '../../../zod.js';
import { type NvmeParameters, namespaceIdentity } from '../spec/index.js';
import { practiceState } from '../standard/practice-state.js';
import { standardToAlder } from './standard.js';
import {
  adminSchema,
  type ControllerState,
  commandsSchema,
  functionSchema,
  type IdentityState,
  identitySchema,
  queuesSchema,
  stateProblem,
} from './state.js';

/** Record types. */
export const AlderRecord = {
  IDENTITY: 0x10000,
  FUNCTION: 0x10001,
  QUEUES: 0x10002,
  ADMIN: 0x10003,
  COMMANDS: 0x10004,
} as const;

const recordNames = new Map<number, string>(
  Object.entries(AlderRecord).map(([name, type]) => [type, name.toLowerCase()]),
);

/** Bytes of all but the queues, about. */
const FIXED_ESTIMATE = 8192;
/** Bytes of one queue pair. */
const QUEUE_ESTIMATE = 256;

/** The controller as the format needs it. */
export interface StatefulController {
  readonly parameters: NvmeParameters;
  /** Work is under way: the state cannot be saved or replaced now. */
  readonly busy: boolean;
  captureState(): ControllerState;
  /** Becomes a checked state. @throws RequestError EINVAL, unchanged, when the config space is of another function */
  restoreState(state: ControllerState): void;
}

export class AlderStateFormat implements StateFormat {
  readonly uuid = NVME_ALDER.uuid;
  readonly name = NVME_ALDER.name;
  readonly version = { major: 1, minor: 0 };

  constructor(readonly controller: StatefulController) {}

  /** The state is small: nothing is sent ahead. */
  *save(round: SaveRound): Iterable<StateRecord> {
    if (round !== 'final') return;
    if (this.controller.busy) throw new RequestError(Errno.EBUSY, 'the controller is not quiesced');
    yield* encodeAlderState(this.controller.captureState(), this.controller.parameters);
  }

  practice(): Iterable<StateRecord> {
    const { parameters } = this.controller;
    return encodeAlderState(standardToAlder(practiceState(parameters), parameters).state, parameters);
  }

  estimate(): number {
    return FIXED_ESTIMATE + QUEUE_ESTIMATE * (this.controller.parameters.queues + 1);
  }

  load(version: { major: number; minor: number }): StateLoader {
    if (version.major !== this.version.major) {
      throw new RequestError(
        Errno.EINVAL,
        `${this.name} ${version.major}.${version.minor} cannot be read here`,
      );
    }
    return new AlderStateLoader(this.controller);
  }
}

class AlderStateLoader implements StateLoader {
  readonly #records = new AlderRecords();

  constructor(readonly controller: StatefulController) {}

  record(record: StateRecord): void {
    if (this.#records.add(record) || record.optional === true) return;
    throw refused(`record type 0x${record.type.toString(16)} is unknown`);
  }

  commit(): void {
    const state = this.#records.finish(this.controller.parameters);
    if (this.controller.busy) throw new RequestError(Errno.EBUSY, 'the controller is not quiesced');
    this.controller.restoreState(state);
  }
}

/** Puts the records of one state together. Throws RequestErrors that name what is wrong with them. */
export class AlderRecords {
  readonly #records = new Map<number, unknown>();

  /** @returns false for a type that this version does not have */
  add(record: Pick<StateRecord, 'type' | 'payload'>): boolean {
    const name = recordNames.get(record.type);
    if (name === undefined) return false;
    if (this.#records.has(record.type)) throw refused(`the ${name} record came twice`);
    const { buffer, byteOffset, length } = record.payload;
    try {
      // Not the payload itself: were it a Buffer, what is taken out of it would share its memory.
      this.#records.set(record.type, decodeMetadataMap(new Uint8Array(buffer, byteOffset, length)));
    } catch (error) {
      throw refused(
        `the ${name} record is damaged: ${error instanceof Error ? error.message : String(error)}`,
      );
    }
    return true;
  }

  /** All have come: a sound state of a controller with these parameters. */
  finish(parameters: NvmeParameters): ControllerState {
    const identity = this.#take(AlderRecord.IDENTITY, identitySchema);
    const state = {
      ...this.#take(AlderRecord.FUNCTION, functionSchema),
      ...this.#take(AlderRecord.QUEUES, queuesSchema),
      ...this.#take(AlderRecord.ADMIN, adminSchema),
      ...(this.#records.has(AlderRecord.COMMANDS)
        ? this.#take(AlderRecord.COMMANDS, commandsSchema)
        : { commands: [] }),
    };
    const problem = identityProblem(identity, parameters) ?? stateProblem(state, parameters);
    if (problem !== undefined) throw refused(problem);
    return state;
  }

  #take<Schema extends z.ZodType>(type: number, schema: Schema): z.infer<Schema> {
    const name = recordNames.get(type);
    if (!this.#records.has(type)) throw refused(`the ${name} record is missing`);
    const result = schema.safeParse(this.#records.get(type));
    if (result.success) return result.data;
    const issue = result.error.issues[0];
    throw refused(`the ${name} record is wrong at ${issue?.path.join('.')}: ${issue?.message}`);
  }
}

/** A state as the records of the format, in their order. */
export function* encodeAlderState(
  state: ControllerState,
  parameters: NvmeParameters,
): Generator<StateRecord> {
  const { config, registers, msixTable, submission, completion, commands, ...admin } = state;
  yield encode(AlderRecord.IDENTITY, savedIdentity(parameters));
  yield encode(AlderRecord.FUNCTION, { config, registers, msixTable });
  yield encode(AlderRecord.QUEUES, { submission, completion });
  yield encode(AlderRecord.ADMIN, admin);
  if (commands.length > 0) yield encode(AlderRecord.COMMANDS, { commands });
}

function savedIdentity(parameters: NvmeParameters): IdentityState {
  return { parameters: { ...parameters }, ...namespaceIdentity(parameters.serial) };
}

/** Names everything that differs, so that an operator need not try again for each. */
function identityProblem(saved: IdentityState, parameters: NvmeParameters): string | undefined {
  const own = savedIdentity(parameters);
  const names = new Set([...Object.keys(saved.parameters), ...Object.keys(own.parameters)]);
  const differences = [...names]
    .filter((name) => saved.parameters[name] !== own.parameters[name])
    .map(
      (name) =>
        `${name} is ${saved.parameters[name] ?? 'missing'} there, ${own.parameters[name] ?? 'unknown'} here`,
    );
  if (differences.length > 0) return `the state is of another model: ${differences.join('; ')}`;
  const sameNamespace =
    Buffer.compare(saved.nguid, own.nguid) === 0 && Buffer.compare(saved.eui64, own.eui64) === 0;
  return sameNamespace ? undefined : 'the state is of another namespace';
}

function encode(type: number, value: Parameters<typeof encodeMetadataMap>[0]): StateRecord {
  return { type, payload: encodeMetadataMap(value) };
}

function refused(message: string): RequestError {
  return new RequestError(Errno.EINVAL, `NVMe state refused: ${message}`);
}
