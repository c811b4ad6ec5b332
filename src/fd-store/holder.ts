// SPDX-License-Identifier: Apache-2.0
/** The manager's side: keeps the fds of one service while its processes come and go. */

import { check, checkObject, Errno, native, PollEvent, type Poller } from '../native/index.js';
import { closeAll, Fd, peerGroup, receivedFds } from '../transport/index.js';
import { decodeNotification, MAX_NOTIFY_LENGTH } from './notify.js';

/** Messages taken per wake-up. */
const BURST = 64;
const MAX_FDS = 253;

export interface KeptFd {
  readonly name: string;
  readonly fd: Fd;
}

export class FdHolder {
  readonly #socket: Fd;
  readonly #group = peerGroup();
  readonly #poller: Poller;
  readonly #capacity: number;
  readonly #ready: () => void;
  readonly #buffer = new Uint8Array(MAX_NOTIFY_LENGTH);
  readonly #received = new Int32Array(2 + MAX_FDS);
  #kept: KeptFd[] = [];

  /**
   * Listens at `path`, for this user only.
   * @param ready the service says that it serves
   */
  constructor(path: string, capacity: number, ready: () => void) {
    this.#capacity = capacity;
    this.#ready = ready;
    this.#socket = new Fd(check(native.datagramListen(path, 0o600), `listen at ${path}`));
    try {
      this.#poller = checkObject(
        native.createPoller(this.#socket.number, () => this.#take(BURST)),
        'watch a notification socket',
      );
    } catch (error) {
      this.#socket.close();
      throw error;
    }
    check(this.#poller.start(PollEvent.readable), 'watch a notification socket');
    // What keeps us alive is the service.
    this.#poller.unref();
  }

  get kept(): readonly KeptFd[] {
    return this.#kept;
  }

  /** Takes all that has been sent: after the end of a service nothing of it is under way any more. */
  drain(): void {
    while (this.#take(BURST) === BURST);
  }

  /** @returns messages taken */
  #take(most: number): number {
    for (let taken = 0; taken < most; taken++) {
      const got = native.receiveMessage(
        this.#socket.number,
        this.#buffer,
        0,
        this.#buffer.length,
        this.#received,
      );
      if (got === -Errno.EINTR) continue;
      if (got < 0) return taken;
      const fds = receivedFds(this.#received, this.#group);
      this.#handle(this.#buffer.subarray(0, got), fds);
      closeAll(fds);
    }
    return most;
  }

  #handle(bytes: Uint8Array, fds: readonly Fd[]): void {
    const notification = decodeNotification(bytes);
    if (notification?.kind === 'ready') this.#ready();
    else if (notification?.kind === 'remove') this.#remove(notification.name);
    else if (notification?.kind === 'store') {
      for (const fd of fds) {
        if (this.#kept.length < this.#capacity) this.#kept.push({ name: notification.name, fd: fd.take() });
      }
    }
  }

  #remove(name: string): void {
    closeAll(this.#kept.filter((kept) => kept.name === name).map(({ fd }) => fd));
    this.#kept = this.#kept.filter((kept) => kept.name !== name);
  }

  close(): void {
    this.#poller.close();
    this.#socket.close();
    closeAll(this.#kept.map(({ fd }) => fd));
    this.#kept = [];
  }
}
