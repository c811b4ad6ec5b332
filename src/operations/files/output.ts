// SPDX-License-Identifier: Apache-2.0
/** Files and stdout to write to. A file appears under its name only when it is whole and on disk. */

import { type FileHandle, open, realpath, rename, rm, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { DevstateError } from '../../errors.js';

/** Bytes gathered before they are written. */
const BUFFER_LENGTH = 1024 * 1024;

/**
 * Takes bytes with `write`, which copies them and never waits; `flush` writes what has gathered, so call it often enough.
 * Either `finish` or `discard` ends it.
 */
export class OutputFile {
  readonly #path: string;
  /** What it is called until it is whole; undefined of what is written in place. */
  readonly #partial: string | undefined;
  readonly #handle: FileHandle | undefined;
  #current: Uint8Array = new Uint8Array(BUFFER_LENGTH);
  #used = 0;
  readonly #full: Uint8Array[] = [];
  readonly #spare: Uint8Array[] = [];
  #writing: Promise<void> | undefined;
  /** Bytes taken. */
  bytes = 0;

  private constructor(path: string, partial: string | undefined, handle: FileHandle | undefined) {
    this.#path = path;
    this.#partial = partial;
    this.#handle = handle;
  }

  /** @param path a file, replaced at the end if it is there; `-` for stdout @throws DEVSTATE_E_OUTPUT */
  static async create(path: string): Promise<OutputFile> {
    if (path === '-') return new OutputFile(path, undefined, undefined);
    try {
      const there = await stat(path).catch(() => undefined);
      // What a link leads to is replaced, not the link: /dev/stdout is one.
      const target = there === undefined ? path : await realpath(path).catch(() => undefined);
      // A pipe or a device is written to; only a file can be replaced.
      if (target === undefined || there?.isFile() === false) {
        return new OutputFile(path, undefined, await open(path, 'w', 0o600));
      }
      const partial = `${target}.partial-${process.pid}`;
      return new OutputFile(target, partial, await open(partial, 'w', 0o600));
    } catch (cause) {
      throw unwritable(path, cause);
    }
  }

  write(bytes: Uint8Array): void {
    this.bytes += bytes.length;
    for (let at = 0; at < bytes.length; ) {
      const count = Math.min(bytes.length - at, this.#current.length - this.#used);
      this.#current.set(bytes.subarray(at, at + count), this.#used);
      this.#used += count;
      at += count;
      if (this.#used === this.#current.length) this.#rotate();
    }
  }

  /** Begins to write what is full; waits for what was begun by the last call. @throws DEVSTATE_E_OUTPUT */
  async flush(): Promise<void> {
    await this.#writing;
    if (this.#full.length === 0) return;
    const buffers = this.#full.splice(0);
    this.#writing = this.#writeOut(buffers).then(() => {
      this.#spare.push(...buffers.slice(0, 2));
    });
    // Looked at by the next call: until then its failure is nobody's.
    this.#writing.catch(() => {});
  }

  /** All has been taken: it is on disk when this resolves. @throws DEVSTATE_E_OUTPUT; nothing is left then */
  async finish(): Promise<void> {
    try {
      this.#rotate();
      await this.flush();
      await this.#writing;
      if (this.#handle === undefined) return;
      await this.#sync(this.#handle);
    } catch (error) {
      await this.discard();
      throw error;
    }
  }

  /** Nothing of it is to be left. */
  async discard(): Promise<void> {
    await this.#writing?.catch(() => {});
    if (this.#handle === undefined) return;
    await this.#handle.close().catch(() => {});
    if (this.#partial !== undefined) await rm(this.#partial, { force: true }).catch(() => {});
  }

  #rotate(): void {
    this.#full.push(this.#current.subarray(0, this.#used));
    const spare = this.#spare.pop();
    this.#current = spare?.length === BUFFER_LENGTH ? spare : new Uint8Array(BUFFER_LENGTH);
    this.#used = 0;
  }

  async #writeOut(buffers: readonly Uint8Array[]): Promise<void> {
    try {
      for (const buffer of buffers) {
        if (this.#handle === undefined) await writeToStdout(buffer);
        else for (let at = 0; at < buffer.length; ) at += (await this.#handle.write(buffer, at)).bytesWritten;
      }
    } catch (cause) {
      throw unwritable(this.#path, cause);
    }
  }

  async #sync(handle: FileHandle): Promise<void> {
    try {
      if (this.#partial === undefined) return await handle.close();
      await handle.sync();
      await handle.close();
      await rename(this.#partial, this.#path);
      const directory = await open(dirname(this.#path), 'r');
      await directory.sync().finally(() => directory.close());
    } catch (cause) {
      throw unwritable(this.#path, cause);
    }
  }
}

/** Opens, works, and keeps what was written only if that succeeded. @returns what `work` does */
export async function withOutput<T>(path: string, work: (output: OutputFile) => Promise<T>): Promise<T> {
  const output = await OutputFile.create(path);
  let result: T;
  try {
    result = await work(output);
  } catch (error) {
    await output.discard();
    throw error;
  }
  await output.finish();
  return result;
}

function writeToStdout(bytes: Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => {
    process.stdout.write(bytes, (error) => (error == null ? resolve() : reject(error)));
  });
}

function unwritable(path: string, cause: unknown): DevstateError {
  const why = cause instanceof Error ? cause.message : String(cause);
  return new DevstateError('DEVSTATE_E_OUTPUT', `cannot write ${path === '-' ? 'to stdout' : path}: ${why}`, {
    cause,
  });
}
