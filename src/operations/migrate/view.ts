// SPDX-License-Identifier: Apache-2.0
/** QEMU's view of the devices: captured from the one that stops, replayed to the one that goes on. */

import { DevstateError } from '../../errors.js';
import {
  capturePciView,
  findShownPciDevice,
  isSilenced,
  muteInterrupts,
  type PciDevice,
  type PciLocation,
  type PciView,
  replayPciView,
  requireMessageSignalled,
  silenceIntx,
  withLocation,
} from '../../qemu/index.js';
import { unlessAborted, within } from '../waiting.js';
import { type ChangedSettings, writeNote } from './note.js';
import { forEachDevice, type RunDevice, runsAtSource, type Vm } from './run.js';

/** How long the source's QEMU may take to show its view of a device, ms. */
const CAPTURE_TIMEOUT_MS = 30_000;

/** As much of an operation as is needed to capture. */
export interface CapturedVm {
  readonly source: Pick<Vm, 'qmp' | 'qtest' | 'guest'>;
  readonly devices: readonly Pick<RunDevice, 'id' | 'source' | 'like' | 'view' | 'silenced'>[];
  readonly settings: ChangedSettings | undefined;
  /** QEMU is about to be replaced by another one, or to execute another program. */
  readonly replaced?: 'transfer' | 'exec';
  readonly signal: AbortSignal;
}

/** Where QEMU shows a device; undefined for one that a reset has hidden behind a bridge. */
export type Locations = ReadonlyMap<string, PciDevice | undefined>;

/** Where QEMU has the devices; it does not depend on them. */
export async function locate({ source, devices, signal }: CapturedVm): Promise<Locations> {
  const found = await forEachDevice(
    { devices },
    async ({ id }) => [id, await findShownPciDevice(source.qmp, id, { signal })] as const,
  );
  return new Map(found);
}

/** Captures each device's view, leaves a note of it for whoever has to undo this, and silences INTx. */
export async function capture(run: CapturedVm, locations: Locations): Promise<void> {
  const { qtest } = run.source;
  const devices = run.devices.map(({ id }) => id);
  // What is written to the source's QEMU is waited for, so that a rollback comes after it.
  await forEachDevice(run, async (device) => {
    const shown = locations.get(device.id);
    const show = async (location: PciLocation): Promise<PciView> => {
      device.view = await within(CAPTURE_TIMEOUT_MS, capturePciView(qtest, location, device.like));
      return device.view;
    };
    const view =
      shown === undefined ? await withLocation(run.source, device.id, true, show) : await show(shown);
    // From here on the source needs help to go on, should we die.
    const { id } = device;
    const [muted, exec] = [run.replaced === 'transfer', run.replaced === 'exec'];
    const { settings } = run;
    const how = {
      ...(settings === undefined ? {} : { settings }),
      ...(muted ? { muted } : {}),
      ...(exec ? { exec } : {}),
    };
    await writeNote(device.source.device, { id, devices, view, running: runsAtSource(run), ...how });
    run.signal.throwIfAborted();
    // Right after a reset there is no interrupt to be silenced, or lost.
    if (shown === undefined) return;
    device.silenced = true;
    await within(CAPTURE_TIMEOUT_MS, silenceIntx(qtest, shown, view));
    if (run.replaced !== undefined) requireMessageSignalled(shown, view);
    // The other process has the same eventfds.
    if (muted) await within(CAPTURE_TIMEOUT_MS, muteInterrupts(qtest, shown, view));
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
  if (await unlessAborted(isSilenced(vm.qtest, location, device.view), signal))
    await replay(vm, device, signal);
}

/** Makes a QEMU's view of a device what was captured. The VM stands. */
export async function replay(
  vm: Pick<Vm, 'qmp' | 'qtest'>,
  { id, view }: Pick<RunDevice, 'id' | 'view'>,
  signal: AbortSignal,
): Promise<void> {
  if (view === undefined) throw new DevstateError('DEVSTATE_E_INTERNAL', 'its PCI view was not captured');
  const work = (location: PciLocation): Promise<void> => replayPciView(vm.qtest, location, view);
  // Bus numbers are the guest's, and have come with it; none, if it had just been reset.
  await unlessAborted(withLocation(vm, id, true, work, { signal }), signal);
}
