// SPDX-License-Identifier: Apache-2.0
/** What the machine's IOMMU groups are, from sysfs: which can be given to VFIO, and what stands in the way of the others. */

import { existsSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { basename, join } from 'node:path';
import type { GroupId } from './group.js';

export interface ListedDevice {
  /** Address, or UUID of a mediated device. */
  readonly name: string;
  /** `1234:11e8`: vendor and device id of a PCI device. */
  readonly id: string | null;
  /** Kind of a PCI device, as in `0x00ff00`. */
  readonly class: string | null;
  readonly driver: string | null;
  /** Name of the device's own file in /dev/vfio/devices, where the kernel has such. */
  readonly cdev: string | null;
  /** Keeps the group from being viable. */
  readonly inTheWay: boolean;
}

export interface ListedGroup {
  readonly id: GroupId;
  readonly devices: readonly ListedDevice[];
  /** A driver of VFIO has at least one device of it, and no other driver has any. */
  readonly viable: boolean;
  /** What stands in the way, or what is to be done before it can be held; empty when nothing is. */
  readonly reasons: readonly string[];
}

export interface VfioList {
  /** Whether /dev/vfio/vfio and /dev/iommu are there. */
  readonly container: boolean;
  readonly iommufd: boolean;
  readonly groups: readonly ListedGroup[];
}

/** Drivers that a viable group may have besides those of VFIO: they do no DMA for the host. */
const HARMLESS = new Set(['pci-stub', 'pcieport', 'shpchp']);

/**
 * Reads it. @param root the directory that `sys` and `dev` are in
 */
export function listVfio(root = '/'): VfioList {
  const groups = join(root, 'sys/kernel/iommu_groups');
  const ids = entries(groups).sort((a, b) => Number(a) - Number(b));
  return {
    container: existsSync(join(root, 'dev/vfio/vfio')),
    iommufd: existsSync(join(root, 'dev/iommu')),
    groups: ids.map((id) => readGroup(join(groups, id), id, root)),
  };
}

/** Names of the devices of a group that a driver of VFIO has. */
export function devicesOfGroup(id: GroupId, root = '/'): string[] {
  const directory = join(root, 'sys/kernel/iommu_groups', id.replace(/^noiommu-/, ''));
  return readGroup(directory, id, root)
    .devices.filter(({ driver }) => isVfioDriver(driver))
    .map(({ name }) => name);
}

function readGroup(directory: string, number: string, root: string): ListedGroup {
  const id = text(join(directory, 'name')) === 'vfio-noiommu' ? `noiommu-${number}` : number;
  const devices = entries(join(directory, 'devices'))
    .sort()
    .map((name) => readDevice(join(directory, 'devices', name), name));
  const held = devices.some(({ driver }) => isVfioDriver(driver));
  const reasons = devices.flatMap(({ name, driver, inTheWay }) =>
    inTheWay && held ? [`${name} is bound to the host driver ${driver}`] : [],
  );
  if (!held) reasons.push(`no device of it is bound to vfio-pci${driversOf(devices)}`);
  else if (!existsSync(join(root, 'dev/vfio', id))) reasons.push(`/dev/vfio/${id} does not exist`);
  return { id, devices, viable: held && !devices.some(({ inTheWay }) => inTheWay), reasons };
}

function driversOf(devices: readonly ListedDevice[]): string {
  const bound = devices.flatMap(({ name, driver }) => (driver === null ? [] : [`${name}: ${driver}`]));
  return bound.length === 0 ? '' : ` (${bound.join(', ')})`;
}

function readDevice(path: string, name: string): ListedDevice {
  const vendor = text(join(path, 'vendor'));
  const device = text(join(path, 'device'));
  const driver = link(join(path, 'driver'));
  return {
    name,
    id: vendor === null || device === null ? null : `${vendor.slice(2)}:${device.slice(2)}`,
    class: text(join(path, 'class')),
    driver,
    cdev: entries(join(path, 'vfio-dev'))[0] ?? null,
    inTheWay: driver !== null && !isVfioDriver(driver) && !HARMLESS.has(driver),
  };
}

/** `vfio-pci`, drivers of one kind of device that build on it (`mlx5_vfio_pci`), and those of mediated devices. */
function isVfioDriver(driver: string | null): boolean {
  return driver !== null && /vfio|mdev|mtty|mdpy|mbochs/.test(driver);
}

function entries(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    return [];
  }
}

function text(path: string): string | null {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return null;
  }
}

function link(path: string): string | null {
  try {
    return basename(readlinkSync(path));
  } catch {
    return null;
  }
}
