// SPDX-License-Identifier: Apache-2.0
/** Files and stdout to write to. A file appears under its name only when it is whole and on disk. */

import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { DevstateError } from '../../errors.js';
import { whySystem } from '../../native/index.js';
import { delay, unlessAborted } from '../waiting.js';
import { NewFile } from './new-file.js';
import { findTarget, requireUnchanged, type Target, type TargetOptions } from './target.js';

/** Bytes gathered before they are written. */
const BUFFER_LENGTH = 1024 * 1024;
/** How often a pipe is tried that is full, or has no reader yet, ms. */
const TRY_AGAIN_MS = 10;

/**
 * Takes bytes with `write`, which copies them and never waits; `flush` writes what has gathered, so call it often enough.
 * Either `finish` or `discard` ends it.
 */
export class OutputFile {
  readonly #path: string;
  /** The file that appears when it is whole; undefined for an output that is written in place. */
  readonly #file: NewFile | undefined;
  readonly #replacing: { readonly target: Target; readonly options: TargetOptions } | undefined;
  readonly #handle: FileHandle | undefined;
  /** Ends the waiting for a reader that stands still. */
  readonly #signal: AbortSignal | undefined;
  #current: Uint8Array = new Uint8Array(BUFFER_LENGTH);
  #used = 0;
  readonly #full: Uint8Array[] = [];
  readonly #spare: Uint8Array[] = [];
  #writing: Promise<void> | undefined;
  /** Bytes taken. */
  bytes = 0;

  private constructor(
    path: string,
    signal: AbortSignal | undefined,
    handle?: FileHandle,
    file?: NewFile,
    replacing?: { target: Target; options: TargetOptions },
  ) {
    this.#path = path;
    this.#signal = signal;
    this.#handle = handle;
    this.#file = file;
    this.#replacing = replacing;
  }

  /**
   * @param path a file, replaced at the end if it is there and may be; `-` for stdout
   * @param warn told what `force` destroys
   * @param signal ends the waiting for a reader of a pipe or of stdout, by its reason
   * @throws DEVSTATE_E_OUTPUT; then nothing has been touched
   */
  static async create(
    path: string,
    options: TargetOptions = { written: 'blob' },
    warn: (message: string) => void = () => {},
    signal?: AbortSignal,
  ): Promise<OutputFile> {
    if (path === '-') return new OutputFile(path, signal);
    const target = findTarget(path, options);
    for (const warning of target.warnings) warn(warning);
    try {
      if (target.kind === 'stdout') return new OutputFile('-', signal);
      if (target.kind === 'stream') return new OutputFile(path, signal, await openStream(target, signal));
      const file = await NewFile.create(target.path);
      return new OutputFile(target.path, signal, file.handle, file, { target, options });
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
    // Looked at by the next call: until then no one handles its failure.
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
        const handle = this.#handle;
        if (handle === undefined) await writeToStdout(buffer, this.#signal);
        else for (let at = 0; at < buffer.length; ) at += await this.#write(handle, buffer.subarray(at));
      }
    } catch (cause) {
      throw unwritable(this.#path, cause);
    }
  }

  /** Bytes that were written; 0 after a while in which a pipe was full. */
  async #write(handle: FileHandle, bytes: Uint8Array): Promise<number> {
    this.#signal?.throwIfAborted();
    try {
      return (await handle.write(bytes)).bytesWritten;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
    }
    await delay(TRY_AGAIN_MS);
    return 0;
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

/**
 * A pipe, a terminal or a device. One that a file system or the kernel uses is never taken (O_EXCL). A pipe's reader may
 * come later, and stand still: nothing waits for it in the kernel, where no signal could end that.
 */
async function openStream({ path, before }: Target, signal: AbortSignal | undefined): Promise<FileHandle> {
  const { O_WRONLY, O_NONBLOCK, O_EXCL } = constants;
  const flags = O_WRONLY | O_NONBLOCK | (before?.isBlockDevice() === true ? O_EXCL : 0);
  for (;;) {
    signal?.throwIfAborted();
    try {
      return await open(path, flags);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENXIO' || before?.isFIFO() !== true) throw error;
    }
    await delay(TRY_AGAIN_MS);
  }
}

export interface WithOutputOptions extends TargetOptions {
  /** Told what `force` destroys, a sentence each. */
  readonly warn?: ((message: string) => void) | undefined;
  /** Ends the waiting for a reader of a pipe or of stdout. */
  readonly signal?: AbortSignal | undefined;
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
  const output = await OutputFile.create(path, options, options.warn, options.signal);
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

async function writeToStdout(bytes: Uint8Array, signal: AbortSignal | undefined): Promise<void> {
  const written = new Promise<void>((resolve, reject) => {
    process.stdout.write(bytes, (error) => (error == null ? resolve() : reject(error)));
  });
  await unlessAborted(written, signal);
}

function unwritable(path: string, cause: unknown): DevstateError {
  if (cause instanceof DevstateError && cause.code === 'DEVSTATE_E_OUTPUT') return cause;
  const what = `cannot write ${path === '-' ? 'to stdout' : path}`;
  return new DevstateError('DEVSTATE_E_OUTPUT', `${what}: ${whySystem(cause)}`, { cause });
}
