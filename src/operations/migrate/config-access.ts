// SPDX-License-Identifier: Apache-2.0
/** That both QEMUs' machines let us reach the devices' configuration space, before the destination is used up. */
import { DevstateError } from '../../errors.js';
import {
  awaitPciDevice,
  findConfigAccess,
  findShownPciDevice,
  proveConfigAccess,
  type QmpClient,
} from '../../qemu/index.js';
import { forEachDevice } from '../phased.js';
import { unlessAborted } from '../waiting.js';
import type { MovedDevice, Vm } from './parties.js';

/** @throws DEVSTATE_E_PCI_CONFIG_ACCESS, naming the QEMU and the device */
export async function requireConfigAccess(
  source: Vm,
  destination: Vm,
  devices: readonly MovedDevice[],
  signal: AbortSignal,
): Promise<void> {
  await forEachDevice({ devices }, async ({ id }) => {
    await at(`the source QEMU (${source.qmp.path})`, async () => {
      const device = await awaitPciDevice(source.qmp, id, { signal });
      await unlessAborted(proveConfigAccess(source.qtest, device), signal);
    });
    await at(`the destination QEMU (${destination.qmp.path})`, async () => {
      // Also for a device that is hidden behind a bridge for now: what is found is remembered for the pause.
      await findConfigAccess(destination.qmp, id, { signal });
      const device = await findShownPciDevice(destination.qmp, id, { signal });
      if (device !== undefined) await unlessAborted(proveConfigAccess(destination.qtest, device), signal);
    });
  });
}

/** What the QEMUs' machines lack, as sentences: found by QMP alone, for a check that is refused before it needs qtest. */
export async function whyNoConfigAccess(
  source: QmpClient,
  destination: QmpClient,
  devices: readonly Pick<MovedDevice, 'id'>[],
  signal: AbortSignal,
): Promise<string[]> {
  const reasons: string[] = [];
  for (const { id } of devices) {
    for (const [where, qmp] of [
      ['source', source],
      ['destination', destination],
    ] as const) {
      await at(`device ${id}: the ${where} QEMU (${qmp.path})`, async () => {
        await findConfigAccess(qmp, id, { signal });
      }).catch((error: unknown) => {
        if (!isNoConfigAccess(error)) throw error;
        reasons.push(error.message);
      });
    }
  }
  return reasons;
}

function isNoConfigAccess(error: unknown): error is DevstateError {
  return error instanceof DevstateError && error.code === 'DEVSTATE_E_PCI_CONFIG_ACCESS';
}

async function at(where: string, work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (error) {
    if (!isNoConfigAccess(error)) throw error;
    throw new DevstateError(error.code, `${where}: ${error.message}`, { cause: error });
  }
}
