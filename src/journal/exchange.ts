// SPDX-License-Identifier: Apache-2.0
/**
 * How far a connection has come with the one message that it is at: received, answered. In the journal's memory, so that
 * a successor continues with the same byte.
 *
 * Each direction has a `mmsghdr`, whose `msg_len` the kernel writes within the call that moves the bytes; beside it, in
 * the same 64-bit word, is what earlier calls have moved of this message, and the message's number:
 *
 * ```text
 *      0  u32 msg_len        by the call under way or the last one, by the kernel
 *      4  u24 moved          by the calls before
 *      7  u8  sequence       of the message, counted round
 * ```
 *
 * One store of that word begins a message or takes a call's count into account, so there is no moment at which bytes
 * count twice or not at all.
 *
 * ```text
 *      0  mmsghdr, receiving                          64  mmsghdr, sending
 *    128  u32 attempts, u32 number of fds, fds u32 × 64
 * ```
 */

/** Offset of `msg_len` in a `mmsghdr`. */
const COUNT_AT = 56;
const TRANSFER_LENGTH = 64;
const ATTEMPTS_AT = 2 * TRANSFER_LENGTH;
const FDS_AT = ATTEMPTS_AT + 4;
export const MAX_EXCHANGE_FDS = 64;
const MOVED_BITS = 24;
const MOVED_MASK = 2 ** MOVED_BITS - 1;

export interface ExchangePlace {
  readonly at: number;
  readonly request: number;
  readonly reply: number;
  readonly messageLength: number;
}

/** One direction of a connection. */
export class Transfer {
  /** Where its `mmsghdr` is in the memory. */
  readonly headerAt: number;
  readonly #words: Uint32Array;
  readonly #wide: BigUint64Array;
  readonly #index: number;
  readonly #onStore: () => void;

  constructor(memory: Uint8Array, headerAt: number, onStore: () => void) {
    this.headerAt = headerAt;
    this.#words = new Uint32Array(memory.buffer, memory.byteOffset, memory.length / 4);
    this.#wide = new BigUint64Array(memory.buffer, memory.byteOffset, memory.length / 8);
    this.#index = (headerAt + COUNT_AT) / 4;
    this.#onStore = onStore;
  }

  /** Bytes of the message that have moved. */
  get position(): number {
    return this.#words[this.#index]! + (this.#words[this.#index + 1]! & MOVED_MASK);
  }

  /** Number of the message, 0 to 255. */
  get sequence(): number {
    return this.#words[this.#index + 1]! >>> MOVED_BITS;
  }

  /** Nothing has moved yet of message `sequence`. */
  begin(sequence: number): void {
    this.#set(sequence, 0);
  }

  /** Before another call for the same message: its count starts at 0. */
  settle(): void {
    if (this.#words[this.#index] !== 0) this.#set(this.sequence, this.position);
  }

  #set(sequence: number, moved: number): void {
    const word = (BigInt(((sequence & 0xff) << MOVED_BITS) >>> 0) | BigInt(moved)) << 32n;
    Atomics.store(this.#wide, this.#index / 2, word);
    this.#onStore();
  }
}

export class Exchange {
  readonly receiving: Transfer;
  readonly sending: Transfer;
  /** All of the journal's memory, which the two buffers are at `requestAt` and `replyAt` of. */
  readonly memory: Uint8Array;
  readonly requestAt: number;
  readonly replyAt: number;
  /** Bytes of each buffer. */
  readonly messageLength: number;
  readonly #words: Uint32Array;
  readonly #at: number;
  readonly #onStore: () => void;

  constructor(memory: Uint8Array, place: ExchangePlace, onStore: () => void) {
    this.memory = memory;
    this.receiving = new Transfer(memory, place.at, onStore);
    this.sending = new Transfer(memory, place.at + TRANSFER_LENGTH, onStore);
    this.requestAt = place.request;
    this.replyAt = place.reply;
    this.messageLength = Math.min(place.messageLength, MOVED_MASK);
    this.#words = new Uint32Array(memory.buffer, memory.byteOffset, memory.length / 4);
    this.#at = place.at;
    this.#onStore = onStore;
  }

  /** How often the message that has been received was begun to be carried out. */
  get attempts(): number {
    return this.#words[(this.#at + ATTEMPTS_AT) / 4]!;
  }

  set attempts(count: number) {
    this.#words[(this.#at + ATTEMPTS_AT) / 4] = count;
    this.#onStore();
  }

  /** Where the fds of the message are kept, by number. Noted before the message is taken from the socket. */
  get fds(): number[] {
    const count = Math.min(this.#words[(this.#at + FDS_AT) / 4]!, MAX_EXCHANGE_FDS);
    const first = (this.#at + FDS_AT) / 4 + 1;
    return [...this.#words.subarray(first, first + count)];
  }

  set fds(numbers: readonly number[]) {
    const at = (this.#at + FDS_AT) / 4;
    this.#words[at] = 0;
    this.#words.set(numbers, at + 1);
    this.#onStore();
    this.#words[at] = numbers.length;
    this.#onStore();
  }

  /** The message has been dealt with: on to the next. */
  advance(): void {
    if (this.#words[(this.#at + FDS_AT) / 4] !== 0) this.fds = [];
    if (this.attempts !== 0) this.attempts = 0;
    this.receiving.begin(this.receiving.sequence + 1);
  }

  /** A new connection: nothing has been received. What was answered before is of another number. */
  reset(): void {
    this.advance();
  }
}
