// SPDX-License-Identifier: Apache-2.0
/** Files and stdin as streams of bytes, read ahead while the last piece is worked on. */

import { readSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { DevstateError } from '../../errors.js';
import type { ContentFile } from '../../formats/index.js';
import { whySystem } from '../../native/index.js';
import { openScratch } from './new-file.js';
import { explained } from './wrong-file.js';

/** Bytes kept of the beginning of a pipe. */
const HEAD_LENGTH = 128 * 1024;
/** Bytes read at a time. */
const READ_LENGTH = 1024 * 1024;

/** Called with how many bytes have been read, and of how many; undefined if that is unknown. May throw, to end the reading. */
export type ReadProgress = (done: number, total: number | undefined) => void;

/** Something that is read from its beginning to its end, any number of times unless it is a pipe. */
export class InputFile {
  /** As the user named it. */
  readonly path: string;
  readonly #handle: FileHandle | undefined;
  /** Bytes; undefined of what has no length: a pipe, stdin. */
  readonly size: number | undefined;
  /** The first bytes of a pipe, kept. */
  #head: Uint8Array = new Uint8Array(0);

  private constructor(path: string, handle: FileHandle | undefined, size: number | undefined) {
    this.path = path;
    this.#handle = handle;
    this.size = size;
  }

  /** @param path a file; `-` for stdin @throws DEVSTATE_E_INPUT */
  static async open(path: string): Promise<InputFile> {
    if (path === '-') return new InputFile(path, undefined, undefined);
    const handle = await open(path, 'r').catch((cause: unknown) => {
      throw unreadable(path, cause);
    });
    const status = await handle.stat();
    return new InputFile(path, handle, status.isFile() ? status.size : undefined);
  }

  /** The bytes of a pipe in a file that goes when it is closed. @throws DEVSTATE_E_INPUT, DEVSTATE_E_OUTPUT */
  static async copyOf(input: InputFile): Promise<InputFile> {
    const directory = tmpdir();
    const failed = (cause: unknown): never => {
      const what = `cannot copy ${input.path} to a temporary file in ${directory}`;
      throw new DevstateError('DEVSTATE_E_OUTPUT', `${what}: ${whySystem(cause)}; or set TMPDIR`, { cause });
    };
    const handle = await openScratch(directory).catch(failed);
    let size = 0;
    try {
      for await (const chunk of input.chunks()) {
        for (let at = 0; at < chunk.length; )
          at += (await handle.write(chunk, at).catch(failed)).bytesWritten;
        size += chunk.length;
      }
      return new InputFile(input.path, handle, size);
    } catch (error) {
      await handle.close();
      throw error;
    }
  }

  /** The first bytes: of a pipe as far as its first piece has them, once that was read. @throws DEVSTATE_E_INPUT */
  head(length: number): Uint8Array {
    return this.size === undefined ? this.#head.subarray(0, length) : this.bytesAt(0, length);
  }

  /** The file for those who look at its end before its beginning; undefined of what has no length. */
  get content(): ContentFile | undefined {
    const { size } = this;
    if (size === undefined) return undefined;
    return { size, read: (offset, length) => this.bytesAt(offset, length) };
  }

  /** Bytes of a file, fewer at its end. @throws DEVSTATE_E_INPUT */
  bytesAt(offset: number, length: number): Uint8Array {
    if (this.#handle === undefined) throw new DevstateError('DEVSTATE_E_INTERNAL', 'stdin has no offsets');
    const bytes = new Uint8Array(length);
    let done = 0;
    try {
      while (done < length) {
        const count = readSync(this.#handle.fd, bytes, done, length - done, offset + done);
        if (count === 0) break;
        done += count;
      }
    } catch (cause) {
      throw unreadable(this.path, cause);
    }
    return bytes.subarray(0, done);
  }

  /** All bytes from the beginning. A piece is valid until the next one is asked for. @throws DEVSTATE_E_INPUT */
  async *chunks(progress?: ReadProgress): AsyncGenerator<Uint8Array> {
    let done = 0;
    for await (const chunk of this.#handle === undefined ? stdinPieces() : this.#pieces(this.#handle)) {
      if (done === 0 && this.size === undefined) this.#head = new Uint8Array(chunk.subarray(0, HEAD_LENGTH));
      yield chunk;
      done += chunk.length;
      progress?.(done, this.size);
    }
  }

  /** Reads into one buffer while the other is in use. */
  async *#pieces(handle: FileHandle): AsyncGenerator<Uint8Array> {
    let offset = 0;
    // A pipe has no offsets; a file may be read more than once.
    const seekable = this.size !== undefined;
    const next = async (buffer: Uint8Array): Promise<Uint8Array> => {
      const { bytesRead } = await handle
        .read(buffer, 0, buffer.length, seekable ? offset : null)
        .catch((cause: unknown) => {
          throw unreadable(this.path, cause);
        });
      offset += bytesRead;
      return buffer.subarray(0, bytesRead);
    };
    let [busy, free] = [new Uint8Array(READ_LENGTH), new Uint8Array(READ_LENGTH)];
    let reading = next(busy);
    try {
      for (;;) {
        const piece = await reading;
        if (piece.length === 0) return;
        reading = next(free);
        [busy, free] = [free, busy];
        yield piece;
      }
    } finally {
      // The file must not be closed under a read, nor may a failure of it stay unhandled.
      await reading.catch(() => {});
    }
  }

  async close(): Promise<void> {
    await this.#handle?.close();
  }
}

/** Opens, works, closes. */
export async function withInput<T>(path: string, work: (input: InputFile) => Promise<T>): Promise<T> {
  const input = await InputFile.open(path);
  try {
    return await work(input);
  } catch (error) {
    throw explained(error, input);
  } finally {
    await input.close();
  }
}

/** As `withInput`, for work that reads a pipe more than once: it is copied to a temporary file first. */
export async function withRereadable<T>(path: string, work: (input: InputFile) => Promise<T>): Promise<T> {
  return withInput(path, async (input) => {
    if (input.size !== undefined) return await work(input);
    const copy = await InputFile.copyOf(input);
    try {
      return await work(copy);
    } finally {
      await copy.close();
    }
  });
}

async function* stdinPieces(): AsyncGenerator<Uint8Array> {
  try {
    yield* process.stdin;
  } catch (cause) {
    if (cause instanceof DevstateError) throw cause;
    throw unreadable('stdin', cause);
  }
}

function unreadable(path: string, cause: unknown): DevstateError {
  return new DevstateError('DEVSTATE_E_INPUT', `cannot read ${path}: ${whySystem(cause)}`, { cause });
}
