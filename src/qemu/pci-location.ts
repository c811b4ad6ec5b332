// SPDX-License-Identifier: Apache-2.0
/** Finds a device among those that QEMU's `query-pci` lists, behind bridges as well. */

import { DevstateError } from '../errors.js';
import * as z from '../zod.js';
import { findConfigAccess } from './config-access.js';
import type { PciLocation } from './pci-commands.js';
import type { QmpClient } from './qmp.js';

interface ListedDevice {
  bus: number;
  slot: number;
  function: number;
  qdev_id: string;
  id: { vendor: number; device: number };
  irq_pin: number;
  pci_bridge?:
    | { bus: { secondary: number; subordinate: number }; devices?: ListedDevice[] | undefined }
    | undefined;
}

const ListedDevice: z.ZodType<ListedDevice> = z.lazy(() =>
  z.object({
    bus: z.int().min(0).max(0xff),
    slot: z.int().min(0).max(0x1f),
    function: z.int().min(0).max(7),
    qdev_id: z.string(),
    id: z.object({ vendor: z.int(), device: z.int() }),
    irq_pin: z.int().default(0),
    pci_bridge: z
      .object({
        bus: z.object({ secondary: z.int().min(0).max(0xff), subordinate: z.int().min(0).max(0xff) }),
        devices: z.array(ListedDevice).optional(),
      })
      .optional(),
  }),
);

const Buses = z.array(z.object({ bus: z.int().min(0).max(0xff), devices: z.array(ListedDevice) }));

/** A device that QEMU has. */
export interface PciDevice extends PciLocation {
  readonly vendorId: number;
  /** 1 for INTA to 4 for INTD, 0 for none. */
  readonly interruptPin: number;
  readonly deviceId: number;
}

/**
 * The device with QEMU's id `qdevId`, as the guest's (or firmware's) bus numbers stand now: a bridge whose secondary
 * bus has no number yet hides what is behind it.
 * Throws DEVSTATE_E_PCI_DEVICE if there is none, DEVSTATE_E_PCI_CONFIG_ACCESS if its machine has no known way to its
 * configuration space.
 */
export async function findPciDevice(
  qmp: QmpClient,
  qdevId: string,
  options: { signal?: AbortSignal | undefined } = {},
): Promise<PciDevice> {
  const buses = await qmp.execute('query-pci', { schema: Buses, signal: options.signal });
  const queue = buses.flatMap((bus) => bus.devices);
  const known: string[] = [];
  for (let device = queue.shift(); device !== undefined; device = queue.shift()) {
    if (device.qdev_id === qdevId) {
      const { bus, slot, function: func, id } = device;
      const interruptPin = device.irq_pin;
      const config = await findConfigAccess(qmp, qdevId, options);
      return { bus, slot, function: func, config, vendorId: id.vendor, deviceId: id.device, interruptPin };
    }
    if (device.qdev_id !== '') known.push(device.qdev_id);
    queue.push(...(device.pci_bridge?.devices ?? []));
  }
  const list = known.length === 0 ? 'no device has an id' : `there are: ${known.join(', ')}`;
  throw new DevstateError('DEVSTATE_E_PCI_DEVICE', `QEMU has no PCI device with id "${qdevId}" (${list})`);
}

/** A bridge, and the buses behind it. */
export interface BridgeBuses {
  readonly bus: number;
  readonly slot: number;
  readonly function: number;
  /** 0 for a bridge that has no number yet. */
  readonly secondary: number;
  readonly subordinate: number;
}

/** The bus numbers that are in use: those of the root buses, and of the bridges that QEMU shows. */
export async function listBuses(
  qmp: QmpClient,
  options: { signal?: AbortSignal | undefined } = {},
): Promise<{ roots: number[]; bridges: BridgeBuses[] }> {
  const buses = await qmp.execute('query-pci', { schema: Buses, signal: options.signal });
  const queue = buses.flatMap((bus) => bus.devices);
  const bridges: BridgeBuses[] = [];
  for (let device = queue.shift(); device !== undefined; device = queue.shift()) {
    const { bus, slot, function: func, pci_bridge: bridge } = device;
    if (bridge === undefined) continue;
    bridges.push({ bus, slot, function: func, ...bridge.bus });
    queue.push(...(bridge.devices ?? []));
  }
  return { roots: buses.map(({ bus }) => bus), bridges };
}

/** Like {@link findPciDevice}; undefined where QEMU does not show it: it is gone, or behind a bridge without a bus number. */
export async function findShownPciDevice(
  qmp: QmpClient,
  qdevId: string,
  options: { signal?: AbortSignal | undefined } = {},
): Promise<PciDevice | undefined> {
  try {
    return await findPciDevice(qmp, qdevId, options);
  } catch (error) {
    if (error instanceof DevstateError && error.code === 'DEVSTATE_E_PCI_DEVICE') return undefined;
    throw error;
  }
}
