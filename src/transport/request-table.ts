// SPDX-License-Identifier: Apache-2.0
/** Requests that wait for their replies, by 16-bit message id. */

import { DevstateError } from '../errors.js';

const IDS = 0x10000;

/** Told the reply or why there is none, exactly once. */
export type Completion<Reply> = (error: Error | undefined, reply: Reply | undefined) => void;

interface Pending<Reply> {
  readonly complete: Completion<Reply>;
  readonly what: string;
  /** On the clock of performance.now(), ms; Infinity when it may take for ever. */
  readonly deadline: number;
  readonly timeoutMs: number;
}

export class RequestTable<Reply> {
  readonly #pending = new Map<number, Pending<Reply>>();
  #nextId = 0;
  /** One timer for all: it fires at the earliest deadline known when it was set, and looks again. */
  #timer: NodeJS.Timeout | undefined;
  #timerDeadline = Infinity;

  /** Requests that wait. */
  get size(): number {
    return this.#pending.size;
  }

  /**
   * Enters a request and returns its id, which no other waiting request has.
   * @param what names the request in errors, as in "REGION_READ".
   * @param timeoutMs after which it fails with DEVSTATE_E_REQUEST_TIMEOUT; Infinity for never.
   * @throws DEVSTATE_E_REQUEST_LIMIT when all ids wait for replies.
   */
  add(what: string, timeoutMs: number, complete: Completion<Reply>): number {
    const id = this.#allocateId();
    const deadline = timeoutMs === Infinity ? Infinity : performance.now() + timeoutMs;
    this.#pending.set(id, { complete, what, deadline, timeoutMs });
    this.#armTimer(deadline);
    return id;
  }

  /** The same with a promise. `send` is called with the id; when it throws the request is not entered. */
  request(what: string, timeoutMs: number, send: (id: number) => void): Promise<Reply> {
    return new Promise((resolve, reject) => {
      const id = this.add(what, timeoutMs, (error, reply) => {
        if (error === undefined) resolve(reply as Reply);
        else reject(error);
      });
      try {
        send(id);
      } catch (error) {
        this.#pending.delete(id);
        reject(error);
      }
    });
  }

  /** What the request `id` is, or undefined when none waits. */
  whatOf(id: number): string | undefined {
    return this.#pending.get(id)?.what;
  }

  /** Completes a request with its reply; false when none with this id waits (it may have timed out). */
  resolve(id: number, reply: Reply): boolean {
    return this.#complete(id, undefined, reply);
  }

  /** Completes a request with an error; false when none with this id waits. */
  reject(id: number, error: Error): boolean {
    return this.#complete(id, error, undefined);
  }

  /** Completes all with `error`: the connection is gone. */
  rejectAll(error: Error): void {
    for (const id of [...this.#pending.keys()]) this.reject(id, error);
    clearTimeout(this.#timer);
    this.#timerDeadline = Infinity;
  }

  #complete(id: number, error: Error | undefined, reply: Reply | undefined): boolean {
    const pending = this.#pending.get(id);
    if (pending === undefined) return false;
    this.#pending.delete(id);
    pending.complete(error, reply);
    return true;
  }

  /** Ids go round, so that a late reply to a request that timed out meets no new request with its id. */
  #allocateId(): number {
    if (this.#pending.size >= IDS) {
      const message = `all ${IDS} request ids wait for replies; send fewer requests at once`;
      throw new DevstateError('DEVSTATE_E_REQUEST_LIMIT', message);
    }
    let id = this.#nextId;
    while (this.#pending.has(id)) id = (id + 1) % IDS;
    this.#nextId = (id + 1) % IDS;
    return id;
  }

  #armTimer(deadline: number): void {
    if (deadline >= this.#timerDeadline) return;
    clearTimeout(this.#timer);
    this.#timerDeadline = deadline;
    this.#timer = setTimeout(this.#onTimer, Math.max(deadline - performance.now(), 1));
    // The connection keeps the process alive while requests wait, not this.
    this.#timer.unref();
  }

  readonly #onTimer = (): void => {
    this.#timerDeadline = Infinity;
    const now = performance.now();
    let earliest = Infinity;
    for (const [id, pending] of this.#pending) {
      if (pending.deadline > now) {
        earliest = Math.min(earliest, pending.deadline);
        continue;
      }
      const message = `no reply to ${pending.what} within ${pending.timeoutMs} ms; is the peer alive?`;
      this.reject(id, new DevstateError('DEVSTATE_E_REQUEST_TIMEOUT', message));
    }
    this.#armTimer(earliest);
  };
}
