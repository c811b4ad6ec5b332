// SPDX-License-Identifier: Apache-2.0
/** Cuts a stream of chunks into elements of given lengths, copying only those that straddle chunks. */

/** First size of the buffer for elements that straddle chunks. */
const BUFFER_START = 4096;

/**
 * Usage: `expect` says how long the next element is, `start` gives a chunk, `next` returns elements until it
 * returns undefined, when the chunk is used up. The buffer doubles as bytes arrive: an element that claims a
 * great length and never comes costs nothing.
 */
export class ElementAssembler {
  #expected: number;
  #chunk: Uint8Array = new Uint8Array(0);
  #at = 0;
  #buffer: Uint8Array = new Uint8Array(BUFFER_START);
  #held = 0;

  /** @param expected length of the first element, in bytes */
  constructor(expected: number) {
    this.#expected = expected;
  }

  /** Bytes of the awaited element that have arrived. */
  get held(): number {
    return this.#held;
  }

  /** Bytes of the awaited element that have not. */
  get missing(): number {
    return this.#expected - this.#held;
  }

  /** Bytes of the chunk that no element has taken. */
  get rest(): number {
    return this.#chunk.length - this.#at;
  }

  /** Sets the length of the next element. Called after `next` returned one. */
  expect(length: number): void {
    this.#expected = length;
  }

  /** Gives the next chunk; the previous one must be used up. */
  start(chunk: Uint8Array): void {
    this.#chunk = chunk;
    this.#at = 0;
  }

  /** The awaited element, a view valid until the next call of `next`; undefined if it is not complete. */
  next(): Uint8Array | undefined {
    const from = this.#at;
    if (this.#held === 0 && this.rest >= this.#expected) {
      this.#at += this.#expected;
      return this.#chunk.subarray(from, this.#at);
    }
    const count = Math.min(this.missing, this.rest);
    this.#reserve(this.#held + count);
    this.#buffer.set(this.#chunk.subarray(from, from + count), this.#held);
    this.#at += count;
    this.#held += count;
    if (this.#held < this.#expected) {
      this.#chunk = this.#buffer.subarray(0, 0);
      this.#at = 0;
      return undefined;
    }
    this.#held = 0;
    return this.#buffer.subarray(0, this.#expected);
  }

  #reserve(length: number): void {
    if (length <= this.#buffer.length) return;
    let size = this.#buffer.length;
    while (size < length) size *= 2;
    const larger = new Uint8Array(size);
    larger.set(this.#buffer.subarray(0, this.#held));
    this.#buffer = larger;
  }
}
