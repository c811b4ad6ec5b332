// SPDX-License-Identifier: Apache-2.0
/** Asynchronous events (NVMe 1.4, section 5.2): requests that wait for events, and events that wait for requests. */

import { ASYNC_EVENT_LIMIT, Status } from '../spec/index.js';

export interface AsyncEvent {
  readonly type: number;
  readonly information: number;
  /** Log page that tells more; reading it lets the next event of this type through. */
  readonly page: number;
}

/** Events kept while no request is outstanding. Each of those that exist is kept once. */
export const PENDING_EVENT_LIMIT = 8;

export interface AsyncEventState {
  requests: number[];
  pending: AsyncEvent[];
  /** Types reported and not yet read about. */
  masked: number[];
}

export class AsyncEvents {
  #state: AsyncEventState = emptyEvents();

  /** @param deliver completes a request */
  constructor(readonly deliver: (cid: number, status: number, result: number) => void) {}

  /** No further request may be outstanding. */
  get full(): boolean {
    return this.#state.requests.length >= ASYNC_EVENT_LIMIT;
  }

  /** Takes an Asynchronous Event Request. Only when not full. */
  request(cid: number): void {
    this.#state.requests.push(cid);
    this.#match();
  }

  /** Completes an outstanding request with Abort Requested. @returns false when there is none */
  abort(cid: number): boolean {
    const index = this.#state.requests.indexOf(cid);
    if (index < 0) return false;
    this.#state.requests.splice(index, 1);
    this.deliver(cid, Status.ABORT_REQUESTED, 0);
    return true;
  }

  raise(event: AsyncEvent): void {
    const { pending } = this.#state;
    const known = pending.some(
      (other) => other.type === event.type && other.information === event.information,
    );
    if (!known && pending.length < PENDING_EVENT_LIMIT) pending.push(event);
    this.#match();
  }

  /** The log page was read without Retain Asynchronous Event. */
  unmask(page: number, type: number): void {
    const { pending, masked } = this.#state;
    this.#state.masked = masked.filter((other) => other !== type);
    // What was pending for this page has just been read.
    this.#state.pending = pending.filter((event) => event.page !== page);
  }

  clear(): void {
    this.#state = emptyEvents();
  }

  save(): AsyncEventState {
    return structuredClone(this.#state);
  }

  load(state: AsyncEventState): void {
    this.#state = structuredClone(state);
  }

  #match(): void {
    const { requests, pending, masked } = this.#state;
    for (let index = 0; index < pending.length && requests.length > 0; ) {
      const event = pending[index]!;
      if (masked.includes(event.type)) {
        index++;
        continue;
      }
      pending.splice(index, 1);
      masked.push(event.type);
      masked.sort((a, b) => a - b);
      this.deliver(
        requests.shift()!,
        Status.SUCCESS,
        event.type | (event.information << 8) | (event.page << 16),
      );
    }
  }
}

function emptyEvents(): AsyncEventState {
  return { requests: [], pending: [], masked: [] };
}
