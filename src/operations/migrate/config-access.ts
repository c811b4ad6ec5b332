// SPDX-License-Identifier: Apache-2.0
/** That both QEMUs' machines let us reach the devices' configuration space, before the destination is used up. */
import { DevstateError } from '../../errors.js';
import { findConfigAccess, findPciDevice, type PciDevice, proveConfigAccess } from '../../qemu/index.js';
import { forEachDevice, type RunDevice, type Vm } from './run.js';

/** @throws DEVSTATE_E_PCI_CONFIG_ACCESS */
export async function requireConfigAccess(
  source: Vm,
  destination: Vm,
  devices: readonly RunDevice[],
  signal: AbortSignal,
): Promise<void> {
  await forEachDevice({ devices }, async ({ id }) => {
    await proveConfigAccess(source.qtest, await findPciDevice(source.qmp, id, { signal }));
    // Also for a device that is hidden behind a bridge for now: what is found is remembered for the pause.
    await findConfigAccess(destination.qmp, id, { signal });
    const device = await ifShown(findPciDevice(destination.qmp, id, { signal }));
    if (device !== undefined) await proveConfigAccess(destination.qtest, device);
  });
}

/** QEMU shows what is behind a bridge only when the bridge has a bus number, which the guest's state brings. */
async function ifShown(device: Promise<PciDevice>): Promise<PciDevice | undefined> {
  try {
    return await device;
  } catch (error) {
    if (error instanceof DevstateError && error.code === 'DEVSTATE_E_PCI_DEVICE') return undefined;
    throw error;
  }
}
