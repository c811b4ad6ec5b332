// SPDX-License-Identifier: Apache-2.0
/** QEMU's view of the devices: captured from the one that stops, replayed to the one that continues. */

import {
  capturePciView,
  findShownPciDevice,
  isMuted,
  isSilenced,
  muteInterrupts,
  type PciDevice,
  type PciLocation,
  type PciView,
  replayPciView,
  requireMessageSignalled,
  restoreCommand,
  silenceIntx,
  withLocation,
} from '../../qemu/index.js';
import { forEachDevice } from '../phased.js';
import { unlessAborted, within } from '../waiting.js';
import { type Noted, noted, writeNote } from './note.js';
import { type RehearsedDevice, runsAtSource, type Vm } from './parties.js';
import type { SettingsRecord } from './qemu-settings.js';

/** How long the source's QEMU may take to show its view of a device, ms. */
const CAPTURE_TIMEOUT_MS = 30_000;

/** One device of a VM that stands. */
export type StoppedDevice = Pick<RehearsedDevice, 'id' | 'source'> &
  Partial<Pick<RehearsedDevice, 'rehearsed'>>;

/** As much of an operation as is needed to capture. */
export interface StoppedVm<Device extends StoppedDevice = StoppedDevice> {
  readonly source: Pick<Vm, 'qmp' | 'qtest' | 'guest'>;
  readonly devices: readonly Device[];
  readonly settings: SettingsRecord;
  readonly destinationSockets?: Noted['destinationSockets'];
  /** QEMU is about to be replaced by another one, or to execute another program. */
  readonly replaced?: 'transfer' | 'exec';
  /** Takes the view of each device before its INTx is silenced, by id. */
  readonly silenced: Map<string, PciView>;
  readonly signal: AbortSignal;
}

/** Where QEMU shows a device; undefined for one that a reset has hidden behind a bridge. */
export type Locations = ReadonlyMap<string, PciDevice | undefined>;

/** Where QEMU has the devices; it does not depend on them. */
export async function locate({ source, devices, signal }: StoppedVm): Promise<Locations> {
  const found = await forEachDevice(
    { devices },
    async ({ id }) => [id, await findShownPciDevice(source.qmp, id, { signal })] as const,
  );
  return new Map(found);
}

/** Captures each device's view, leaves a note of it for `recover`, which may have to undo this, and silences INTx. */
export async function capture<Device extends StoppedDevice>(
  run: StoppedVm<Device>,
  locations: Locations,
): Promise<(Device & { readonly view: PciView })[]> {
  const { qtest } = run.source;
  const devices = run.devices.map(({ id }) => id);
  // What is written to the source's QEMU is waited for, so that a rollback comes after it.
  return forEachDevice(run, async (device) => {
    const shown = locations.get(device.id);
    const show = (location: PciLocation): Promise<PciView> =>
      within(CAPTURE_TIMEOUT_MS, capturePciView(qtest, location, device.rehearsed?.like));
    const view =
      shown === undefined ? await withLocation(run.source, device.id, true, show) : await show(shown);
    // From here on the source needs help to continue, should we die.
    const { id } = device;
    const [muted, exec] = [run.replaced === 'transfer', run.replaced === 'exec'];
    const how = {
      ...noted({ ...run, settings: run.settings.current }),
      ...(muted ? { muted } : {}),
      ...(exec ? { exec } : {}),
    };
    await writeNote(device.source.device, { id, devices, view, running: runsAtSource(run), ...how });
    run.signal.throwIfAborted();
    // Right after a reset there is no interrupt to be silenced, or lost.
    if (shown === undefined) return { ...device, view };
    run.silenced.set(id, view);
    await within(CAPTURE_TIMEOUT_MS, silenceIntx(qtest, shown, view));
    if (run.replaced !== undefined) requireMessageSignalled(shown, view);
    // The other process has the same eventfds.
    if (muted) await within(CAPTURE_TIMEOUT_MS, muteInterrupts(qtest, shown, view));
    return { ...device, view };
  });
}

/** {@link replay} for a source whose interrupts were muted, unless the device was reset since, or is gone. */
export async function replayIfSilenced(
  vm: Pick<Vm, 'qmp' | 'qtest'>,
  device: { readonly id: string; readonly view: PciView },
  signal: AbortSignal,
): Promise<void> {
  const location = await findShownPciDevice(vm.qmp, device.id, { signal });
  if (location === undefined) return;
  if (await unlessAborted(isMuted(vm.qtest, location, device.view), signal)) await replay(vm, device, signal);
}

/** COMMAND as a reset leaves it, where INTx was silenced only after the reset: it is not to be taken for the guest's. */
export async function clearSilence(
  vm: Pick<Vm, 'qmp' | 'qtest'>,
  { id, view }: { readonly id: string; readonly view: PciView },
  signal: AbortSignal,
): Promise<void> {
  const location = await findShownPciDevice(vm.qmp, id, { signal });
  if (location === undefined) return;
  if (await unlessAborted(isSilenced(vm.qtest, location, view), signal))
    await within(CAPTURE_TIMEOUT_MS, restoreCommand(vm.qtest, location, { ...view, command: 0 }));
}

/** Makes a QEMU's view of a device what was captured. The VM stands. */
export async function replay(
  vm: Pick<Vm, 'qmp' | 'qtest'>,
  { id, view }: { readonly id: string; readonly view: PciView },
  signal: AbortSignal,
): Promise<void> {
  const work = (location: PciLocation): Promise<void> => replayPciView(vm.qtest, location, view);
  // Bus numbers are the guest's, and have come with it; none, if it had just been reset.
  await unlessAborted(withLocation(vm, id, true, work, { signal }), signal);
}
