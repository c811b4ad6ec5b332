// SPDX-License-Identifier: Apache-2.0
/** That the way to a device's configuration space leads there, before anything depends on it. */
import { DevstateError } from '../errors.js';
import { configRead, configValues } from './pci-commands.js';
import { Register } from './pci-config.js';
import type { PciDevice } from './pci-location.js';
import type { QtestAccess } from './qtest.js';

/**
 * Reads the identity of a device by way of an ECAM and compares it with what `query-pci` says. The VM may run. A PC's
 * port pair is not used: its latch is in use while the guest runs, and it is always at the same place.
 * @throws DEVSTATE_E_PCI_CONFIG_ACCESS when something else is there
 */
export async function proveConfigAccess(qtest: QtestAccess, device: PciDevice): Promise<void> {
  const { config, vendorId, deviceId } = device;
  if (config.kind !== 'ecam') return;
  const reads = configRead(device, Register.id, 'l');
  const [found = 0] = configValues(reads, await qtest.run(reads));
  const expected = ((deviceId << 16) | vendorId) >>> 0;
  if (found === expected) return;
  const [there, told] = [found, expected].map((value) => `0x${value.toString(16).padStart(8, '0')}`);
  const where = `the ECAM at 0x${config.base.toString(16)}`;
  throw new DevstateError(
    'DEVSTATE_E_PCI_CONFIG_ACCESS',
    `${where} has ${there} as vendor and device id, query-pci ${told}; see whether the device's server still runs`,
  );
}
