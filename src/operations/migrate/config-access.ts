// SPDX-License-Identifier: Apache-2.0
/** That both QEMUs' machines let us reach the devices' configuration space, before the destination is used up. */
import { awaitPciDevice, findConfigAccess, findShownPciDevice, proveConfigAccess } from '../../qemu/index.js';
import { forEachDevice, type RunDevice, type Vm } from './run.js';

/** @throws DEVSTATE_E_PCI_CONFIG_ACCESS */
export async function requireConfigAccess(
  source: Vm,
  destination: Vm,
  devices: readonly RunDevice[],
  signal: AbortSignal,
): Promise<void> {
  await forEachDevice({ devices }, async ({ id }) => {
    await proveConfigAccess(source.qtest, await awaitPciDevice(source.qmp, id, { signal }));
    // Also for a device that is hidden behind a bridge for now: what is found is remembered for the pause.
    await findConfigAccess(destination.qmp, id, { signal });
    const device = await findShownPciDevice(destination.qmp, id, { signal });
    if (device !== undefined) await proveConfigAccess(destination.qtest, device);
  });
}
