// SPDX-License-Identifier: Apache-2.0
/** What the guest of a stand-in for QEMU has done with its scratch device, as far as it can be seen afterwards. */
import type { PciFunction } from '../../support/pci-function.js';
import type { QemuModel } from '../../support/qemu-model.js';
import { Register, type ScratchDevice } from '../../support/scratch-device.js';

/** Where the guest's program keeps something, and where its device writes while the VM leaves, from the memory's start. */
export const KEPT_AT = 0x100;
export const WRITTEN_AT = 0x3000;
/** The beginning of the device's state; it writes this to the guest's memory too. */
export const STATE = Uint8Array.from({ length: 64 }, (_, i) => i);
const BAR0 = 0xfe00_0000;
const BAR2 = 0xfd00_0000;

/** The guest's driver has set the device up, and the guest has something in its memory. */
export async function setUpGuest(model: QemuModel, scratch: ScratchDevice): Promise<PciFunction> {
  const [device] = model.devices;
  if (device === undefined) throw new Error('no device');
  await device.writeConfig(0x10, 4, BAR0);
  await device.writeConfig(0x18, 4, BAR2);
  await device.writeConfig(0x04, 2, 0x0006);
  const msix = device.view().registers.length > 0 ? await msixControl(device) : 0;
  for (let at = 0; at < 32; at += 4) device.wordAt(BAR0 + 0x800 + at)?.setUint32(0, 0x1000 + at, true);
  await device.writeConfig(msix, 2, 0x8001);
  model.ram.bytes.fill(0x11, KEPT_AT, KEPT_AT + 16);
  scratch.state.write(0, STATE);
  return device;
}

async function msixControl(device: PciFunction): Promise<number> {
  let at = await device.readConfig(0x34, 1);
  while ((await device.readConfig(at, 1)) !== 0x11) at = await device.readConfig(at + 1, 1);
  return at + 2;
}

/** The device writes the beginning of its state to the guest's memory. */
export async function writeByDevice({ ram }: QemuModel, { client }: PciFunction): Promise<void> {
  await client.regionWrite(0, Register.DMA_ADDRESS, u64(ram.base + WRITTEN_AT));
  await client.regionWrite(0, Register.DMA_LENGTH, u32(STATE.length));
  await client.regionWrite(0, Register.DMA_COMMAND, u32(2));
}

function u32(value: number): Uint8Array {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, value, true);
  return bytes;
}

function u64(value: number): Uint8Array {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(value), true);
  return bytes;
}

export function hex(bytes: Uint8Array, at = 0, length = bytes.length): string {
  return Buffer.from(bytes.subarray(at, at + length)).toString('hex');
}
