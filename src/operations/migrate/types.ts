// SPDX-License-Identifier: Apache-2.0
/** What a migration is asked for, what it reports on the way, and what it ends with. */

import type { FormatOptions, NegotiationSummary } from '../state-plan.js';

/** One vfio-user device of the VM: QEMU's id of it, and the migration sockets of its two servers. */
export interface DevicePair {
  readonly id: string;
  readonly source: string;
  readonly dest: string;
}

export interface MigrateOptions extends FormatOptions {
  /** QMP socket of the QEMU that runs the VM. */
  readonly sourceQmp: string;
  /** QMP socket of the QEMU that waits for it (`-S -incoming defer`). */
  readonly destQmp: string;
  /** Where QEMU sends its own part, as the destination listens: `unix:/path`, `tcp:host:port`. */
  readonly uri: string;
  readonly devices: readonly DevicePair[];
  /** vfio-user devices that stay behind: by id, or by QOM path for one without. */
  readonly without?: readonly string[];
  /** Ids of devices whose servers cannot prove that they are this VM's, and need not. */
  readonly unproven?: readonly string[];
  /** Ids of devices whose images at both ends are kept the same by other means than being one file. */
  readonly imageUnchecked?: readonly string[];
  /** The pause that is aimed at, all of it, ms. */
  readonly downtimeMs: number;
  /** Give up and go back when the VM has not arrived after this time, ms. */
  readonly timeoutMs: number;
  /** Bound for QEMU's rate, bytes per second; 0 for none. */
  readonly bytesPerSecond: number;
}

/** `architecture.md`, "A migration, phase by phase". */
export type Phase = 'check' | 'precopy' | 'switchover' | 'land' | 'commit' | 'rollback';

export interface MigrateProgress {
  readonly phase: Phase;
  /** RAM that QEMU still has to send, and all of it, bytes. */
  readonly ramRemaining?: number;
  readonly ramTotal?: number;
  readonly ramTransferred?: number;
  /** QEMU's rate, bits per second. */
  readonly bitsPerSecond?: number;
  /** What the pause would be now, ms. */
  readonly expectedPauseMs?: number;
  /** Device state sent so far, bytes. */
  readonly deviceBytes?: number;
}

/** The pause as the guest saw it, and what it was made of; ms. Parts of devstate's own overlap. */
export interface Downtime {
  /** From the source's STOP to the destination's RESUME. */
  readonly totalMs: number;
  readonly quiesceMs: number;
  readonly captureMs: number;
  readonly saveMs: number;
  readonly dirtyLogMs: number;
  /** From `migrate-continue` to `completed` at the destination: QEMU's own. */
  readonly qemuMs: number;
  readonly loadMs: number;
  readonly pagesMs: number;
  readonly replayMs: number;
  readonly resumeMs: number;
  /** What devstate adds, by the clock: from `pre-switchover` to `migrate-continue`, and from `completed` to `cont`. */
  readonly devstateMs: number;
}

/** The pause to aim at, unless another one is asked for, ms. */
export const DEFAULT_DOWNTIME_MS = 300;

/**
 * What the pause is expected to be, from rates measured in this run, when the VM was last looked at while it ran; ms. From
 * `devstate check`, which measures at the source alone, without QEMU's view and the last state.
 */
export interface ExpectedPause {
  readonly totalMs: number;
  /** QEMU's view of the devices, their log and last state. */
  readonly fixedMs: number;
  /** Copying the pages that devices wrote. */
  readonly pagesMs: number;
  /** What QEMU was given for its own part. */
  readonly qemuMs: number;
  readonly devices: readonly {
    readonly id: string;
    /** Pages to be copied, bytes, and how fast they became more. */
    readonly pageBytes: number;
    readonly dirtyBytesPerSecond: number;
    /** 0 if it was not measured, because there is no memory that both ends have. */
    readonly copyBytesPerSecond: number;
    /** `mapped`: the manager has the memory of both ends; `messages`: it is read and written piece by piece. */
    readonly copiedBy: 'mapped' | 'messages';
    /** It writes by messages, which QEMU notices, because its pages would be too many: they become no more. */
    readonly byMessage: boolean;
  }[];
}

export interface MigratedDevice {
  readonly id: string;
  readonly model: string | undefined;
  /** What the source saved; undefined if it does not say. */
  readonly format: { readonly uuid: string; readonly name: string; readonly version: string } | undefined;
  /** How the formats at both ends were agreed on. */
  readonly negotiation: NegotiationSummary;
  readonly precopyBytes: number;
  readonly stopBytes: number;
  /** Pages of 4 KiB that the device had written while the VM ran, and that were copied at the stop. */
  readonly dirtyPages: number;
  /** The device wrote by messages to QEMU from some point on, because those pages became too many. */
  readonly byMessage: boolean;
}

export interface MigrateResult {
  readonly status: 'completed';
  /** Whether the VM runs at the destination: not if it was paused at the source. */
  readonly running: boolean;
  readonly phases: Readonly<Record<Exclude<Phase, 'rollback'>, number>>;
  readonly totalMs: number;
  readonly downtime: Downtime;
  readonly expected: ExpectedPause | undefined;
  readonly bytes: {
    readonly ram: number;
    readonly precopy: number;
    readonly stop: number;
    readonly pages: number;
  };
  readonly dirtyPages: number;
  readonly devices: readonly MigratedDevice[];
  readonly warnings: readonly string[];
}
