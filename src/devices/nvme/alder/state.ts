// SPDX-License-Identifier: Apache-2.0
/**
 * The controller's state as values: types, and what a value must be to be believed. A blob comes from another process
 * and may be anything, so every field is bounded here, and `stateProblem` checks what fields say about each other.
 */

import { CONFIG_SPACE_SIZE } from '../../../device/index.js';
import * as z from '../../../zod.js';
import {
  AQA_WRITABLE,
  ARBITRATION_WRITABLE,
  ASYNC_EVENT_LIMIT,
  Cc,
  Csts,
  ERROR_LOG_ENTRIES,
  MIN_PAGE_SIZE,
  MPS_MAX,
  MSIX_ENTRY_SIZE,
  type NvmeParameters,
  pageSizeOf,
  SQ_ENTRY_SIZE,
  STATUS_MASK,
} from '../spec/index.js';
import { PENDING_EVENT_LIMIT } from './events.js';

/** Held completions one queue can have: bounded by the commands that can be under way. */
const HELD_LIMIT = 8192;

const integer = (maximum: number, minimum = 0) => z.number().int().min(minimum).max(maximum);
const u16 = integer(0xffff);
const u32 = integer(0xffffffff);
const size = integer(Number.MAX_SAFE_INTEGER);
const pageAddress = size.refine((address) => address % MIN_PAGE_SIZE === 0, 'is not page aligned');
/** Bits of `mask` only. */
const bits = (mask: number) => u32.refine((value) => (value & ~mask) === 0, 'has bits that do not exist');
const bytes = (minimum: number, maximum: number) =>
  z.custom<Uint8Array>(
    (value) => value instanceof Uint8Array && value.length >= minimum && value.length <= maximum,
    'is not bytes of the right length',
  );

export const identitySchema = z.strictObject({
  parameters: z.record(z.string().max(64), z.union([z.string().max(64), size])),
  nguid: bytes(16, 16),
  eui64: bytes(8, 8),
});

export const functionSchema = z.strictObject({
  config: bytes(CONFIG_SPACE_SIZE, CONFIG_SPACE_SIZE),
  registers: z.strictObject({
    cc: bits(Cc.WRITABLE),
    csts: bits(Csts.RDY | Csts.CFS | Csts.SHST_MASK),
    interruptMask: u32,
    aqa: bits(AQA_WRITABLE),
    asq: pageAddress,
    acq: pageAddress,
  }),
  msixTable: bytes(MSIX_ENTRY_SIZE, 256 * MSIX_ENTRY_SIZE),
});

const queueFields = { id: integer(255), base: pageAddress, size: integer(65536, 2), head: u16, tail: u16 };

export const queuesSchema = z.strictObject({
  submission: z.array(z.strictObject({ ...queueFields, cq: integer(255), priority: integer(3) })).max(256),
  completion: z
    .array(
      z.strictObject({
        ...queueFields,
        phase: integer(1),
        vector: integer(255),
        interruptsEnabled: z.boolean(),
        held: z
          .array(z.strictObject({ sq: integer(255), cid: u16, status: bits(STATUS_MASK), result: u32 }))
          .max(HELD_LIMIT),
      }),
    )
    .max(256),
});

/** Commands that another vendor's controller had taken from their queue, not yet begun anew here. */
export const commandsSchema = z.strictObject({
  commands: z
    .array(z.strictObject({ sq: integer(255), entry: bytes(SQ_ENTRY_SIZE, SQ_ENTRY_SIZE) }))
    .max(HELD_LIMIT),
});

export const adminSchema = z.strictObject({
  features: z.strictObject({
    arbitration: bits(ARBITRATION_WRITABLE),
    powerManagement: bits(0xe0),
    temperatureOver: u16,
    temperatureUnder: u16,
    errorRecovery: u16,
    volatileWriteCache: integer(1),
    interruptCoalescing: u16,
    writeAtomicity: integer(1),
    asyncEvents: bits(0xff),
    coalescingDisabled: z.array(integer(255)).max(256),
  }),
  events: z.strictObject({
    requests: z.array(u16).max(ASYNC_EVENT_LIMIT),
    pending: z
      .array(z.strictObject({ type: integer(7), information: integer(255), page: integer(255) }))
      .max(PENDING_EVENT_LIMIT),
    masked: z.array(integer(7)).max(8),
  }),
  health: z.strictObject({
    counters: z.strictObject({
      bytesRead: size,
      bytesWritten: size,
      readCommands: size,
      writeCommands: size,
      mediaErrors: size,
    }),
    errorCount: size,
    errors: z
      .array(
        z.strictObject({
          count: size.min(1),
          sqid: u16,
          cid: u16,
          status: bits(STATUS_MASK),
          lba: size,
          nsid: u32,
        }),
      )
      .max(ERROR_LOG_ENTRIES),
  }),
});

export type IdentityState = z.infer<typeof identitySchema>;
export type QueuesState = z.infer<typeof queuesSchema>;
/** Everything but the identity, which is given and not restored. */
export type ControllerState = z.infer<typeof functionSchema> &
  QueuesState &
  z.infer<typeof commandsSchema> &
  z.infer<typeof adminSchema>;

const controllerSchema = z.strictObject({
  ...functionSchema.shape,
  ...queuesSchema.shape,
  ...commandsSchema.shape,
  ...adminSchema.shape,
});

/** The first field of a state that is out of its range here, in words; undefined if all are sound in themselves. */
export function fieldProblem(state: ControllerState): string | undefined {
  const issue = controllerSchema.safeParse(state).error?.issues[0];
  return issue === undefined ? undefined : `${issue.path.join('.')}: ${issue.message}`;
}

/** What fields of a state, each sound in itself, contradict each other or this controller; undefined if nothing. */
export function stateProblem(state: ControllerState, parameters: NvmeParameters): string | undefined {
  const { cc, csts, aqa, asq, acq } = state.registers;
  if (![0, Csts.SHST_COMPLETE].includes(csts & Csts.SHST_MASK)) return 'a shutdown is under way';
  if (state.msixTable.length !== parameters.msix_vectors * MSIX_ENTRY_SIZE)
    return 'the MSI-X table has another length';
  if (state.features.coalescingDisabled.some((vector) => vector >= parameters.msix_vectors)) {
    return 'a feature names an interrupt vector that does not exist';
  }
  for (const [what, list] of [
    ['two event requests have one identifier', state.events.requests],
    ['a masked event type is there twice', state.events.masked],
    ['a vector without coalescing is there twice', state.features.coalescingDisabled],
  ] as const) {
    if (new Set(list).size !== list.length) return what;
  }
  const queues = [...state.submission, ...state.completion];
  if ((csts & Csts.RDY) === 0) {
    if (queues.length > 0 || state.commands.length > 0 || state.events.requests.length > 0)
      return 'a controller that is not ready has queues';
    return undefined;
  }
  // A guest may write any page size while the controller is disabled, or try to enable it with that.
  if (((cc >>> 7) & 0xf) > MPS_MAX) return 'the page size is one this controller does not have';
  const ids = new Set(state.submission.map(({ id }) => id));
  if (!state.commands.every(({ sq }) => ids.has(sq))) return 'a command is of a queue that is not there';
  return (
    queueProblem(state, parameters, pageSizeOf(cc)) ??
    adminQueueProblem(state.submission[0], asq, (aqa & 0xfff) + 1) ??
    adminQueueProblem(state.completion[0], acq, (aqa >>> 16) + 1)
  );
}

function queueProblem(
  state: QueuesState & Pick<ControllerState, 'commands'>,
  parameters: NvmeParameters,
  pageSize: number,
): string | undefined {
  const { submission, completion } = state;
  for (const list of [submission, completion]) {
    for (const [index, queue] of list.entries()) {
      const name = `queue ${queue.id}`;
      if (index > 0 && queue.id <= list[index - 1]!.id) return `${name} is out of order`;
      if (queue.id > parameters.queues) return `${name} does not exist here`;
      if (queue.id > 0 && queue.size > parameters.queue_entries)
        return `${name} has more entries than it can`;
      if (queue.base % pageSize !== 0) return `${name} is not page aligned`;
      if (!Number.isSafeInteger(queue.base + queue.size * 64))
        return `${name} reaches beyond the address space`;
      if (queue.head >= queue.size || queue.tail >= queue.size) return `${name} has an index beyond its end`;
    }
  }
  const completionQueueOf = new Map(submission.map(({ id, cq }) => [id, cq]));
  const completionIds = new Set(completion.map((cq) => cq.id));
  const commandsOf = new Map<number | undefined, number>();
  for (const { sq } of state.commands) {
    const cq = completionQueueOf.get(sq);
    commandsOf.set(cq, (commandsOf.get(cq) ?? 0) + 1);
  }
  for (const sq of submission) {
    if (!completionIds.has(sq.cq) || (sq.id === 0) !== (sq.cq === 0))
      return `queue ${sq.id} has no completion queue`;
  }
  for (const cq of completion) {
    if (cq.vector >= parameters.msix_vectors) return `queue ${cq.id} has a vector that does not exist`;
    // Each of its commands becomes a completion, which may have to be held back too.
    if (cq.held.length + (commandsOf.get(cq.id) ?? 0) > HELD_LIMIT)
      return `queue ${cq.id} has too many commands`;
    for (const held of cq.held) {
      if (completionQueueOf.get(held.sq) !== cq.id)
        return `queue ${cq.id} holds a completion of a queue that is not its own`;
    }
  }
  return undefined;
}

function adminQueueProblem(
  queue: { id: number; base: number; size: number } | undefined,
  base: number,
  entries: number,
): string | undefined {
  if (queue === undefined || queue.id !== 0) return 'an admin queue is missing';
  return queue.base === base && queue.size === entries
    ? undefined
    : 'an admin queue is not where its register says';
}
