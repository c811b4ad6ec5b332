// SPDX-License-Identifier: Apache-2.0
/** Format `org.devstate.nvme` 1.0: an `NvmeState` as records, one message of `formats/nvme.proto` each. */

import { DevstateError } from '../../errors.js';
import type { FormatRecord } from '../conversion/index.js';
import type { FormatDescription } from '../inspection/types.js';
import { Schema } from '../protobuf/schema.js';
import { NVME_STANDARD } from '../registry.js';
import type { ValueAdapter } from '../value-adapter.js';
import { flattenTree, unflattenTree } from '../value-tree.js';
import type { NvmeState } from './state.js';
import { checkNvmeState } from './validate.js';

const schema = new Schema('nvme.proto');
const message = (name: string, type: number, optional = false) => ({
  name,
  type,
  optional,
  codec: schema.message(name),
});

/** Each record, by the part of the state that it is. `inline` parts are members of the state itself. */
const RECORDS = {
  identity: message('Identity', 0x10000),
  pci: message('PciFunction', 0x10001),
  registers: message('Registers', 0x10002),
  queues: message('Queues', 0x10003),
  completions: message('Completions', 0x10004),
  commands: message('Commands', 0x10005),
  features: message('Features', 0x10006),
  events: message('Events', 0x10007),
  health: message('Health', 0x10008, true),
} as const;

const byType = new Map(Object.entries(RECORDS).map(([part, record]) => [record.type, { part, ...record }]));

/** A state whose counters are unknown. */
const NO_HEALTH: NvmeState['health'] = {
  bytesRead: 0,
  bytesWritten: 0,
  readCommands: 0,
  writeCommands: 0,
  mediaErrors: 0,
  errorCount: 0,
  errors: [],
};

export const NVME_STANDARD_VERSION = { major: 1, minor: 0 } as const;

/** Does the work of the first encoding and decoding, in turns, for one that must not wait for it later. */
export function prepareNvmeRecords(): Promise<void> {
  return schema.prepare();
}

export function encodeNvmeState(state: NvmeState): FormatRecord[] {
  return [...nvmeRecords(state)];
}

/** The records of a state, each when it is asked for. */
export function* nvmeRecords(state: NvmeState): Generator<FormatRecord> {
  const { submissionQueues, completionQueues, completions, commands, features } = state;
  const parts: Record<keyof typeof RECORDS, object> = {
    ...state,
    queues: { submissionQueues, completionQueues },
    completions: { completions },
    commands: { commands },
    features: { features },
  };
  for (const [part, { type, optional, codec }] of Object.entries(RECORDS))
    yield { type, optional, payload: codec.encode(parts[part as keyof typeof RECORDS]) };
}

/** Puts a state together. Errors are DevstateErrors that name what is wrong. */
export class NvmeStateDecoder {
  readonly #parts = new Map<string, object>();

  /** Whether this version has records of the type. */
  static knows(type: number): boolean {
    return byType.has(type);
  }

  /** The payload as this version writes what it knows of it. @throws DevstateError when it is damaged */
  static canonical({ type, payload }: Pick<FormatRecord, 'type' | 'payload'>): Uint8Array {
    const codec = byType.get(type)?.codec;
    return codec === undefined ? payload : codec.encode(codec.decode(payload));
  }

  /** @returns false for a type that this version does not have */
  record({ type, payload }: Pick<FormatRecord, 'type' | 'payload'>): boolean {
    const known = byType.get(type);
    if (known === undefined) return false;
    if (this.#parts.has(known.part)) throw wrong(`the record ${known.name} came twice`);
    this.#parts.set(known.part, known.codec.decode(payload));
    return true;
  }

  /** All records have come. @throws DevstateError when one is missing, or a value is out of its range */
  finish(): NvmeState {
    const missing = Object.entries(RECORDS).filter(
      ([part, { optional }]) => !optional && !this.#parts.has(part),
    );
    if (missing.length > 0) throw wrong(`no record ${missing.map(([, { name }]) => name).join(', ')}`);
    const part = (name: keyof typeof RECORDS): object => this.#parts.get(name) ?? {};
    return checkNvmeState({
      identity: part('identity'),
      pci: part('pci'),
      registers: part('registers'),
      ...part('queues'),
      ...part('completions'),
      ...part('commands'),
      ...part('features'),
      events: part('events'),
      health: this.#parts.get('health') ?? NO_HEALTH,
    });
  }
}

/** The state that records are of; unknown ones are skipped if they are optional. @throws DevstateError */
export function decodeNvmeState(records: Iterable<FormatRecord>): NvmeState {
  const decoder = new NvmeStateDecoder();
  for (const record of records) {
    if (decoder.record(record) || record.optional) continue;
    throw wrong(`record type 0x${record.type.toString(16)} is not known, and not optional`);
  }
  return decoder.finish();
}

export const nvmeDescription: FormatDescription = {
  uuid: NVME_STANDARD.uuid,
  recordName: (type) => byType.get(type)?.part,
  describe: (type, payload) => byType.get(type)?.codec.describe(payload),
};

/** Values are named by the paths of the fields in an `NvmeState`. */
export const nvmeValues: ValueAdapter = {
  uuid: NVME_STANDARD.uuid,
  version: NVME_STANDARD_VERSION,
  toRecords: (values) => encodeNvmeState(checkNvmeState(unflattenTree(values))),
  toValues: (records) => flattenTree(decodeNvmeState(records)),
};

function wrong(what: string): DevstateError {
  return new DevstateError(
    'DEVSTATE_E_STATE_RECORD',
    `the state of ${NVME_STANDARD.name} is not whole: ${what}`,
  );
}
