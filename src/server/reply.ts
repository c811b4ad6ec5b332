// SPDX-License-Identifier: Apache-2.0
/** The reply that a command handler builds: one buffer, reused from message to message, with room for the header. */

import { closeAll, type Fd } from '../transport/index.js';
import { HEADER_LENGTH } from '../wire/index.js';

const INITIAL_CAPACITY = 4096;

export class Reply {
  /** Header and payload; the payload begins at `HEADER_LENGTH`. */
  bytes = new Uint8Array(INITIAL_CAPACITY);
  view = new DataView(this.bytes.buffer);
  /** Payload bytes in `bytes`. */
  length = 0;
  /** Further payload, sent after `bytes` without a copy: must not change any more. */
  parts: readonly Uint8Array[] = [];
  /** Sent along; they stay their owner's. */
  fds: readonly Fd[] = [];
  /** Closed by `reset`: fds that were made to be given away. */
  owned: readonly Fd[] = [];

  /** Empties it: before a command, and when its reply has been sent. */
  reset(): void {
    this.length = 0;
    if (this.parts.length > 0) this.parts = [];
    if (this.fds.length > 0) this.fds = [];
    if (this.owned.length > 0) {
      closeAll(this.owned);
      this.owned = [];
    }
  }

  /** Makes room for a payload of `length` bytes and sets it as the payload's length. Contents are undefined. */
  allocate(length: number): void {
    if (HEADER_LENGTH + length > this.bytes.length) {
      this.bytes = new Uint8Array(HEADER_LENGTH + length);
      this.view = new DataView(this.bytes.buffer);
    }
    this.length = length;
  }
}
