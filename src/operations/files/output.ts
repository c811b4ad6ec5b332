// SPDX-License-Identifier: Apache-2.0
/** Files and stdout to write to. A file appears under its name only when it is whole and on disk. */

import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { DevstateError } from '../../errors.js';
import { whySystem } from '../../native/index.js';
import { NewFile } from './new-file.js';
import { findTarget, requireUnchanged, type Target, type TargetOptions } from './target.js';

/** Bytes gathered before they are written. */
const BUFFER_LENGTH = 1024 * 1024;

/**
 * Takes bytes with `write`, which copies them and never waits; `flush` writes what has gathered, so call it often enough.
 * Either `finish` or `discard` ends it.
 */
export class OutputFile {
  readonly #path: string;
  /** Of a file that appears when it is whole; undefined of what is written in place. */
  readonly #file: NewFile | undefined;
  readonly #replacing: { readonly target: Target; readonly options: TargetOptions } | undefined;
  readonly #handle: FileHandle | undefined;
  #current: Uint8Array = new Uint8Array(BUFFER_LENGTH);
  #used = 0;
  readonly #full: Uint8Array[] = [];
  readonly #spare: Uint8Array[] = [];
  #writing: Promise<void> | undefined;
  /** Bytes taken. */
  bytes = 0;

  private constructor(
    path: string,
    handle?: FileHandle,
    file?: NewFile,
    replacing?: { target: Target; options: TargetOptions },
  ) {
    this.#path = path;
    this.#handle = handle;
    this.#file = file;
    this.#replacing = replacing;
  }

  /**
   * @param path a file, replaced at the end if it is there and may be; `-` for stdout
   * @param warn told what `force` destroys
   * @throws DEVSTATE_E_OUTPUT; then nothing has been touched
   */
  static async create(
    path: string,
    options: TargetOptions = { written: 'blob' },
    warn: (message: string) => void = () => {},
  ): Promise<OutputFile> {
    if (path === '-') return new OutputFile(path);
    const target = findTarget(path, options);
    for (const warning of target.warnings) warn(warning);
    try {
      if (target.kind === 'stdout') return new OutputFile('-');
      if (target.kind === 'stream') return new OutputFile(path, await openStream(target));
      const file = await NewFile.create(target.path);
      return new OutputFile(target.path, file.handle, file, { target, options });
    } catch (cause) {
      throw unwritable(path, cause);
    }
  }

  /** Whether nothing of it is left after `discard`: not where bytes go out as they are written. */
  get canDiscard(): boolean {
    return this.#file !== undefined;
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
    if (this.#file !== undefined) await this.#file.discard();
    else await this.#handle?.close().catch(() => {});
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
      if (this.#file === undefined || this.#replacing === undefined) return await handle.close();
      const { target, options } = this.#replacing;
      requireUnchanged(target, options);
      await this.#file.publish(target.kind === 'replace');
    } catch (cause) {
      throw unwritable(this.#path, cause);
    }
  }
}

/** A pipe, a terminal or a device. One that a file system or the kernel uses is never taken (O_EXCL). */
function openStream({ path, before }: Target): Promise<FileHandle> {
  const { O_WRONLY, O_EXCL } = constants;
  return open(path, O_WRONLY | (before?.isBlockDevice() === true ? O_EXCL : 0));
}

export interface WithOutputOptions extends TargetOptions {
  /** Told what `force` destroys, a sentence each. */
  readonly warn?: ((message: string) => void) | undefined;
}

/**
 * Opens, works, and keeps what was written only if that succeeded.
 * @param options default: a blob is written, so that no other kind of file is replaced
 * @returns what `work` does
 */
export async function withOutput<T>(
  path: string,
  work: (output: OutputFile) => Promise<T>,
  options: WithOutputOptions = { written: 'blob' },
): Promise<T> {
  const output = await OutputFile.create(path, options, options.warn);
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
  if (cause instanceof DevstateError && cause.code === 'DEVSTATE_E_OUTPUT') return cause;
  const what = `cannot write ${path === '-' ? 'to stdout' : path}`;
  return new DevstateError('DEVSTATE_E_OUTPUT', `${what}: ${whySystem(cause)}`, { cause });
}
