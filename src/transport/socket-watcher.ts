// SPDX-License-Identifier: Apache-2.0
/** Waits until a socket can be read or written, for a socket that has reason to wait for the one, the other, or neither. */

import { checkObject, native, PollEvent, type Poller } from '../native/index.js';
import type { Fd } from './fd.js';

const EVERYTHING = PollEvent.readable | PollEvent.writable;

export class SocketWatcher {
  readonly #poller: Poller;
  #watched = 0;

  /**
   * @param fd stays the caller's, which closes it after the watcher
   * @param ready is called with what the socket can do, `PollEvent`s; both when an error is pending, as the next call on the
   * socket tells which. It is to end with `watch`
   * @throws DEVSTATE_E_SYSTEM when the fd cannot be watched; it is closed then.
   */
  constructor(fd: Fd, ready: (events: number) => void) {
    const onReady = (events: number): void => {
      // libuv stops watching a socket that has an error pending.
      if (events < 0) this.#watched = 0;
      ready(events < 0 ? EVERYTHING : events);
    };
    try {
      this.#poller = checkObject(native.createPoller(fd.number, onReady), 'watch a socket');
    } catch (error) {
      fd.close();
      throw error;
    }
  }

  /** Watches for these `PollEvent`s from now on, or for nothing. */
  watch(events: number): void {
    if (events === this.#watched) return;
    this.#watched = events;
    if (events === 0) this.#poller.stop();
    else this.#poller.start(events);
  }

  /** Lets the process end although the socket is open, and back. */
  unref(): void {
    this.#poller.unref();
  }

  ref(): void {
    this.#poller.ref();
  }

  /** Stops for good. */
  close(): void {
    this.#poller.close();
  }
}
