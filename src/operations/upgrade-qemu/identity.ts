// SPDX-License-Identifier: Apache-2.0
/** That the QEMUs and device servers which were named for a replacement belong together. */

import { DevstateError } from '../../errors.js';
import { listVfioUserDevices } from '../../qemu/index.js';
import { WitnessedVmm } from '../../wire/index.js';
import { type Claim, type NamedDevices, proveClaims, whyNotThere } from '../identity/index.js';
import type { Vm } from '../migrate/parties.js';
import type { Parties, UpgradeDevice } from './parties.js';
import type { UpgradeQemuOptions } from './types.js';

export function namedIn({ devices }: Pick<UpgradeQemuOptions, 'devices'>): NamedDevices {
  return {
    ids: devices.map(({ id }) => id),
    without: undefined,
    usage: (id) => `--device ${id},server=PATH`,
  };
}

/** What is to be proven of a QEMU. */
export function claimsOf(
  devices: readonly UpgradeDevice[],
  { unproven = [] }: Pick<UpgradeQemuOptions, 'unproven'>,
): Claim[] {
  return devices
    .filter(({ id }) => !unproven.includes(id))
    .map(({ id, source: { path, device } }) => ({
      id,
      socket: { path, role: `the server of device ${id}`, device },
    }));
}

/**
 * That the QEMU which answers is the new VMM of each device's server. Its command line may name other sockets, or
 * another QEMU may listen where it is asked. Before any device becomes its own.
 * @throws DEVSTATE_E_INCOMPATIBLE
 */
export async function requireNewQemu(
  { devices, options }: Pick<Parties, 'devices' | 'options'>,
  { qmp, qtest }: Pick<Vm, 'qmp' | 'qtest'>,
  signal: AbortSignal,
): Promise<void> {
  const present = await listVfioUserDevices(qmp, { signal });
  const reasons: string[] = [];
  for (const { id } of devices) {
    const reason = await whyNotThere(qmp, 'new', { id, present }, signal);
    if (reason !== undefined) reasons.push(reason);
  }
  const qemu = { name: 'the new QEMU', qmp, qtest, devices: present, isFresh: true };
  const vmms = [WitnessedVmm.OTHER];
  if (reasons.length === 0)
    reasons.push(...(await proveClaims({ ...qemu, vmms }, claimsOf(devices, options), [], signal)));
  if (reasons.length === 0) return;
  const message = `the QEMU that answers at ${qmp.path} cannot have the VM: ${reasons.join('; ')}`;
  throw new DevstateError('DEVSTATE_E_INCOMPATIBLE', message);
}
