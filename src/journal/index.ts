// SPDX-License-Identifier: Apache-2.0
/** State in memory that outlives its process, changed in transactions. No I/O: bytes in, bytes out. */

export { Exchange, MAX_EXCHANGE_FDS, Transfer } from './exchange.js';
export { Journal, type JournalOptions } from './journal.js';
export { journalError, type SlotSpec } from './layout.js';
export { EFFECTS_SLOT, type Effector, Transactions } from './transactions.js';
