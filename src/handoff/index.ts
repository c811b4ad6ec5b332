// SPDX-License-Identifier: Apache-2.0
/** Handing fds and state over from one process to the next, in two phases. */

export { Bundle, type BundleEntry } from './bundle.js';
export { collectGarbage } from './collect-garbage.js';
export {
  type HandoffReport,
  type HandoffStatus,
  handoffReport,
  handoffStatus,
  monotonicMs,
  parseHandoff,
  parseHandoffJson,
  phaseTimes,
  requireKind,
  requireSameOption,
} from './document.js';
export { FdKind, fdKindName } from './fd-kind.js';
export { type GiveOptions, type GiveReport, type Giver, give, LEASE_NAME, type Outgoing } from './give.js';
export { Lease } from './lease.js';
export {
  DEFAULT_TIMEOUTS,
  HANDOFF_PHASES,
  HandoffError,
  type HandoffPhase,
  type PhaseTimeouts,
} from './phases.js';
export { isKnown, isRunning, type ProcessIdentity, processOf, thisProcess } from './process-identity.js';
export { encodeEntries, encodeTransferred } from './protocol.js';
export { packRanges, type RangeEntry, type RangeTable, rangeTable, unpackRanges } from './range-table.js';
export { type Adopted, type ReceiveOptions, type ReceiveReport, type Receiver, receive } from './receive.js';
export { REHEARSALS, rehearseHandoff } from './rehearsal.js';
export { readSealed, sealedContent, sealedMemory } from './sealed-memory.js';
export { TAKEOVER_VARIABLE, Takeover, takeoverPaths } from './takeover.js';
