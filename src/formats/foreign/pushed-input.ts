// SPDX-License-Identifier: Apache-2.0
/**
 * Bytes that are pushed in chunks of any size and read as if they lay in a file.
 *
 * A parser is a generator that reads with `yield*`; it is suspended wherever bytes are missing and resumed when more
 * were fed. So a format whose elements carry no lengths can be parsed top down, with nothing kept but what is peeked at.
 *
 *     input.feed(chunk); parser.next(); input.settle();   // for each chunk
 *     input.end(); parser.next();                         // reading on now throws StreamDefect
 */
import { StreamDefect } from './defect.js';

/** A parser, or a part of one, whose result is a `T`. */
export type Pull<T> = Generator<undefined, T, undefined>;

const NOTHING = Buffer.alloc(0);
const STORE_MIN = 1 << 16;

export class PushedInput {
  /** Offset of the first byte in the whole input. */
  readonly origin: number;
  /** Bytes that were fed and not read: `#window[#at…]`. */
  #window: Buffer = NOTHING;
  #at = 0;
  /** Memory of our own that the window lies in, unless it is the chunk that was fed last. */
  #store: Buffer = NOTHING;
  #stored = false;
  #fed = 0;
  #ended = false;
  #wanted = 1;

  constructor(origin: number) {
    this.origin = origin;
  }

  /** Offset of the next byte in the whole input. */
  get offset(): number {
    return this.origin + this.#fed - this.available;
  }

  /** Offset of the end of all that was fed. */
  get fedEnd(): number {
    return this.origin + this.#fed;
  }

  /** Bytes that can be read at once. */
  get available(): number {
    return this.#window.length - this.#at;
  }

  /** Bytes that are missing for what the parser waits for: feeding no more than these never runs ahead of it. */
  get wanted(): number {
    return this.#wanted;
  }

  /** Takes more bytes; they are used in place until {@link settle}. */
  feed(chunk: Uint8Array): void {
    this.#fed += chunk.length;
    const rest = this.available;
    if (rest === 0) {
      this.#window = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.length);
      this.#at = 0;
      this.#stored = false;
      return;
    }
    const end = this.#window.byteOffset + this.#window.length - this.#store.byteOffset;
    let start = end - rest;
    if (this.#store.length - end < chunk.length) {
      const needed = rest + chunk.length;
      const target =
        2 * needed <= this.#store.length
          ? this.#store
          : Buffer.allocUnsafeSlow(Math.max(STORE_MIN, 2 * needed));
      this.#window.copy(target, 0, this.#at);
      this.#store = target;
      start = 0;
    }
    this.#store.set(chunk, start + rest);
    this.#window = this.#store.subarray(start, start + rest + chunk.length);
    this.#at = 0;
  }

  /** Keeps what has not been read; the chunk that was fed last may be reused now. */
  settle(): void {
    const rest = this.available;
    if (rest === 0) {
      this.#window = NOTHING;
      this.#at = 0;
    }
    if (rest === 0 || this.#stored) return;
    if (this.#store.length < rest) this.#store = Buffer.allocUnsafeSlow(Math.max(STORE_MIN, 2 * rest));
    this.#window.copy(this.#store, 0, this.#at);
    this.#window = this.#store.subarray(0, rest);
    this.#at = 0;
    this.#stored = true;
  }

  /** Says that no more bytes come. */
  end(): void {
    this.#ended = true;
  }

  /** Suspends until `length` bytes can be read. StreamDefect if the input ends before. */
  *need(length: number): Pull<void> {
    while (this.available < length) {
      if (this.#ended)
        throw new StreamDefect('DEVSTATE_E_CONTENT_TRUNCATED', 'the stream stops', this.fedEnd);
      this.#wanted = length - this.available;
      yield;
    }
  }

  /** Suspends until `length` bytes can be read or the input has ended; how many can be read, up to `length`. */
  *reach(length: number): Pull<number> {
    while (this.available < length && !this.#ended) {
      this.#wanted = length - this.available;
      yield;
    }
    return Math.min(length, this.available);
  }

  /** The next bytes, that stay unread; valid until the next suspension. `length` has to be available. */
  view(length: number, from = 0): Buffer {
    return this.#window.subarray(this.#at + from, this.#at + from + length);
  }

  /** Reads the next bytes; valid until the next suspension. */
  *take(length: number): Pull<Buffer> {
    yield* this.need(length);
    const bytes = this.view(length);
    this.#at += length;
    return bytes;
  }

  /** Reads over the next bytes and gives them to `sink` as they come; nothing is kept. */
  *pass(length: number, sink?: (bytes: Uint8Array) => void): Pull<void> {
    let left = length;
    for (;;) {
      const here = Math.min(left, this.available);
      if (here > 0) {
        sink?.(this.view(here));
        this.#at += here;
        left -= here;
      }
      if (left === 0) return;
      yield* this.need(1);
    }
  }

  /** Reads over bytes that are available. */
  skip(length: number): void {
    this.#at += length;
  }

  // Reading numbers that are available: after need().

  u8(): number {
    return this.#window[this.#at++]!;
  }

  u16(): number {
    this.#at += 2;
    return this.#window.readUInt16BE(this.#at - 2);
  }

  u32(): number {
    this.#at += 4;
    return this.#window.readUInt32BE(this.#at - 4);
  }

  /** Exact below 2^53. */
  u64(): number {
    const high = this.u32();
    return high * 2 ** 32 + this.u32();
  }

  /** A text that follows its length in one byte. */
  *countedText(): Pull<string> {
    yield* this.need(1);
    const bytes = yield* this.take(this.u8());
    return bytes.toString('utf8');
  }
}
