// SPDX-License-Identifier: Apache-2.0
/**
 * What an image must be before it becomes a controller's. It comes from another process and may be anything: every byte
 * of it is checked here, alone and against the others, and nothing is copied into the controller before.
 */

import {
  AQA_WRITABLE,
  ASYNC_EVENT_LIMIT,
  Cc,
  CQ_ENTRY_SIZE,
  Csts,
  MIN_PAGE_SIZE,
  type NvmeParameters,
  Register,
  resolveNvmeParameters,
  SQ_ENTRY_SIZE,
  STATUS_MASK,
} from '../spec/index.js';
import {
  ControllerImage,
  commandAt,
  completionAt,
  resetRegisters,
  submissionAt,
} from './controller-image.js';
import { readIdentity, writeHeader } from './identity.js';
import {
  COALESCING_DISABLED_AT,
  CommandSlot,
  CommandState,
  CompletionSlot,
  ERROR_SIZE,
  ERROR_SLOTS,
  ERRORS_AT,
  ErrorSlot,
  EVENT_SIZE,
  EVENT_SLOTS,
  Events,
  FEATURE_WORDS,
  HEADER_SIZE,
  HealthCounter,
  OVER_TEMPERATURE_AT,
  PENDING_BITS_AT,
  QUEUE_SIZE,
  QUEUE_SLOTS,
  QueueSlot,
  QueueState,
  SubmissionSlot,
  UNDER_TEMPERATURE_AT,
  UNUSED_SPANS,
  VECTOR_BITMAP_SIZE,
  VECTORS_AT,
} from './layout.js';

/** Largest admin queue: AQA has 12 bits for it. */
const ADMIN_ENTRIES_MAX = 4096;
const EVENT_TYPE_MAX = 7;

/** As many as are ever looked at in one piece. */
const zeros = new Uint8Array(QUEUE_SLOTS * QUEUE_SIZE);

/** The first thing that is wrong with an image, in words; undefined if it is sound. */
export function imageProblem(image: ControllerImage): string | undefined {
  const { parameters } = readIdentity(image);
  return (
    headerProblem(image, parameters) ??
    registerProblem(image, parameters) ??
    featureProblem(image, parameters) ??
    eventProblem(image) ??
    healthProblem(image) ??
    unusedProblem(image) ??
    queuesProblem(image, parameters) ??
    commandsProblem(image)
  );
}

function headerProblem(image: ControllerImage, parameters: NvmeParameters): string | undefined {
  try {
    resolveNvmeParameters({ ...parameters }, parameters.namespace_size);
  } catch (error) {
    return `the header has parameters that no controller has: ${error instanceof Error ? error.message : error}`;
  }
  // Written anew from what was read, it must be the same: then nothing is in it that was not understood.
  const again = new ControllerImage(HEADER_SIZE);
  writeHeader(again, readIdentity(image));
  const same = Buffer.compare(again.span(0, HEADER_SIZE), image.span(0, HEADER_SIZE)) === 0;
  return same ? undefined : 'the header has bytes where nothing is';
}

function registerProblem(image: ControllerImage, parameters: NvmeParameters): string | undefined {
  const fixed = new ControllerImage(VECTORS_AT);
  resetRegisters(fixed, parameters);
  for (const [name, offset] of [
    ['CAP', Register.CAP],
    ['CAP', Register.CAP + 4],
    ['VS', Register.VS],
  ] as const) {
    if (image.register(offset) !== fixed.register(offset)) return `register ${name} is another controller's`;
  }
  const beyond = (offset: number, mask: number) => (image.register(offset) & ~mask) !== 0;
  if (beyond(Register.CC, Cc.WRITABLE)) return 'register CC has bits that do not exist';
  if (beyond(Register.AQA, AQA_WRITABLE)) return 'register AQA has bits that do not exist';
  if (beyond(Register.CSTS, Csts.RDY | Csts.CFS | Csts.SHST_MASK)) {
    return 'register CSTS has bits that do not exist';
  }
  const shutdown = image.register(Register.CSTS) & Csts.SHST_MASK;
  if (shutdown !== 0 && shutdown !== Csts.SHST_COMPLETE) return 'a shutdown is under way';
  if (image.register(Register.INTMS) !== image.register(Register.INTMC)) {
    return 'registers INTMS and INTMC differ';
  }
  for (const [name, offset] of [
    ['ASQ', Register.ASQ],
    ['ACQ', Register.ACQ],
  ] as const) {
    if (image.register(offset) % MIN_PAGE_SIZE !== 0) return `register ${name} is not page aligned`;
  }
  return undefined;
}

function featureProblem(image: ControllerImage, { msix_vectors }: NvmeParameters): string | undefined {
  for (const { id, at, mask } of FEATURE_WORDS) {
    if ((image.u32(at) & ~mask) !== 0) return `feature 0x0${id.toString(16)} has bits that do not exist`;
  }
  for (const at of [OVER_TEMPERATURE_AT, UNDER_TEMPERATURE_AT]) {
    if (image.u32(at) > 0xffff) return 'a temperature threshold is beyond 65535 K';
  }
  for (const [at, what] of [
    [COALESCING_DISABLED_AT, 'a feature names'],
    [PENDING_BITS_AT, 'an interrupt is pending of'],
  ] as const) {
    for (let vector = msix_vectors; vector < 8 * VECTOR_BITMAP_SIZE; vector++) {
      if ((image.u8(at + (vector >>> 3)) & (1 << (vector & 7))) !== 0) {
        return `${what} vector ${vector}, which does not exist`;
      }
    }
  }
  return undefined;
}

function eventProblem(image: ControllerImage): string | undefined {
  const count = image.u8(Events.COUNT);
  if (count > EVENT_SLOTS) return `${count} events are pending, more than the ${EVENT_SLOTS} there can be`;
  for (let index = 0; index < EVENT_SLOTS; index++) {
    const at = Events.SLOTS + index * EVENT_SIZE;
    if (image.u8(at) > EVENT_TYPE_MAX || image.u8(at + 3) !== 0) {
      return `pending event ${index} is of a type that does not exist`;
    }
    if (index >= count && image.u32(at) !== 0) return 'there is an event behind the last';
  }
  return undefined;
}

function healthProblem(image: ControllerImage): string | undefined {
  for (const [name, at] of Object.entries(HealthCounter)) {
    if (!Number.isSafeInteger(image.u64(at))) return `counter ${name.toLowerCase()} is beyond 2^53`;
  }
  let ended = false;
  for (let index = 0; index < ERROR_SLOTS; index++) {
    const at = ERRORS_AT + index * ERROR_SIZE;
    ended ||= image.u64(at + ErrorSlot.COUNT) === 0;
    if (ended) {
      if (!allZero(image.span(at, ERROR_SIZE))) return 'the error log has an entry behind the last';
      continue;
    }
    const sound =
      Number.isSafeInteger(image.u64(at + ErrorSlot.COUNT)) &&
      Number.isSafeInteger(image.u64(at + ErrorSlot.LBA)) &&
      image.u16(at + ErrorSlot.STATUS) <= STATUS_MASK &&
      allZero(image.span(at + ErrorSlot.STATUS + 2, ERROR_SIZE - ErrorSlot.STATUS - 2));
    if (!sound) return `entry ${index} of the error log has values that do not exist`;
  }
  return undefined;
}

function unusedProblem(image: ControllerImage): string | undefined {
  const found = UNUSED_SPANS.find(([at, length]) => !allZero(image.span(at, length)));
  return found === undefined
    ? undefined
    : `there is something at 0x${found[0].toString(16)}, where nothing is`;
}

function queuesProblem(image: ControllerImage, parameters: NvmeParameters): string | undefined {
  const ready = (image.register(Register.CSTS) & Csts.RDY) !== 0;
  const isPresent = (at: number): boolean => image.u8(at + QueueSlot.STATE) !== QueueState.ABSENT;
  // Most of the many slots are empty: one look at all of them together shows it.
  const own = parameters.queues + 1;
  const others = [submissionAt(own), completionAt(own)].map((at) =>
    image.span(at, (QUEUE_SLOTS - own) * QUEUE_SIZE),
  );
  const end = others.every(allZero) ? own : QUEUE_SLOTS;
  for (let id = 0; id < end; id++) {
    const submission = isPresent(submissionAt(id));
    const completion = isPresent(completionAt(id));
    if (id === 0 && ready && !(submission && completion)) return 'an admin queue is missing';
    if (!submission && !completion) continue;
    if (!ready) return 'a controller that is not ready has queues';
    const problem =
      (completion ? completionProblem(image, id, parameters) : undefined) ??
      (submission ? submissionProblem(image, id, parameters) : undefined);
    if (problem !== undefined) return problem;
  }
  return undefined;
}

function submissionProblem(
  image: ControllerImage,
  id: number,
  parameters: NvmeParameters,
): string | undefined {
  const at = submissionAt(id);
  const name = `submission queue ${id}`;
  const problem = queueProblem(image, at, id, name, SQ_ENTRY_SIZE, parameters);
  if (problem !== undefined) return problem;
  if (image.u8(at + SubmissionSlot.PRIORITY) > 3) return `${name} has a priority that does not exist`;
  const cqid = image.u16(at + SubmissionSlot.CQID);
  const known = cqid < QUEUE_SLOTS && image.u8(completionAt(cqid) + QueueSlot.STATE) !== 0;
  if (!known || (id === 0) !== (cqid === 0)) return `${name} has no completion queue`;
  return allZero(image.span(at + 26, 6)) ? undefined : `${name} has bytes where nothing is`;
}

function completionProblem(
  image: ControllerImage,
  id: number,
  parameters: NvmeParameters,
): string | undefined {
  const at = completionAt(id);
  const name = `completion queue ${id}`;
  const problem = queueProblem(image, at, id, name, CQ_ENTRY_SIZE, parameters);
  if (problem !== undefined) return problem;
  if (image.u8(at + CompletionSlot.PHASE) > 1) return `${name} has a phase that does not exist`;
  if (image.u8(at + CompletionSlot.INTERRUPTS) > 1) return `${name} neither interrupts nor does not`;
  if (image.u16(at + CompletionSlot.VECTOR) >= parameters.msix_vectors) {
    return `${name} has a vector that does not exist`;
  }
  return allZero(image.span(at + 27, 5)) ? undefined : `${name} has bytes where nothing is`;
}

function queueProblem(
  image: ControllerImage,
  at: number,
  id: number,
  name: string,
  entrySize: number,
  parameters: NvmeParameters,
): string | undefined {
  if (image.u8(at + QueueSlot.STATE) !== QueueState.PRESENT) return `${name} is in a state that is not saved`;
  if (id > parameters.queues) return `${name} does not exist here`;
  const entries = image.u32(at + QueueSlot.ENTRIES);
  const maximum = id === 0 ? ADMIN_ENTRIES_MAX : parameters.queue_entries;
  if (entries < 2 || entries > maximum) return `${name} has ${entries} entries, not 2 to ${maximum}`;
  const base = image.u64(at + QueueSlot.BASE);
  if (base % MIN_PAGE_SIZE !== 0) return `${name} is not page aligned`;
  if (!Number.isSafeInteger(base + entries * entrySize)) return `${name} reaches beyond the address space`;
  const indexes = [image.u32(at + QueueSlot.HEAD), image.u32(at + QueueSlot.TAIL)];
  return indexes.every((index) => index < entries) ? undefined : `${name} has an index beyond its end`;
}

function commandsProblem(image: ControllerImage): string | undefined {
  let waiting = 0;
  let ended = false;
  for (let slot = 0; slot < image.commandEnd; slot++) {
    const at = commandAt(slot);
    const state = image.u8(at + CommandSlot.STATE);
    if (state === CommandState.FREE) ended = true;
    else if (ended) return `command ${slot} is behind the last`;
    if (state === CommandState.FREE) continue;
    if (state === CommandState.WAITING) waiting++;
    const problem = commandProblem(image, slot, state);
    if (problem !== undefined) return `command ${slot} ${problem}`;
  }
  if (waiting > ASYNC_EVENT_LIMIT) {
    return `${waiting} event requests wait, more than the ${ASYNC_EVENT_LIMIT} there can be`;
  }
  return undefined;
}

function commandProblem(image: ControllerImage, slot: number, state: number): string | undefined {
  const at = commandAt(slot);
  if (state > CommandState.DUE || state === CommandState.STARTED) return 'is in a state that is not saved';
  const sqid = image.sqid(slot);
  if (sqid >= QUEUE_SLOTS || image.u8(submissionAt(sqid) + QueueSlot.STATE) === 0) {
    return `is of submission queue ${sqid}, which is not there`;
  }
  if (state === CommandState.WAITING && sqid !== 0) return 'waits for events in an I/O queue';
  if (!Object.is(image.view.getFloat64(at + CommandSlot.ORDER, true), slot)) return 'is out of order';
  if (state !== CommandState.DUE && !allZero(image.span(at + CommandSlot.STATUS, 8))) {
    return 'has a result and was not completed';
  }
  const unused = [
    [1, 1],
    [6, 2],
    [12, 4],
    [24, 8],
  ] as const;
  if (image.u16(at + CommandSlot.STATUS) > STATUS_MASK) return 'has a status that does not exist';
  return unused.every(([from, length]) => allZero(image.span(at + from, length)))
    ? undefined
    : 'has bytes where nothing is';
}

function allZero(bytes: Uint8Array): boolean {
  return Buffer.compare(bytes, zeros.subarray(0, bytes.length)) === 0;
}
