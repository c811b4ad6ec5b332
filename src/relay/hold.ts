// SPDX-License-Identifier: Apache-2.0
/**
 * Requests of the VMM that wait until there is a server to take them. None waits longer than a limit: QEMU gives up a
 * server that does not answer within five seconds, for good.
 */

import { closeAll } from '../transport/index.js';
import type { OwnMessage } from './messages.js';

interface Entry {
  readonly request: OwnMessage;
  /** Of performance.now(). */
  readonly deadline: number;
}

export class Hold {
  readonly #limitMs: number;
  readonly #onExpired: (request: OwnMessage) => void;
  #entries: Entry[] = [];
  #timer: NodeJS.Timeout | undefined;

  /** @param onExpired is given what has waited for `limitMs`, in order */
  constructor(limitMs: number, onExpired: (request: OwnMessage) => void) {
    this.#limitMs = limitMs;
    this.#onExpired = onExpired;
  }

  get size(): number {
    return this.#entries.length;
  }

  /** Adds a request that came after all others. */
  push(request: OwnMessage): void {
    this.#entries.push({ request, deadline: performance.now() + this.#limitMs });
    this.#arm();
  }

  /** Puts back requests that a server was given before all others came, in order. */
  putBack(requests: readonly OwnMessage[]): void {
    const deadline = performance.now() + this.#limitMs;
    this.#entries.unshift(...requests.map((request) => ({ request, deadline })));
    this.#arm();
  }

  /** Everything, in order; it is the caller's. */
  takeAll(): OwnMessage[] {
    const requests = this.#entries.map(({ request }) => request);
    this.#entries = [];
    clearTimeout(this.#timer);
    this.#timer = undefined;
    return requests;
  }

  close(): void {
    for (const { fds } of this.takeAll()) closeAll(fds);
  }

  #arm(): void {
    const [first] = this.#entries;
    if (this.#timer !== undefined || first === undefined) return;
    this.#timer = setTimeout(this.#expire, Math.max(0, first.deadline - performance.now()));
  }

  readonly #expire = (): void => {
    this.#timer = undefined;
    // A timer may be early by a fraction of a millisecond.
    const now = performance.now() + 1;
    while (this.#entries[0] !== undefined && this.#entries[0].deadline <= now)
      this.#onExpired(this.#entries.shift()!.request);
    this.#arm();
  };
}
