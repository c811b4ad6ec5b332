// SPDX-License-Identifier: Apache-2.0
/**
 * Bounds the fds of one peer that are being closed: the peer decides how long a close takes, and each holds a number
 * meanwhile. While there are too many, nothing more is received from it.
 */

import { DevstateError } from '../errors.js';
import { native } from '../native/index.js';

/** Closes of one peer's fds that may be under way. */
const MAX_CLOSING = 64;
/** Closes of the fds of all peers together that may be under way. */
export const MAX_CLOSING_OF_ALL = 256;
/** How often to look whether closes have returned. */
const LOOK_MS = 5;
/** After this time without progress below the bound the connection is closed. */
const PATIENCE_MS = 10_000;

export class CloseGate {
  readonly #group: number;
  readonly #opened: () => void;
  readonly #stuck: (error: DevstateError) => void;
  #timer: NodeJS.Timeout | undefined;

  /**
   * @param group of the peer's fds
   * @param opened called when enough closes have returned to receive again
   * @param stuck called when they do not return
   */
  constructor(group: number, opened: () => void, stuck: (error: DevstateError) => void) {
    this.#group = group;
    this.#opened = opened;
    this.#stuck = stuck;
  }

  /** Whether to receive nothing for now. */
  get isShut(): boolean {
    return this.#timer !== undefined;
  }

  get #tooMany(): boolean {
    return native.closing(this.#group) > MAX_CLOSING || native.closing() > MAX_CLOSING_OF_ALL;
  }

  /** Shuts the gate when too many closes are under way. Call after fds of the peer were closed. */
  check(): void {
    if (this.isShut || !this.#tooMany) return;
    const since = performance.now();
    this.#timer = setInterval(() => {
      const isStuck = this.#tooMany;
      if (isStuck && performance.now() - since < PATIENCE_MS) return;
      this.close();
      if (!isStuck) return this.#opened();
      const message = `the peer passes file descriptors whose close hangs; more than ${MAX_CLOSING} wait for that`;
      this.#stuck(new DevstateError('DEVSTATE_E_MESSAGE_FDS', message));
    }, LOOK_MS);
  }

  /** Stops looking. */
  close(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }
}
