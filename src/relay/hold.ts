// SPDX-License-Identifier: Apache-2.0
/**
 * Requests of the VMM that wait until there is a server to take them. None waits longer than a limit: QEMU gives up a
 * server that does not answer within five seconds, for good.
 */

import { DevstateError } from '../errors.js';
import { closeAll } from '../transport/index.js';
import type { OwnMessage } from './messages.js';

/** Most that a VMM may send without waiting for answers. */
const MAX_REQUESTS = 4096;
const MAX_BYTES = 64 * 1024 * 1024;

interface Entry {
  readonly request: OwnMessage;
  /** On the clock of performance.now(), ms. */
  readonly deadline: number;
}

export class Hold {
  readonly #limitMs: number;
  readonly #onExpired: (request: OwnMessage) => void;
  #entries: Entry[] = [];
  #bytes = 0;
  #timer: NodeJS.Timeout | undefined;

  /** @param onExpired is given what has waited for `limitMs`, in order */
  constructor(limitMs: number, onExpired: (request: OwnMessage) => void) {
    this.#limitMs = limitMs;
    this.#onExpired = onExpired;
  }

  get size(): number {
    return this.#entries.length;
  }

  /** Adds a request that came after all others. @throws DEVSTATE_E_PROTOCOL when there are too many; it is not added then */
  push(request: OwnMessage): void {
    if (this.#entries.length >= MAX_REQUESTS || this.#bytes + request.length > MAX_BYTES) {
      closeAll(request.fds);
      throw new DevstateError(
        'DEVSTATE_E_PROTOCOL',
        'the VMM sends more than can be kept until a server is there',
      );
    }
    this.#bytes += request.length;
    this.#entries.push({ request, deadline: performance.now() + this.#limitMs });
    this.#arm();
  }

  /** Puts back requests that a server was given before all others came, in order. */
  putBack(requests: readonly OwnMessage[]): void {
    const deadline = performance.now() + this.#limitMs;
    for (const { length } of requests) this.#bytes += length;
    this.#entries.unshift(...requests.map((request) => ({ request, deadline })));
    this.#arm();
  }

  /** Everything, in order; it is the caller's. */
  takeAll(): OwnMessage[] {
    const requests = this.#entries.map(({ request }) => request);
    this.#entries = [];
    this.#bytes = 0;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    return requests;
  }

  /** Nothing expires until {@link resume}. @returns all, in order, with the time that each has left, ms. It stays the hold's */
  suspend(): { readonly request: OwnMessage; readonly restMs: number }[] {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const now = performance.now();
    return this.#entries.map(({ request, deadline }) => ({ request, restMs: Math.max(0, deadline - now) }));
  }

  resume(): void {
    this.#arm();
  }

  /** Adds a request that waited in another relay; its time does not run until {@link resume}. */
  restore(request: OwnMessage, restMs: number): void {
    this.#bytes += request.length;
    this.#entries.push({ request, deadline: performance.now() + restMs });
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
    while (this.#entries[0] !== undefined && this.#entries[0].deadline <= now) {
      const { request } = this.#entries.shift()!;
      this.#bytes -= request.length;
      this.#onExpired(request);
    }
    this.#arm();
  };
}
