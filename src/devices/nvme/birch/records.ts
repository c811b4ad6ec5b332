// SPDX-License-Identifier: Apache-2.0
/**
 * The image as the records of format `org.devstate.nvme.birch` 1.0, and back. Sections with slots hold only those in use.
 *
 * | type    | record             | payload                                                          |
 * |---------|--------------------|------------------------------------------------------------------|
 * | 0x10000 | header             | the header, with the numbers of slots that follow                |
 * | 0x10001 | controller         | registers to MSI-X pending bits, as they are in the image        |
 * | 0x10002 | interrupt_vectors  | MSI-X table                                                      |
 * | 0x10003 | submission_queues  | slots in order of identifier                                     |
 * | 0x10004 | completion_queues  | slots in order of identifier                                     |
 * | 0x10005 | commands           | slots, oldest first                                              |
 */

import type { StateRecord } from '../../../device/index.js';
import { ControllerImage, commandAt } from './controller-image.js';
import { STRUCTURE_SIZES } from './identity.js';
import {
  COMMAND_SIZE,
  COMMAND_SLOTS,
  COMMANDS_AT,
  COMPLETION_AT,
  CONTROLLER_AT,
  CONTROLLER_SIZE,
  CommandSlot,
  CommandState,
  HEADER_SIZE,
  Header,
  LAYOUT_VERSION,
  MAGIC,
  QUEUE_SIZE,
  QUEUE_SLOTS,
  QueueSlot,
  QueueState,
  SUBMISSION_AT,
  VECTOR_SIZE,
  VECTOR_SLOTS,
  VECTORS_AT,
} from './layout.js';
import { refused } from './refused.js';

/** Record types. */
export const BirchRecord = {
  HEADER: 0x10000,
  CONTROLLER: 0x10001,
  INTERRUPT_VECTORS: 0x10002,
  SUBMISSION_QUEUES: 0x10003,
  COMPLETION_QUEUES: 0x10004,
  COMMANDS: 0x10005,
} as const;

const recordNames = new Map<number, string>(
  Object.entries(BirchRecord).map(([name, type]) => [type, name.toLowerCase()]),
);

export function birchRecordName(type: number): string | undefined {
  return recordNames.get(type);
}

/** Sections of slots: how many the image has room for, and where a saved header says how many follow. */
const SECTIONS = [
  {
    type: BirchRecord.INTERRUPT_VECTORS,
    countAt: Header.VECTOR_COUNT,
    limit: VECTOR_SLOTS,
    size: VECTOR_SIZE,
  },
  {
    type: BirchRecord.SUBMISSION_QUEUES,
    countAt: Header.SUBMISSION_COUNT,
    limit: QUEUE_SLOTS,
    size: QUEUE_SIZE,
  },
  {
    type: BirchRecord.COMPLETION_QUEUES,
    countAt: Header.COMPLETION_COUNT,
    limit: QUEUE_SLOTS,
    size: QUEUE_SIZE,
  },
  { type: BirchRecord.COMMANDS, countAt: Header.COMMAND_COUNT, limit: COMMAND_SLOTS, size: COMMAND_SIZE },
] as const;

/** The records of a quiesced controller's image. Equal states give equal bytes. */
export function imageToRecords(image: ControllerImage): StateRecord[] {
  const sections = [
    image.span(VECTORS_AT, image.u32(Header.VECTORS) * VECTOR_SIZE).slice(),
    presentQueues(image, SUBMISSION_AT),
    presentQueues(image, COMPLETION_AT),
    usedCommands(image),
  ];
  const header = image.span(0, HEADER_SIZE).slice();
  const view = new DataView(header.buffer);
  for (const [index, { countAt, size }] of SECTIONS.entries()) {
    view.setUint32(countAt, sections[index]!.length / size, true);
  }
  return [
    { type: BirchRecord.HEADER, payload: header },
    { type: BirchRecord.CONTROLLER, payload: image.span(CONTROLLER_AT, CONTROLLER_SIZE).slice() },
    ...SECTIONS.map(({ type }, index) => ({ type, payload: sections[index]! })),
  ];
}

function presentQueues(image: ControllerImage, first: number): Uint8Array {
  const slots: Uint8Array[] = [];
  for (let at = first; at < first + QUEUE_SLOTS * QUEUE_SIZE; at += QUEUE_SIZE) {
    if (image.u8(at + QueueSlot.STATE) !== QueueState.ABSENT) slots.push(image.span(at, QUEUE_SIZE));
  }
  return joined(slots);
}

/** Command slots in use, oldest first. */
export function commandsInOrder(image: ControllerImage): number[] {
  const used: number[] = [];
  for (let slot = 0; slot < image.commandEnd; slot++) {
    if (image.u8(commandAt(slot) + CommandSlot.STATE) !== CommandState.FREE) used.push(slot);
  }
  const order = (slot: number) => image.view.getFloat64(commandAt(slot) + CommandSlot.ORDER, true);
  return used.sort((a, b) => order(a) - order(b));
}

/** What a slot's own place was is not state, so its order takes the place of it. */
function usedCommands(image: ControllerImage): Uint8Array {
  const used = commandsInOrder(image);
  const bytes = joined(used.map((slot) => image.span(commandAt(slot), COMMAND_SIZE)));
  const view = new DataView(bytes.buffer);
  for (const index of used.keys()) view.setFloat64(index * COMMAND_SIZE + CommandSlot.ORDER, index, true);
  return bytes;
}

function joined(parts: readonly Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

/** Takes the records of one state as they come. */
export class RecordCollector {
  readonly #payloads = new Map<number, Uint8Array>();

  /** Copies the payload. @throws RequestError for a record that cannot be part of a state */
  add(record: StateRecord): void {
    const name = birchRecordName(record.type);
    if (name === undefined) {
      if (record.optional === true) return;
      throw refused(`record type 0x${record.type.toString(16)} is unknown`);
    }
    if (this.#payloads.has(record.type)) throw refused(`the ${name} record came twice`);
    this.#payloads.set(record.type, Uint8Array.prototype.slice.call(record.payload));
  }

  /** The image that the records make, in `image`, which is empty; of its contents only the sizes are checked. @throws RequestError */
  toImage(image = new ControllerImage()): ControllerImage {
    image.bytes.set(checkedHeader(this.#take(BirchRecord.HEADER)));
    const controller = this.#take(BirchRecord.CONTROLLER);
    requireLength(BirchRecord.CONTROLLER, controller, CONTROLLER_SIZE);
    image.bytes.set(controller, CONTROLLER_AT);
    for (const { type, countAt, limit, size } of SECTIONS) {
      const payload = this.#take(type);
      const count = image.u32(countAt);
      if (count > limit)
        throw refused(`${count} ${birchRecordName(type)}, more than the ${limit} there can be`);
      requireLength(type, payload, count * size);
      image.setU32(countAt, 0);
      requireInUse(type, payload, size);
      if (type === BirchRecord.INTERRUPT_VECTORS) image.bytes.set(payload, VECTORS_AT);
      else if (type === BirchRecord.COMMANDS) placeCommands(image, payload);
      else placeQueues(image, type, payload);
    }
    return image;
  }

  #take(type: number): Uint8Array {
    const payload = this.#payloads.get(type);
    if (payload === undefined) throw refused(`the ${birchRecordName(type)} record is missing`);
    return payload;
  }
}

/** Everything that says whether these are our structures, before any of them is looked at. */
function checkedHeader(header: Uint8Array): Uint8Array {
  if (Buffer.from(header.subarray(0, MAGIC.length)).toString('latin1') !== MAGIC) {
    throw refused(`the header does not begin with ${MAGIC}`);
  }
  requireLength(BirchRecord.HEADER, header, HEADER_SIZE);
  const view = new DataView(header.buffer, header.byteOffset);
  const version = view.getUint32(Header.LAYOUT_VERSION, true);
  if (version !== LAYOUT_VERSION) {
    throw refused(`the image has layout ${version}, this controller layout ${LAYOUT_VERSION}`);
  }
  const differing = STRUCTURE_SIZES.filter(({ at, size }) => view.getUint32(at, true) !== size);
  if (differing.length > 0) {
    throw refused(
      ...differing.map(
        ({ name, at, size }) =>
          `the ${name} structure has ${view.getUint32(at, true)} bytes there, ${size} here`,
      ),
    );
  }
  return header;
}

function requireLength(type: number, payload: Uint8Array, length: number): void {
  if (payload.length === length) return;
  throw refused(`the ${birchRecordName(type)} record has ${payload.length} bytes instead of ${length}`);
}

/** Slots are saved because they are in use; their first byte says so, but for those of interrupt vectors. */
function requireInUse(type: number, payload: Uint8Array, size: number): void {
  if (type === BirchRecord.INTERRUPT_VECTORS) return;
  for (let at = 0; at < payload.length; at += size) {
    if (payload[at] === 0) throw refused(`${birchRecordName(type)}: slot ${at / size} is not in use`);
  }
}

function placeCommands(image: ControllerImage, payload: Uint8Array): void {
  image.bytes.set(payload, COMMANDS_AT);
  image.commandEnd = payload.length / COMMAND_SIZE;
}

/** Puts saved queue slots where their identifiers say. */
function placeQueues(image: ControllerImage, type: number, payload: Uint8Array): void {
  const first = type === BirchRecord.SUBMISSION_QUEUES ? SUBMISSION_AT : COMPLETION_AT;
  const view = new DataView(payload.buffer, payload.byteOffset);
  let previous = -1;
  for (let at = 0; at < payload.length; at += QUEUE_SIZE) {
    const id = view.getUint16(at + QueueSlot.ID, true);
    if (id <= previous || id >= QUEUE_SLOTS) {
      throw refused(`${birchRecordName(type)}: queue ${id} is out of order or does not exist`);
    }
    image.bytes.set(payload.subarray(at, at + QUEUE_SIZE), first + id * QUEUE_SIZE);
    previous = id;
  }
}
