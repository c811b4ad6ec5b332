// SPDX-License-Identifier: Apache-2.0
/** The first bytes of a stream, before it is decided who reads it. */

/** Takes bytes from the beginning, and gives the rest in pieces. */
export class PeekedStream {
  readonly #chunks: AsyncIterator<Uint8Array>;
  #held: Buffer = Buffer.alloc(0);
  #ended = false;

  constructor(chunks: AsyncIterable<Uint8Array>) {
    this.#chunks = chunks[Symbol.asyncIterator]();
  }

  /** The first `length` bytes of what is left, fewer at the end; they stay. */
  async peek(length: number): Promise<Buffer> {
    const parts: Uint8Array[] = [this.#held];
    let total = this.#held.length;
    while (total < length && !this.#ended) {
      const { value, done } = await this.#chunks.next();
      if (done === true) this.#ended = true;
      else {
        // It is valid until the next is asked for.
        parts.push(Buffer.from(value));
        total += value.length;
      }
    }
    if (parts.length > 1) this.#held = Buffer.concat(parts);
    return this.#held.subarray(0, length);
  }

  /** As `peek`, and they are gone. */
  async take(length: number): Promise<Buffer> {
    const taken = await this.peek(length);
    this.#held = this.#held.subarray(taken.length);
    return taken;
  }

  /** What is left. */
  async *rest(): AsyncGenerator<Uint8Array> {
    try {
      if (this.#held.length > 0) yield this.#held;
      this.#held = Buffer.alloc(0);
      while (!this.#ended) {
        const { value, done } = await this.#chunks.next();
        if (done === true) this.#ended = true;
        else yield value;
      }
    } finally {
      await this.#chunks.return?.();
    }
  }
}
