// SPDX-License-Identifier: Apache-2.0
/**
 * What a device server and a relay have alike when they take over: sockets that they listen at, clients that wait. Until
 * the successor starts no connection is accepted, and when it gives up its predecessor listens there still.
 */

import { type Bundle, FdKind } from '../handoff/index.js';
import { closeAll, type Fd, Listener } from '../transport/index.js';

/** Names of sockets in the bundle, for servers and relays alike. */
export const SocketName = {
  vmm: 'vmm',
  listener: 'listener',
  migrationListener: 'listener:migration',
  controlListener: 'listener:control',
  waiting: (index: number): string => `waiting:${index}`,
} as const;

/** Owns the sockets that were taken out of a bundle, until {@link resume} or {@link close}. */
export class AdoptedSockets {
  /** Clients that wait for the VMM's place, in the order they came. */
  readonly waiting: Fd[] = [];
  readonly #bundle: Bundle;
  readonly #listeners: Listener[] = [];

  constructor(bundle: Bundle) {
    this.#bundle = bundle;
  }

  /**
   * Continues to listen, but accepts no connection yet.
   * @param name of the socket in the bundle @param path where it listens
   * @throws DEVSTATE_E_HANDOFF_BUNDLE when it did not come
   */
  takeListener(name: string, path: string, onConnection: (fd: Fd) => void): Listener {
    const listener = Listener.adopt(this.#bundle.take(name, FdKind.LISTENER), onConnection, path);
    listener.pause();
    this.#listeners.push(listener);
    return listener;
  }

  /** @throws DEVSTATE_E_HANDOFF_BUNDLE when fewer than `count` came */
  takeWaiting(count: number): void {
    for (let index = 0; index < count; index++)
      this.waiting.push(this.#bundle.take(SocketName.waiting(index), FdKind.SOCKET));
  }

  /** The successor serves: who has connected meanwhile is accepted. */
  resume(): void {
    for (const listener of this.#listeners) listener.resume();
  }

  /** The predecessor continues: its paths stay. */
  close(): void {
    for (const listener of this.#listeners) listener.close({ keepPath: true });
    closeAll(this.waiting);
  }
}
