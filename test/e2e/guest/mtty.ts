// SPDX-License-Identifier: Apache-2.0
/** The kernel's sample devices mtty, made and looked at from the guest: serial ports whose state is their registers. */
import { readdirSync, readlinkSync, writeFileSync } from 'node:fs';
import { basename } from 'node:path';
import { Cdev, Iommufd } from '../../../src/vfio/index.js';

const PARENT = '/sys/devices/virtual/mtty/mtty/mdev_supported_types';

/** Registers of a port, `linux/serial_reg.h`. */
export const Uart = { DATA: 0, IER: 1, FCR: 2, LCR: 3, MCR: 4, LSR: 5, SCR: 7 } as const;

export interface Mtty {
  readonly uuid: string;
  /** Path of its own file. */
  readonly path: string;
  /** As GROUP:NAME. */
  readonly inGroup: string;
}

/** Makes a device with one port or two; the guest ends with it. */
export function makeMtty(uuid: string, ports: 1 | 2): Mtty {
  writeFileSync(`${PARENT}/mtty-${ports}/create`, uuid);
  const sysfs = `/sys/bus/mdev/devices/${uuid}`;
  const [name] = readdirSync(`${sysfs}/vfio-dev`);
  const group = basename(readlinkSync(`${sysfs}/iommu_group`));
  return { uuid, path: `/dev/vfio/devices/${name}`, inGroup: `${group}:${uuid}` };
}

/** Opens it as a VMM would, and gives it back. */
export function withMtty<T>({ path }: Pick<Mtty, 'path'>, work: (device: Cdev) => T): T {
  const iommufd = Iommufd.open();
  const device = Cdev.open(path);
  try {
    device.bind(iommufd);
    return work(device);
  } finally {
    device.close();
    iommufd.close();
  }
}

export function readRegister(device: Cdev, port: number, register: number): number {
  const byte = new Uint8Array(1);
  device.readRegion(port, register, byte);
  return byte[0]!;
}

export function writeRegister(device: Cdev, port: number, register: number, value: number): void {
  device.writeRegion(port, register, Uint8Array.of(value));
}

/** Value of FCR that empties the buffers; the lowest bit keeps them in use. */
const CLEAR = 7;

/** Leaves `text` in the port's loop-back buffer, and values in its registers that no fresh device has. */
export function fillPort(device: Cdev, port: number, text: string): void {
  writeRegister(device, port, Uart.SCR, 0x50 + port);
  writeRegister(device, port, Uart.MCR, 0x0b);
  writeRegister(device, port, Uart.FCR, CLEAR);
  for (const byte of Buffer.from(text)) writeRegister(device, port, Uart.DATA, byte);
  writeRegister(device, port, Uart.LCR, 0x1b);
}

/** What {@link fillPort} left; reading empties the buffer. */
export function drainPort(device: Cdev, port: number): { registers: number[]; text: string } {
  const registers = [Uart.SCR, Uart.MCR, Uart.LCR].map((register) => readRegister(device, port, register));
  const bytes: number[] = [];
  while ((readRegister(device, port, Uart.LSR) & 1) !== 0) bytes.push(readRegister(device, port, Uart.DATA));
  return { registers, text: Buffer.from(bytes).toString('latin1') };
}
