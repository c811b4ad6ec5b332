// SPDX-License-Identifier: Apache-2.0
/**
 * Takes the place of Node.js's `process.stderr`; imported before everything else. Node's own writes to a terminal wait for it,
 * and merely looking at it makes a pipe or socket non-blocking for every process that has it. Commander, warnings and others
 * that write to `process.stderr` so do as we do (see stderr.ts).
 */

import { Writable } from 'node:stream';
import { isatty, WriteStream } from 'node:tty';
import { writeStderr } from './stderr.js';

class Stderr extends Writable {
  readonly fd = 2;
  readonly isTTY = isatty(2);
  #terminal: WriteStream | undefined;

  override _write(chunk: Buffer, _encoding: BufferEncoding, callback: () => void): void {
    writeStderr(chunk.toString());
    callback();
  }

  /** To ask for its size and colours only. */
  get #asTerminal(): WriteStream | undefined {
    if (this.isTTY) this.#terminal ??= new WriteStream(2);
    return this.#terminal;
  }

  get columns(): number | undefined {
    return this.#asTerminal?.columns;
  }

  getColorDepth(environment?: object): number {
    return this.#asTerminal?.getColorDepth(environment) ?? 1;
  }

  hasColors(...args: Parameters<WriteStream['hasColors']>): boolean {
    return this.#asTerminal?.hasColors(...args) ?? false;
  }
}

const stderr = new Stderr();
Object.defineProperty(process, 'stderr', { configurable: true, enumerable: true, get: () => stderr });
