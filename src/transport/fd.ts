// SPDX-License-Identifier: Apache-2.0
/** Ownership of file descriptors: each open one belongs to exactly one {@link Fd}, which closes it. */

import { DevstateError } from '../errors.js';
import { native } from '../native/index.js';

/** Closes what was forgotten. It is a bug of the owner, so it is said aloud. */
const forgotten = new FinalizationRegistry<number>((number) => {
  native.closeLater(number, 0);
  process.emitWarning(`file descriptor ${number} was not closed by its owner`, 'DevstateFdLeak');
});

let lastGroup = 0;

/** A number for what one peer passes, see {@link Fd}. */
export function peerGroup(): number {
  lastGroup = (lastGroup % 0xffff_ffff) + 1;
  return lastGroup;
}

/**
 * The owner of one file descriptor.
 *
 * One that a peer passed, or whose queue a peer fills with fds, is made with a {@link peerGroup}: closing it may block for
 * as long as the peer likes, so it happens on another thread, soon. Others are closed by the time that `close` returns.
 */
export class Fd {
  #number: number;
  /** Undefined for one that this process opened. */
  readonly #group: number | undefined;

  /** Becomes the owner of `number`, which nothing else may close from now on. */
  constructor(number: number, group?: number) {
    this.#number = number;
    this.#group = group;
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

  /** Moves a connected socket to a new owner, with a {@link peerGroup} for it and for what comes through it. */
  takeConnection(): { readonly fd: Fd; readonly group: number } {
    const group = this.#group ?? peerGroup();
    return { fd: new Fd(this.release(), group), group };
  }

  get isOpen(): boolean {
    return this.#number >= 0;
  }

  /** Moves the ownership to a new object; this one is closed afterwards. */
  take(): Fd {
    return new Fd(this.release(), this.#group);
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
    return new Fd(number, this.#group);
  }

  /** Closes it; nothing happens when it is closed or taken already. */
  close(): void {
    if (this.#number < 0) return;
    if (this.#group === undefined) native.close(this.release());
    else native.closeLater(this.release(), this.#group);
  }
}

/** Becomes the owner of the fds of a message, `[count, 1 if some were lost, fds...]`. */
export function receivedFds(received: Int32Array, group: number): Fd[] {
  return Array.from(received.subarray(2, 2 + received[0]!), (number) => new Fd(number, group));
}

/** Closes those that are still open. */
export function closeAll(fds: Iterable<Fd>): void {
  for (const fd of fds) fd.close();
}
