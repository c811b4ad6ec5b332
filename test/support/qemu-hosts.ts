// SPDX-License-Identifier: Apache-2.0
/** What the models of QEMU in one test have in common: who listens where, and how often two of them ran the one VM. */
import type { GuestRam } from '../../src/guest-driver/index.js';
import type { QemuModel } from './qemu-model.js';

export type Arguments = Readonly<Record<string, unknown>>;

/** QEMU's refusal of a command. */
export class Refusal extends Error {
  readonly errorClass: string;
  constructor(description: string, errorClass = 'GenericError') {
    super(description);
    this.errorClass = errorClass;
  }
}

/** What a program becomes that a QEMU executes in its place (cpr-exec), with the memory that stays. */
export type Program = (command: readonly string[], ram: GuestRam) => Promise<void>;

export class Hosts {
  readonly listening = new Map<string, QemuModel>();
  /** Processes that wait at a cpr channel: what they do when the old QEMU reaches them. Settles when they listen. */
  readonly waiting = new Map<string, () => Promise<void>>();
  /** Programs that can be executed, by path. */
  readonly programs = new Map<string, Program>();
  readonly qemus: QemuModel[] = [];
  /** Moments at which the VM ran twice. Empty, or something is very wrong. */
  readonly twice: string[] = [];

  /** A VM's CPUs begin to run. */
  runs(qemu: QemuModel): void {
    const others = this.qemus.filter((other) => other !== qemu && other.isRunning);
    if (others.length > 0) this.twice.push(`${qemu.name} begins to run while ${others[0]?.name} runs`);
  }
}
