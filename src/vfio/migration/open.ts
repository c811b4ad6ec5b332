// SPDX-License-Identifier: Apache-2.0
/**
 * Opens a device for its state alone: nothing is mapped for DMA. By its own file it needs an iommufd to be bound to; by
 * its group, a container with an IOMMU.
 */

import { basename } from 'node:path';
import { DevstateError } from '../../errors.js';
import { Cdev } from '../cdev.js';
import { Container } from '../container.js';
import type { VfioDevice } from '../device.js';
import { Group } from '../group.js';
import { Iommufd } from '../iommufd.js';
import { kernelDriver } from './driver.js';
import { KernelMigration } from './kernel-migration.js';

/** `12:0000:03:00.0`: a group and a device in it. Not `0000:03:00.0`, which looks so. */
const IN_GROUP = /^((?:noiommu-)?(?:0|[1-9]\d*)):(.+)$/;

/** Whether a text names a VFIO device: the path of its file, or `GROUP:NAME`. */
export function isVfioDeviceName(text: string): boolean {
  return text.startsWith('/dev/vfio/devices/') || (IN_GROUP.test(text) && !text.includes('/'));
}

/**
 * Opens `/dev/vfio/devices/vfioN`, or the device NAME of a group as `GROUP:NAME`. Closing the migration closes it all.
 * What a process left that died at it is ended.
 * @throws DEVSTATE_E_VFIO_BUSY while a VMM, or anybody, has it open; DEVSTATE_E_VFIO_ACCESS, DEVSTATE_E_VFIO_GROUP
 */
export async function openKernelMigration(name: string): Promise<KernelMigration> {
  const [, group, inGroup] = IN_GROUP.exec(name) ?? [];
  if (!isVfioDeviceName(name)) {
    const message = `${name} is no VFIO device: give /dev/vfio/devices/vfioN, or GROUP:NAME as in 12:0000:03:00.0`;
    throw new DevstateError('DEVSTATE_E_USAGE', message);
  }
  const opened: { close(): void }[] = [];
  const closeAll = (): void => {
    for (const one of opened.splice(0).reverse()) one.close();
  };
  const keep = <T extends { close(): void }>(one: T): T => {
    opened.push(one);
    return one;
  };
  try {
    const [device, sysfs] =
      group !== undefined && inGroup !== undefined
        ? [openInGroup(group, inGroup, keep), `/sys/kernel/iommu_groups/${group}/devices/${inGroup}`]
        : [openBound(name, keep), `/sys/class/vfio-dev/${basename(name)}/device`];
    const migration = new KernelMigration(device, kernelDriver(sysfs), closeAll);
    await migration.flags();
    await migration.settle();
    return migration;
  } catch (error) {
    closeAll();
    throw error;
  }
}

type Keep = <T extends { close(): void }>(one: T) => T;

function openBound(path: string, keep: Keep): VfioDevice {
  const iommufd = keep(Iommufd.open());
  const device = keep(Cdev.open(path));
  device.bind(iommufd);
  return device;
}

function openInGroup(id: string, name: string, keep: Keep): VfioDevice {
  const container = keep(Container.open());
  const group = keep(Group.open(id));
  group.setContainer(container);
  container.setIommu();
  return keep(group.openDevice(name));
}
