// SPDX-License-Identifier: Apache-2.0
/** What a replacement of QEMU is asked for, what it reports on the way, and what it ends with. */

import type { ReplaceMode } from '../../qemu/index.js';

/** One vfio-user device of the VM: QEMU's id of it, and the migration socket of its server. */
export interface KeptDevice {
  readonly id: string;
  readonly server: string;
}

export interface UpgradeQemuOptions {
  /** `cpr-transfer`: a new process. `cpr-exec`: a new program in the same process. */
  readonly mode: ReplaceMode;
  /** QMP socket of the QEMU that runs the VM. */
  readonly sourceQmp: string;
  /** QMP socket of the new one; default: the first that its command line has. */
  readonly qmp?: string;
  /** All vfio-user devices of the VM. */
  readonly devices: readonly KeptDevice[];
  /** Ids of devices whose servers cannot prove that they are this VM's, and need not. */
  readonly unproven?: readonly string[];
  /** The new QEMU's command line. */
  readonly command: readonly string[];
  /** File that a new process's output is appended to; default: our stderr. */
  readonly log?: string;
  /** Give up and go back when the VM does not run in the new QEMU after this time, ms. */
  readonly timeoutMs: number;
}

export const UPGRADE_QEMU_PHASES = ['check', 'start', 'connect', 'switchover', 'land', 'commit'] as const;
export type UpgradeQemuPhase = (typeof UPGRADE_QEMU_PHASES)[number] | 'rollback';

export interface UpgradeQemuProgress {
  readonly phase: UpgradeQemuPhase;
}

/** The pause and its parts, ms. Parts overlap. */
export interface UpgradeQemuDowntime {
  /** From the old QEMU's STOP to the new one's RESUME. */
  readonly totalMs: number;
  /** The devices come to a stop. */
  readonly quiesceMs: number;
  /** The old QEMU shows its view of them. */
  readonly captureMs: number;
  /** QEMU's own part: from `migrate-continue` until the new one has everything and can be asked. */
  readonly qemuMs: number;
  /** The new connections get the devices. */
  readonly promoteMs: number;
  readonly replayMs: number;
  readonly resumeMs: number;
}

export interface UpgradedDevice {
  readonly id: string;
  /** Resets that reached the device meanwhile. */
  readonly resets: number;
  /** What the new QEMU did to it, and what was kept from it. */
  readonly absorbed: { readonly resets: number; readonly configWrites: number };
}

export interface UpgradeQemuResult {
  readonly status: 'completed';
  readonly mode: ReplaceMode;
  /** Whether the VM runs. */
  readonly running: boolean;
  /** Pid of the new process; undefined when it is the old one. */
  readonly pid: number | undefined;
  readonly version: string;
  /** ms. */
  readonly phases: Readonly<Record<(typeof UPGRADE_QEMU_PHASES)[number], number>>;
  readonly totalMs: number;
  readonly downtime: UpgradeQemuDowntime;
  /** Without one whose server could not be asked any more: a warning says so. */
  readonly devices: readonly UpgradedDevice[];
  readonly warnings: readonly string[];
}

export interface UpgradeQemuHooks {
  /** Cancels: the old QEMU continues, the operation rejects with DEVSTATE_E_CANCELLED. */
  readonly signal?: AbortSignal;
  readonly progress?: (progress: UpgradeQemuProgress) => void;
}
