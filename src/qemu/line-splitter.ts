// SPDX-License-Identifier: Apache-2.0
/** Cuts a byte stream into lines of bounded length. Both QMP and qtest are line protocols. */
import type { Readable } from 'node:stream';

const NEWLINE = 0x0a;

/**
 * Lines of what is {@link push}ed, handed to {@link onLine} without their end (`\n` or `\r\n`), as they come.
 * A line longer than `maxBytes` is not kept: {@link onOverflow} is called and nothing more is read.
 */
export class LineSplitter {
  onLine: (line: string) => void = () => {};
  onOverflow: () => void = () => {};
  readonly #maxBytes: number;
  #parts: Buffer[] = [];
  #length = 0;
  #overflown = false;

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

  /** The lines of a stream. */
  static of(stream: Readable, maxBytes: number): LineSplitter {
    const lines = new LineSplitter(maxBytes);
    stream.on('data', (chunk: Buffer) => lines.push(chunk));
    return lines;
  }

  /** Takes bytes, which must not be changed any more. */
  push(chunk: Buffer): void {
    let start = 0;
    while (!this.#overflown) {
      const end = chunk.indexOf(NEWLINE, start);
      if (end < 0) {
        this.#keep(chunk.subarray(start));
        return;
      }
      this.#keep(chunk.subarray(start, end));
      start = end + 1;
      if (!this.#overflown) this.#emit();
    }
  }

  #keep(part: Buffer): void {
    this.#length += part.length;
    if (this.#length <= this.#maxBytes) {
      if (part.length > 0) this.#parts.push(part);
      return;
    }
    this.#overflown = true;
    this.#parts = [];
    this.onOverflow();
  }

  #emit(): void {
    const line = Buffer.concat(this.#parts).toString('utf8');
    this.#parts = [];
    this.#length = 0;
    this.onLine(line.endsWith('\r') ? line.slice(0, -1) : line);
  }
}
