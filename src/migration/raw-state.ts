// SPDX-License-Identifier: Apache-2.0
/**
 * State without an envelope, for a device that stands in for one of another make: a client that knows nothing of formats
 * finds the very bytes that it would find there. Nothing in such a stream says what it is, or whether it is whole.
 */

import type { RawState } from '../device/index.js';
import { Errno, RequestError } from '../wire/index.js';

/** One saving, see `SaveSession`. */
export class RawSaveSession {
  readonly #state: RawState;
  /** Undefined before the first read. */
  #unread: Uint8Array | undefined;
  /** A part of the pre-copy has been read: who has it expects the rest of it before the last round. */
  #begun = false;
  #final = false;

  constructor(state: RawState) {
    this.#state = state;
  }

  finish(): void {
    const final = this.#state.save('final');
    this.#unread = this.#begun && this.#unread !== undefined ? Buffer.concat([this.#unread, final]) : final;
    this.#final = true;
  }

  close(): void {
    this.#unread = undefined;
  }

  get ended(): boolean {
    return this.#final && this.#unread?.length === 0;
  }

  get pending(): number {
    const unread = this.#unread?.length ?? 0;
    return this.#final ? unread : unread + this.#state.estimate;
  }

  read(size: number): Uint8Array[] {
    this.#unread ??= this.#state.save('pre-copy');
    const part = this.#unread.subarray(0, size);
    this.#unread = this.#unread.subarray(part.length);
    if (part.length === 0) return [];
    this.#begun = true;
    return [part];
  }

  /** Everything is at hand already. */
  prepare(): void {}
}

/** One loading, see `LoadSession`. */
export class RawLoadSession {
  readonly #state: RawState;
  readonly #parts: Uint8Array[] = [];
  #length = 0;

  constructor(state: RawState) {
    this.#state = state;
  }

  push(bytes: Uint8Array): void {
    this.#length += bytes.length;
    if (this.#length > this.#state.maxLength) {
      throw new RequestError(Errno.EINVAL, `more than ${this.#state.maxLength} bytes of device state`);
    }
    this.#parts.push(new Uint8Array(bytes));
  }

  commit(): void {
    this.#state.load(Buffer.concat(this.#parts));
  }
}
