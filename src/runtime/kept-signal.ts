// SPDX-License-Identifier: Apache-2.0
/** An interrupt's eventfd of a device with a crash journal: kept for a successor, and signalled after the commit. */

import type { StoredFd } from '../fd-store/index.js';
import type { Transactions } from '../journal/index.js';
import type { Fd } from '../transport/index.js';
import type { Signal } from './interrupt-table.js';

export class KeptSignal implements Signal {
  readonly #stored: StoredFd;
  readonly #transactions: Transactions;

  constructor(stored: StoredFd, transactions: Transactions) {
    this.#stored = stored;
    this.#transactions = transactions;
  }

  /** In the store. */
  get number(): number {
    return this.#stored.number;
  }

  signal(): void {
    this.#transactions.signal(this.#stored.number);
  }

  duplicate(): Fd {
    return this.#stored.fd.duplicate();
  }

  close(): void {
    this.#stored.release();
  }
}
