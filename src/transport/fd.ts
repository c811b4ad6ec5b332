// SPDX-License-Identifier: Apache-2.0
/** Ownership of file descriptors: each open one belongs to exactly one {@link Fd}, which closes it. */

import { DevstateError } from '../errors.js';
import { native } from '../native/index.js';

/** Closes what was forgotten. It is a bug of the owner, so it is said aloud. */
const forgotten = new FinalizationRegistry<number>((number) => {
  native.close(number);
  process.emitWarning(`file descriptor ${number} was not closed by its owner`, 'DevstateFdLeak');
});

/** The owner of one file descriptor. */
export class Fd {
  #number: number;

  /** Becomes the owner of `number`, which nothing else may close from now on. */
  constructor(number: number) {
    this.#number = number;
    forgotten.register(this, number, this);
  }

  /**
   * The number, for a call made right away.
   * @throws DEVSTATE_E_FD_CLOSED after {@link close} or {@link take}.
   */
  get number(): number {
    if (this.#number < 0) {
      throw new DevstateError(
        'DEVSTATE_E_FD_CLOSED',
        'the file descriptor was closed or taken by another owner',
      );
    }
    return this.#number;
  }

  get isOpen(): boolean {
    return this.#number >= 0;
  }

  /** Moves the ownership to a new object; this one is closed afterwards. */
  take(): Fd {
    return new Fd(this.release());
  }

  /** Gives the ownership up: the caller must close the number it gets. */
  release(): number {
    const number = this.number;
    this.#number = -1;
    forgotten.unregister(this);
    return number;
  }

  /** A second owner of the same open file. Throws DEVSTATE_E_SYSTEM when there are too many open files. */
  duplicate(): Fd {
    const number = native.duplicate(this.number);
    if (number < 0) {
      throw new DevstateError(
        'DEVSTATE_E_SYSTEM',
        'cannot duplicate a file descriptor; raise the limit of open files',
        {
          errno: -number,
        },
      );
    }
    return new Fd(number);
  }

  /** Closes it; nothing happens when it is closed or taken already. */
  close(): void {
    if (this.#number >= 0) native.close(this.release());
  }
}

/** Closes those that are still open. */
export function closeAll(fds: Iterable<Fd>): void {
  for (const fd of fds) fd.close();
}
