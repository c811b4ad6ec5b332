// SPDX-License-Identifier: Apache-2.0

import type { KnownServer } from './back-end.js';

/** What a session knows beyond what it keeps in objects of their own. */
export interface SessionFacts {
  /** The VMM's VERSION, as it is passed on. */
  proposal: Uint8Array | undefined;
  /** The server that the VMM knows, whether it is still there or not. */
  known: KnownServer | undefined;
  /** When the server was lost, of performance.now(); undefined when it is there. */
  lostMs: number | undefined;
  /** The VMM has memory, or ioeventfds, of the server that it has now. */
  bound: boolean;
  /** Bytes that one manager leaves for the next. */
  note: Uint8Array;
}
