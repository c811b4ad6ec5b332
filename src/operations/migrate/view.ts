// SPDX-License-Identifier: Apache-2.0
/** QEMU's view of the devices: captured from the one that stops, replayed to the one that goes on. */

import { DevstateError } from '../../errors.js';
import {
  capturePciView,
  findPciDevice,
  isSilenced,
  muteInterrupts,
  type PciDevice,
  type PciView,
  replayPciView,
  requireMessageSignalled,
  silenceIntx,
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

/** Where QEMU has the devices; it does not depend on them. */
export async function locate({ source, devices, signal }: CapturedVm): Promise<Map<string, PciDevice>> {
  const found = await forEachDevice(
    { devices },
    async ({ id }) => [id, await findPciDevice(source.qmp, id, { signal })] as const,
  );
  return new Map(found);
}

/** Captures each device's view, leaves a note of it for whoever has to undo this, and silences INTx. */
export async function capture(run: CapturedVm, locations: ReadonlyMap<string, PciDevice>): Promise<void> {
  const { qtest } = run.source;
  const devices = run.devices.map(({ id }) => id);
  // What is written to the source's QEMU is waited for, so that a rollback comes after it.
  await forEachDevice(run, async (device) => {
    const location = locations.get(device.id)!;
    device.view = await within(CAPTURE_TIMEOUT_MS, capturePciView(qtest, location, device.like));
    // From here on the source needs help to go on, should we die.
    const { id, view } = device;
    const [muted, exec] = [run.replaced === 'transfer', run.replaced === 'exec'];
    const { settings } = run;
    const how = {
      ...(settings === undefined ? {} : { settings }),
      ...(muted ? { muted } : {}),
      ...(exec ? { exec } : {}),
    };
    await writeNote(device.source.device, { id, devices, view, running: runsAtSource(run), ...how });
    run.signal.throwIfAborted();
    device.silenced = true;
    await within(CAPTURE_TIMEOUT_MS, silenceIntx(qtest, location, view));
    if (run.replaced !== undefined) requireMessageSignalled(location, view);
    // The other process has the same eventfds.
    if (muted) await within(CAPTURE_TIMEOUT_MS, muteInterrupts(qtest, location, view));
  });
}

/** {@link replay} for a source whose interrupts were muted, unless the device was reset since, or is gone. */
export async function replayIfSilenced(
  vm: Pick<Vm, 'qmp' | 'qtest'>,
  device: { readonly id: string; readonly view: PciView },
  signal: AbortSignal,
): Promise<void> {
  let location: PciDevice;
  try {
    location = await findPciDevice(vm.qmp, device.id, { signal });
  } catch (error) {
    if (error instanceof DevstateError && error.code === 'DEVSTATE_E_PCI_DEVICE') return;
    throw error;
  }
  if (await unlessAborted(isSilenced(vm.qtest, location, device.view), signal))
    await replay(vm, device, signal);
}

/** Makes a QEMU's view of a device what was captured. */
export async function replay(
  { qmp, qtest }: Pick<Vm, 'qmp' | 'qtest'>,
  { id, view }: Pick<RunDevice, 'id' | 'view'>,
  signal: AbortSignal,
): Promise<void> {
  if (view === undefined) throw new DevstateError('DEVSTATE_E_INTERNAL', 'its PCI view was not captured');
  // Bus numbers are the guest's, and have come with it.
  const location = await findPciDevice(qmp, id, { signal });
  await unlessAborted(replayPciView(qtest, location, view), signal);
}
