// SPDX-License-Identifier: Apache-2.0
/** One migration under way: who takes part, and how far each has come. */

import type { EndDescription, PageBitmap } from '../../migration/index.js';
import type { GuestWatch, MigrationWatch, PciView, QemuOutput, QmpClient, Qtest } from '../../qemu/index.js';
import type { DeviceSocket } from '../device-socket.js';
import type { StatePlan } from '../state-plan.js';
import type { StateTransfer } from '../state-transfer.js';
import type { Stand } from './guest.js';
import type { ChangedSettings } from './note.js';
import type { PageCopier } from './page-copy.js';
import type { PauseControl } from './pause.js';
import type { MigrateOptions, MigrateProgress, Phase } from './types.js';

/** One QEMU. */
export interface Vm {
  readonly qmp: QmpClient;
  readonly qtest: Qtest;
  readonly watch: MigrationWatch;
  /** What becomes of its VM, whoever brings it about. */
  readonly guest: GuestWatch;
  /** What it says on stderr, if that can be read. */
  readonly output?: QemuOutput | undefined;
}

/** One device, at both ends. */
export interface RunDevice {
  readonly id: string;
  readonly source: DeviceSocket;
  readonly destination: DeviceSocket;
  readonly description: EndDescription | undefined;
  /** How its state will travel. */
  readonly plan: StatePlan;
  /** Another one when its saving has begun anew. */
  transfer: StateTransfer;
  /** Configuration space of the destination's device while it was fresh: what its layout is. */
  like: Uint8Array | undefined;
  /** QEMU's view of the device at the source, once captured. */
  view: PciView | undefined;
  /** INTx was silenced at the source: COMMAND must be put back if the source goes on. */
  silenced: boolean;
  /** What the device wrote by DMA while the VM ran and QEMU did not notice. */
  readonly dirty: PageBitmap;
  /** The device writes by messages now, which QEMU notices: `dirty` grows no more. */
  byMessage: boolean;
  /** It has not been told yet to write by messages. */
  canSwitch: boolean;
  /** Brings the pages to the destination, and knows how fast. */
  readonly copier: PageCopier;
  /** How long capturing and replaying QEMU's view took in the rehearsal, ms; 0 if it could not be rehearsed. */
  viewMs: number;
  /** Bytes of its state per ms that pre-copy reached; 0 before. */
  stateRate: number;
  precopyBytes: number;
  stopBytes: number;
}

/** Whether the VM runs at the source, or would if QEMU's migration had not stopped it: as it is now, not as it was found. */
export function runsAtSource({ source }: { readonly source: Pick<Vm, 'guest'> }): boolean {
  return source.guest.guest.live;
}

/** Milliseconds since it was made, or since the last lap. */
export class Stopwatch {
  readonly started = performance.now();
  #lap = this.started;

  get elapsed(): number {
    return performance.now() - this.started;
  }

  lap(): number {
    const now = performance.now();
    const ms = now - this.#lap;
    this.#lap = now;
    return ms;
  }
}

/** How long work took that has begun just now, ms. */
export async function timed(work: Promise<unknown>): Promise<number> {
  const stopwatch = new Stopwatch();
  await work;
  return stopwatch.elapsed;
}

export interface Run {
  readonly options: MigrateOptions;
  /** Cancellation, time-out and lost servers; not listened to any more from the commit on. */
  readonly signal: AbortSignal;
  readonly source: Vm;
  readonly destination: Vm;
  readonly devices: readonly RunDevice[];
  readonly warnings: string[];
  readonly report: (progress: MigrateProgress) => void;
  phase: Phase;
  /** What was changed of the QEMUs' migration settings; undefined as long as nothing was. */
  settings: ChangedSettings | undefined;
  /** From pre-copy on. */
  pause: PauseControl | undefined;
  /** How things stood when the VM had been stopped. */
  stand: Stand | undefined;
  /** QEMU was told to migrate. */
  started: boolean;
  /** The destination has all that the source's device servers can give. */
  sourceSpent: boolean;
  /** The destination was told to run the VM, and nobody can tell whether it does. */
  mayRunThere: boolean;
}

/**
 * Like Promise.all, but settles when all have: what is undone after a failure must not be under way any more.
 * @throws the first error in order
 */
export async function together<T extends readonly unknown[]>(
  work: readonly [...{ [K in keyof T]: Promise<T[K]> }],
): Promise<T> {
  await Promise.allSettled(work);
  return (await Promise.all(work)) as unknown as T;
}

/** Runs `work` for all devices at the same time. */
export function forEachDevice<Device extends Pick<RunDevice, 'id'>, T>(
  run: { readonly devices: readonly Device[] },
  work: (device: Device) => Promise<T>,
): Promise<T[]> {
  return together(
    run.devices.map(async (device) => {
      try {
        return await work(device);
      } catch (error) {
        throw aboutDevice(error, device.id);
      }
    }),
  );
}

/** Says which device an error is about, when there is an error of ours to say it in. */
function aboutDevice(error: unknown, id: string): unknown {
  if (error instanceof Error && !error.message.startsWith('device '))
    error.message = `device ${id}: ${error.message}`;
  return error;
}

export function closeRun(run: Run): void {
  for (const vm of [run.source, run.destination]) {
    vm.watch.close();
    vm.guest.close();
    vm.output?.close();
    vm.qtest.close();
    vm.qmp.close();
  }
  for (const device of run.devices) {
    device.copier.close();
    device.source.device.close();
    device.destination.device.close();
  }
}
