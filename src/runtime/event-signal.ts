// SPDX-License-Identifier: Apache-2.0
/** An interrupt's eventfd. */

import { native } from '../native/index.js';
import type { Fd } from '../transport/index.js';
import type { Signal } from './interrupt-table.js';

export class EventSignal implements Signal {
  readonly #fd: Fd;

  /** Takes the fd. */
  constructor(fd: Fd) {
    this.#fd = fd.take();
  }

  signal(): void {
    // A counter that is full is as loud as it gets; a peer's fd that is no eventfd loses only its own interrupts.
    native.eventfdSignal(this.#fd.number);
  }

  duplicate(): Fd {
    return this.#fd.duplicate();
  }

  close(): void {
    this.#fd.close();
  }
}
