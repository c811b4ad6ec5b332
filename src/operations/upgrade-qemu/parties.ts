// SPDX-License-Identifier: Apache-2.0
/** Who takes part in a replacement of QEMU: two QEMUs, one of which comes up on the way, and the devices' servers. */

import { rmSync } from 'node:fs';
import { join } from 'node:path';
import type { PciView } from '../../qemu/index.js';
import type { NextVmmStatus } from '../../wire/index.js';
import type { DetachedProcess } from '../detached-process.js';
import type { DeviceSocket } from '../device-socket.js';
import type { Vm } from '../migrate/parties.js';
import { makeScratchFolder } from '../scratch-folder.js';
import type { UpgradeQemuOptions, UpgradeQemuProgress } from './types.js';

/** One device. What a migration does at two ends is done at one. */
export interface UpgradeDevice {
  readonly id: string;
  readonly source: DeviceSocket;
  readonly destination: DeviceSocket;
  /** How its VMMs stood before. */
  readonly before: NextVmmStatus;
}

/** One that has stopped. */
export interface CapturedDevice extends UpgradeDevice {
  /** The old QEMU's view of it. */
  readonly view: PciView;
}

/** The same in all phases, but for what they have learnt of the devices. */
export interface Parties<Device extends UpgradeDevice = UpgradeDevice> {
  readonly options: UpgradeQemuOptions;
  /** Where the new QEMU is asked. */
  readonly qmpPath: string;
  readonly signal: AbortSignal;
  readonly source: Vm;
  readonly devices: readonly Device[];
  readonly replaced: 'transfer' | 'exec';
  /** Grows: what is no reason to go back. */
  readonly warnings: string[];
  readonly report: (progress: UpgradeQemuProgress) => void;
  readonly scratch: Scratch;
}

/** The new QEMU with cpr-transfer. It is there from the start, and can be asked when its devices are made. */
export interface NewProcess {
  readonly process: DetachedProcess;
  /** As soon as it can be asked. */
  vm: Vm | undefined;
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

/**
 * @param destination the new QEMU, if it was connected to
 * @param keep the scratch folder stays: a program has still to read what is in it. A later operation removes it
 */
export function closeParties(
  { source, devices, scratch }: Parties,
  destination: Vm | undefined,
  keep: boolean,
): void {
  for (const vm of [source, destination]) {
    vm?.watch.close();
    vm?.guest.close();
    vm?.qtest.close();
    vm?.qmp.close();
  }
  for (const device of devices) device.source.device.close();
  if (!keep) scratch.remove();
}
