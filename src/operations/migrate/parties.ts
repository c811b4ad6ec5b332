// SPDX-License-Identifier: Apache-2.0
/** Who takes part in a migration: two QEMUs, and the devices with a server at either end. */

import type { EndDescription, PageBitmap } from '../../migration/index.js';
import type { GuestWatch, MigrationWatch, PciView, QemuOutput, QmpClient, Qtest } from '../../qemu/index.js';
import type { DeviceSocket } from '../device-socket.js';
import type { StatePlan } from '../state-plan.js';
import type { DeviceStream } from './device-stream.js';
import type { PageCopier } from './page-copy.js';
import type { MigrateOptions, MigrateProgress } from './types.js';

/** One QEMU. */
export interface Vm {
  readonly qmp: QmpClient;
  readonly qtest: Qtest;
  readonly watch: MigrationWatch;
  /** What becomes of its VM, no matter who causes it. */
  readonly guest: GuestWatch;
  /** What it says on stderr, if that can be read. */
  readonly output?: QemuOutput | undefined;
}

/** One device, at both ends. */
export interface MovedDevice {
  readonly id: string;
  readonly source: DeviceSocket;
  readonly destination: DeviceSocket;
  readonly description: EndDescription | undefined;
  /** How its state will travel. */
  readonly plan: StatePlan;
  /** Brings the pages to the destination, and knows how fast. */
  readonly copier: PageCopier;
}

/** One whose state is on its way. */
export interface SendingDevice extends MovedDevice {
  readonly stream: DeviceStream;
  /** What the device wrote by DMA while the VM ran and QEMU did not notice. */
  readonly dirty: PageBitmap;
}

/** One with which the steps of the pause were rehearsed. */
export interface RehearsedDevice extends SendingDevice {
  /** How the fresh device of the destination's QEMU was seen; undefined where QEMU shows it only with the guest's state. */
  readonly rehearsed: RehearsedView | undefined;
}

export interface RehearsedView {
  /** Configuration space of the device: what its layout is. */
  readonly like: Uint8Array;
  /** How long capturing and replaying QEMU's view took, ms. */
  readonly viewMs: number;
}

/** One that has stopped, and whose whole state was moved. */
export interface CapturedDevice extends RehearsedDevice {
  /** QEMU's view of the device at the source. */
  readonly view: PciView;
}

/** The same in all phases, but for what they have learnt of the devices. */
export interface Parties<Device extends MovedDevice = MovedDevice> {
  readonly options: MigrateOptions;
  /** Cancellation, time-out and lost servers; not listened to any more from the commit on. */
  readonly signal: AbortSignal;
  readonly source: Vm;
  readonly destination: Vm;
  readonly devices: readonly Device[];
  /** The sockets to which the destination's QEMU has its devices connected, by id, as far as it tells. */
  readonly destinationSockets: Readonly<Record<string, string>>;
  /** Grows: what is no reason to go back. */
  readonly warnings: string[];
  readonly report: (progress: MigrateProgress) => void;
}

/** Whether the VM runs at the source, or would if QEMU's migration had not stopped it: as it is now, not as it was found. */
export function runsAtSource({ source }: { readonly source: Pick<Vm, 'guest'> }): boolean {
  return source.guest.guest.live;
}

export function closeParties({ source, destination, devices }: Parties): void {
  for (const vm of [source, destination]) {
    vm.watch.close();
    vm.guest.close();
    vm.output?.close();
    vm.qtest.close();
    vm.qmp.close();
  }
  for (const device of devices) {
    device.copier.close();
    device.source.device.close();
    device.destination.device.close();
  }
}
