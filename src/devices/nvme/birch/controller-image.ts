// SPDX-License-Identifier: Apache-2.0
/** The controller's memory image, and how to get at what is in it. `layout.ts` says where that is. */

import {
  CapHigh,
  CapLow,
  counted,
  FeatureId,
  MPS_MAX,
  type NvmeParameters,
  pageSizeOf,
  READY_TIMEOUT,
  Register,
  SQ_ENTRY_SIZE,
  VERSION,
  WARNING_TEMPERATURE,
} from '../spec/index.js';
import {
  COMMAND_SIZE,
  COMMANDS_AT,
  COMPLETION_AT,
  CommandSlot,
  EVENTS_AT,
  EVENTS_SIZE,
  FEATURES_AT,
  FEATURES_SIZE,
  IMAGE_SIZE,
  OVER_TEMPERATURE_AT,
  QUEUE_SIZE,
  REGISTERS_AT,
  SUBMISSION_AT,
  VECTOR_SIZE,
  VECTORS_AT,
  WRITE_CACHE_AT,
} from './layout.js';

const ENTRY_WORDS = SQ_ENTRY_SIZE / 4;

export class ControllerImage {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  readonly #words: Int32Array;
  /** No command slot from here on is in use. Few ever are: code that looks at all of them need not look at thousands. */
  commandEnd = 0;

  /** @param size bytes, for the beginning of an image: what is behind is not looked at */
  constructor(size = IMAGE_SIZE) {
    this.bytes = new Uint8Array(size);
    this.view = new DataView(this.bytes.buffer);
    this.#words = new Int32Array(this.bytes.buffer);
  }

  /** @param from where to begin, before the commands */
  clear(from = 0): this {
    this.bytes.fill(0, from);
    this.commandEnd = 0;
    return this;
  }

  u8(at: number): number {
    return this.view.getUint8(at);
  }

  u16(at: number): number {
    return this.view.getUint16(at, true);
  }

  u32(at: number): number {
    return this.view.getUint32(at, true);
  }

  /** Imprecise above 2^53, which nothing valid reaches. */
  u64(at: number): number {
    return this.view.getUint32(at, true) + this.view.getUint32(at + 4, true) * 2 ** 32;
  }

  setU8(at: number, value: number): void {
    this.view.setUint8(at, value);
  }

  setU16(at: number, value: number): void {
    this.view.setUint16(at, value, true);
  }

  setU32(at: number, value: number): void {
    this.view.setUint32(at, value, true);
  }

  /** @param value a safe integer */
  setU64(at: number, value: number): void {
    this.view.setUint32(at, value, true);
    this.view.setUint32(at + 4, Math.floor(value / 2 ** 32), true);
  }

  /** Adds to a counter, which stays at what a state can hold. */
  count(at: number, value = 1): void {
    this.setU64(at, counted(this.u64(at), value));
  }

  /** A span as bytes of the image itself. */
  span(at: number, length: number): Uint8Array {
    return this.bytes.subarray(at, at + length);
  }

  /** A register of 32 bits, by its offset in BAR 0. */
  register(offset: number): number {
    return this.view.getUint32(REGISTERS_AT + offset, true);
  }

  setRegister(offset: number, value: number): void {
    this.view.setUint32(REGISTERS_AT + offset, value, true);
  }

  /** CC.MPS as bytes. */
  get pageSize(): number {
    return pageSizeOf(this.register(Register.CC));
  }

  /** @param state of `CommandState` */
  setCommandState(slot: number, state: number): void {
    this.view.setUint8(commandAt(slot) + CommandSlot.STATE, state);
    if (slot >= this.commandEnd) this.commandEnd = slot + 1;
  }

  /** Copies an entry of a submission queue into a slot. `queue` is the queue in dwords. */
  takeEntry(slot: number, queue: Int32Array, index: number): void {
    const words = this.#words;
    const to = (commandAt(slot) + CommandSlot.ENTRY) >>> 2;
    const from = index * ENTRY_WORDS;
    for (let i = 0; i < ENTRY_WORDS; i++) words[to + i] = queue[from + i]!;
  }

  /** Dword `index` of the command in a slot. */
  dword(slot: number, index: number): number {
    return this.view.getUint32(commandAt(slot) + CommandSlot.ENTRY + 4 * index, true);
  }

  /** Dwords `index` and the next as one number. */
  qword(slot: number, index: number): number {
    return this.u64(commandAt(slot) + CommandSlot.ENTRY + 4 * index);
  }

  opcode(slot: number): number {
    return this.view.getUint8(commandAt(slot) + CommandSlot.ENTRY);
  }

  cid(slot: number): number {
    return this.view.getUint16(commandAt(slot) + CommandSlot.ENTRY + 2, true);
  }

  /** Submission queue of the command in a slot. */
  sqid(slot: number): number {
    return this.view.getUint16(commandAt(slot) + CommandSlot.SQID, true);
  }
}

export function submissionAt(id: number): number {
  return SUBMISSION_AT + id * QUEUE_SIZE;
}

export function completionAt(id: number): number {
  return COMPLETION_AT + id * QUEUE_SIZE;
}

export function commandAt(slot: number): number {
  return COMMANDS_AT + slot * COMMAND_SIZE;
}

/** Registers after power on. */
export function resetRegisters(image: ControllerImage, parameters: NvmeParameters): void {
  image.span(REGISTERS_AT, Register.ACQ + 8).fill(0);
  const capabilities = (parameters.queue_entries - 1) | CapLow.CQR | (READY_TIMEOUT << CapLow.TO_SHIFT);
  image.setRegister(Register.CAP, capabilities);
  image.setRegister(Register.CAP + 4, CapHigh.CSS_NVM | (MPS_MAX << CapHigh.MPSMAX_SHIFT));
  image.setRegister(Register.VS, VERSION);
}

/** The MSI-X table after power on: all vectors masked. */
export function resetVectors(image: ControllerImage, parameters: NvmeParameters): void {
  const table = image.span(VECTORS_AT, parameters.msix_vectors * VECTOR_SIZE);
  table.fill(0);
  for (let at = 12; at < table.length; at += VECTOR_SIZE) table[at] = 1;
}

/** Features and events after a controller reset. */
export function resetFeatures(image: ControllerImage): void {
  image.span(FEATURES_AT, FEATURES_SIZE).fill(0);
  image.setU32(WRITE_CACHE_AT, featureDefault(FeatureId.VOLATILE_WRITE_CACHE));
  image.setU32(OVER_TEMPERATURE_AT, WARNING_TEMPERATURE);
  image.span(EVENTS_AT, EVENTS_SIZE).fill(0);
}

/** Default of a feature that is one u32. */
export function featureDefault(id: number): number {
  return id === FeatureId.VOLATILE_WRITE_CACHE ? 1 : 0;
}
