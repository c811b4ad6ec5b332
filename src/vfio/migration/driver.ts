// SPDX-License-Identifier: Apache-2.0
/**
 * Which driver of the kernel a VFIO device has, and what can be known of the device from outside: its state is the
 * driver's affair, and nothing in it need say what it is.
 */

import { readFileSync, readlinkSync } from 'node:fs';
import { basename, join } from 'node:path';
import { type DeviceModel, findFormat, type RegisteredFormat } from '../../formats/index.js';

export interface KernelDriver {
  /** As sysfs has it: `mlx5_vfio_pci`, `mtty`. */
  readonly name: string;
  /** The format of its state; undefined for a driver that no one has registered one for. */
  readonly format: RegisteredFormat | undefined;
  /** What must be the same where the state is loaded. Undefined likewise. */
  readonly model: DeviceModel | undefined;
  /** Identity of a PCI device that is not mediated. */
  readonly pci: { readonly vendorId: number; readonly deviceId: number } | undefined;
}

/** @param sysfs folder of the device, as in `/sys/bus/pci/devices/0000:00:03.0` */
export function kernelDriver(sysfs: string): KernelDriver {
  const name = linkName(sysfs, 'driver') ?? '';
  const pci = pciIds(sysfs);
  const format = findFormat(`org.kernel.vfio.${familyOf(name)}`);
  const uri = format?.models[0];
  // The kind of a mediated device, as in `mtty-2`.
  const type = linkName(sysfs, 'mdev_type');
  const parameters = {
    ...(type === undefined ? {} : { type }),
    ...(pci === undefined ? {} : { pci: `${hex4(pci.vendorId)}:${hex4(pci.deviceId)}` }),
  };
  return { name, format, model: uri === undefined ? undefined : { uri, parameters }, pci };
}

/** `mlx5_vfio_pci` → `mlx5`, `hisi_acc_vfio_pci` → `hisi-acc`: the part that tells the drivers apart. */
function familyOf(driver: string): string {
  return driver.replaceAll('_', '-').replace(/-vfio-pci$/, '');
}

function pciIds(sysfs: string): KernelDriver['pci'] {
  try {
    const id = (name: string): number => Number(readFileSync(join(sysfs, name), 'utf8'));
    return { vendorId: id('vendor'), deviceId: id('device') };
  } catch {
    return undefined;
  }
}

function linkName(sysfs: string, link: string): string | undefined {
  try {
    return basename(readlinkSync(join(sysfs, link)));
  } catch {
    return undefined;
  }
}

function hex4(id: number): string {
  return id.toString(16).padStart(4, '0');
}
