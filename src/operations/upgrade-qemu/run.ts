// SPDX-License-Identifier: Apache-2.0
/** One replacement of QEMU under way. */

import { rmSync } from 'node:fs';
import { join } from 'node:path';
import type { PciView } from '../../qemu/index.js';
import type { NextVmmStatus } from '../../wire/index.js';
import type { DetachedProcess } from '../detached-process.js';
import type { DeviceSocket } from '../device-socket.js';
import type { Stand } from '../migrate/guest.js';
import type { ChangedSettings } from '../migrate/note.js';
import type { Vm } from '../migrate/run.js';
import { makeScratchFolder } from '../scratch-folder.js';
import type { UpgradeQemuOptions, UpgradeQemuPhase, UpgradeQemuProgress } from './types.js';

/** One device. What a migration does at two ends is done at one. */
export interface UpgradeDevice {
  readonly id: string;
  readonly source: DeviceSocket;
  readonly destination: DeviceSocket;
  /** How its VMMs stood before. */
  readonly before: NextVmmStatus;
  readonly like: Uint8Array | undefined;
  view: PciView | undefined;
  silenced: boolean;
}

export interface UpgradeRun {
  readonly options: UpgradeQemuOptions;
  /** Where the new QEMU is asked. */
  readonly qmpPath: string;
  readonly signal: AbortSignal;
  readonly source: Vm;
  readonly devices: readonly UpgradeDevice[];
  readonly replaced: 'transfer' | 'exec';
  readonly warnings: string[];
  readonly report: (progress: UpgradeQemuProgress) => void;
  readonly scratch: Scratch;
  phase: UpgradeQemuPhase;
  /** What was changed of the QEMUs' migration settings; undefined as long as nothing was. */
  settings: ChangedSettings | undefined;
  /** How things stood when the VM had been stopped. */
  stand: Stand | undefined;
  /** QEMU was told to migrate. */
  started: boolean;
  /** The new process, with cpr-transfer. */
  process: DetachedProcess | undefined;
  /** The new QEMU, once it can be asked. */
  destination: Vm | undefined;
  /** With cpr-exec: the old program is gone, and nothing can be undone. */
  executed: boolean;
  /** The new QEMU was told to run the VM, and nobody can tell whether it does. */
  mayRunThere: boolean;
}

/** A directory for this user alone: sockets, and the state that waits for the new program. */
export class Scratch {
  readonly #directory = makeScratchFolder('qemu');
  readonly main = join(this.#directory, 'main');
  readonly cpr = join(this.#directory, 'cpr');
  readonly state = join(this.#directory, 'state');

  remove(): void {
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

export function closeUpgradeRun(run: UpgradeRun): void {
  for (const vm of [run.source, run.destination]) {
    vm?.watch.close();
    vm?.guest.close();
    vm?.qtest.close();
    vm?.qmp.close();
  }
  for (const { source } of run.devices) source.device.close();
  run.scratch.remove();
}
