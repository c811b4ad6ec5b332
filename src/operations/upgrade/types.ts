// SPDX-License-Identifier: Apache-2.0
/** What an upgrade of a device server is asked for, and what it ends with. */

import type { FormatOptions, NegotiationSummary } from '../state-plan.js';

export interface UpgradeOptions extends Pick<FormatOptions, 'format' | 'allowLossy'> {
  /** Of the server that is to be replaced. */
  readonly migrationSocket: string;
  /** The successor's command line. */
  readonly command: readonly string[];
  /** File that the successor's output is appended to; default: our stderr. */
  readonly log?: string;
  /** For the successor's start and preparation together, ms. */
  readonly startMs: number;
  /** For the old server to stop, and for the successor to adopt, ms. */
  readonly freezeMs: number;
  readonly adoptMs: number;
}

/** `start`: the successor's process comes up. `negotiate`: a format is agreed on. The others are those of the handoff. */
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

export interface UpgradeResult {
  readonly status: 'completed';
  /** Pid of the successor. */
  readonly pid: number;
  /** How often the device has been handed over. */
  readonly generation: number;
  /** From the old server's last look at its VMM to the new one's first, ms. */
  readonly pauseMs: number | undefined;
  /** When that was over, in milliseconds of CLOCK_MONOTONIC. */
  readonly startedAtMs: number | undefined;
  /** ms. Those of the handoff are missing when the old server could not report any more. */
  readonly phases: Readonly<Partial<Record<UpgradePhase, number>>>;
  /** fds that went over. */
  readonly fds: number | undefined;
  readonly negotiation: NegotiationSummary;
  readonly warnings: readonly string[];
}
