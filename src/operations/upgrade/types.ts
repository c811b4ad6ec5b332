// SPDX-License-Identifier: Apache-2.0
/** What an upgrade of a device server, or of a relay, is asked for, and what it ends with. */

import type { FormatOptions, NegotiationSummary } from '../state-plan.js';

export interface ReplacementOptions {
  /** The successor's command line. */
  readonly command: readonly string[];
  /** File that the successor's output is appended to; default: our stderr. */
  readonly log?: string;
  /** For the successor's start and preparation together, ms. */
  readonly startMs: number;
  /** For the old process to stop, and for the successor to adopt, ms. */
  readonly freezeMs: number;
  readonly adoptMs: number;
}

export interface UpgradeOptions extends ReplacementOptions, Pick<FormatOptions, 'format' | 'allowLossy'> {
  /** Migration socket of the server that is to be replaced. */
  readonly migrationSocket: string;
}

export interface UpgradeRelayOptions extends ReplacementOptions {
  /** Control socket of the relay that is to be replaced. */
  readonly control: string;
}

/** `start`: the successor's process comes up. `negotiate`: a format is agreed on, for a server. The others are those of the handoff. */
export const UPGRADE_PHASES = [
  'start',
  'negotiate',
  'prepare',
  'freeze',
  'transfer',
  'adopt',
  'commit',
] as const;
export type UpgradePhase = (typeof UPGRADE_PHASES)[number];

export interface UpgradeProgress {
  readonly phase: UpgradePhase;
  /** How long it took, once it is over. */
  readonly ms?: number;
}

export interface UpgradeHooks {
  /** Aborts until the handoff begins; afterwards it is a matter of milliseconds. */
  readonly signal?: AbortSignal;
  readonly progress?: (progress: UpgradeProgress) => void;
}

export interface ReplacementResult {
  readonly status: 'completed';
  /** Pid of the successor. */
  readonly pid: number;
  /** How often it has been handed over. */
  readonly generation: number;
  /** From the old process's last look at its VMM to the new one's first, ms. */
  readonly pauseMs: number | undefined;
  /** When that was over, in milliseconds of CLOCK_MONOTONIC. */
  readonly startedAtMs: number | undefined;
  /** ms. Those of the handoff are missing when the old process could not report any more. */
  readonly phases: Readonly<Partial<Record<UpgradePhase, number>>>;
  /** fds that went over. */
  readonly fds: number | undefined;
  readonly warnings: readonly string[];
}

export interface UpgradeResult extends ReplacementResult {
  readonly negotiation: NegotiationSummary;
}
