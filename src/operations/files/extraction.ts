// SPDX-License-Identifier: Apache-2.0
/** A directory that takes what inspection finds inside a file. */

import { closeSync, mkdirSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { DevstateError } from '../../errors.js';
import type { Extraction } from '../../formats/index.js';
import { whySystem } from '../../native/index.js';
import { endOfLink } from './target.js';

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
    this.#try(() => makeDirectory(directory));
  }

  /** @throws DEVSTATE_E_OUTPUT, as do the functions that it returns */
  begin(wanted: string): { write(bytes: Uint8Array): void; end(): void } {
    const { name, fd } = this.#create(wanted);
    const file = { name, size: 0 };
    this.files.push(file);
    return {
      write: (bytes) => {
        file.size += bytes.length;
        this.#try(() => {
          for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at);
        });
      },
      end: () => closeSync(fd),
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

/** For this user only, if it is not there. A link is followed under the rules for files that are written. */
function makeDirectory(path: string): void {
  mkdirSync(endOfLink(path.replace(/(?<=.)\/+$/, '')), { recursive: true, mode: 0o700 });
}
