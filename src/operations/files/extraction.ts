// SPDX-License-Identifier: Apache-2.0
/** A directory that takes what inspection finds inside a file. */

import { closeSync, fsyncSync, mkdirSync, openSync, rmSync, statSync, writeSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { endOfLink } from '../../end-of-link.js';
import { DevstateError } from '../../errors.js';
import type { Extraction } from '../../formats/index.js';
import { whySystem } from '../../native/index.js';

/** A file that was written. */
export interface ExtractedFile {
  /** Its name in the directory. */
  readonly name: string;
  /** Bytes. */
  size: number;
}

/** Characters of a name, so that a number fits behind it. */
const NAME_LENGTH_MAX = 200;

/** Writes each piece to a file of its own; never over one that is there. */
export class DirectoryExtraction implements Extraction {
  readonly files: ExtractedFile[] = [];
  readonly #directory: string;

  /** @throws DEVSTATE_E_OUTPUT when the directory cannot be made */
  constructor(directory: string) {
    this.#directory = directory;
    // A link is followed under the rules for files that are written.
    this.#try(() => makeDirectory(endOfLink(directory.replace(/(?<=.)\/+$/, ''))));
  }

  /** @throws DEVSTATE_E_OUTPUT, as do the functions that it returns */
  begin(wanted: string): { write(bytes: Uint8Array): void; end(): void } {
    const { name, fd } = this.#create(wanted);
    const file = { name, size: 0 };
    this.files.push(file);
    const whole = (work: () => void): void => {
      try {
        work();
      } catch (cause) {
        // A part of it would look like the whole.
        closeSync(fd);
        rmSync(join(this.#directory, name), { force: true });
        throw this.#error(cause);
      }
    };
    return {
      write: (bytes) => {
        file.size += bytes.length;
        whole(() => {
          for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at);
        });
      },
      end: () => {
        // Only now some disks, and file servers, say that they have no room for it.
        whole(() => fsyncSync(fd));
        this.#try(() => closeSync(fd));
      },
    };
  }

  #create(wanted: string): { name: string; fd: number } {
    // What is found inside a file has no say in where it is written.
    const clean = wanted.replaceAll(/[^A-Za-z0-9._-]/g, '_').replace(/^\.+/, '_');
    const safe = clean.slice(0, NAME_LENGTH_MAX) || '_';
    for (let number = 1; ; number++) {
      const name = number === 1 ? safe : `${safe}.${number}`;
      try {
        return { name, fd: openSync(join(this.#directory, name), 'wx', 0o600) };
      } catch (cause) {
        if ((cause as NodeJS.ErrnoException).code !== 'EEXIST') throw this.#error(cause);
      }
    }
  }

  #try(work: () => void): void {
    try {
      work();
    } catch (cause) {
      throw this.#error(cause);
    }
  }

  #error(cause: unknown): DevstateError {
    const what = `cannot write to ${this.#directory}`;
    return new DevstateError('DEVSTATE_E_OUTPUT', `${what}: ${whySystem(cause)}`, { cause });
  }
}

/** For this user only, if it is not there. In place of the recursive mkdir of Node.js, which says ENOENT for many an errno. */
function makeDirectory(path: string): void {
  const mode = 0o700;
  try {
    mkdirSync(path, { mode });
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'EEXIST' && statSync(path).isDirectory()) return;
    if (code !== 'ENOENT' || dirname(path) === path) throw error;
    makeDirectory(dirname(path));
    mkdirSync(path, { mode });
  }
}
