// SPDX-License-Identifier: Apache-2.0
/** One VMM follows another: a device whose guest uses it, VMMs that come, and the steps of a manager. */

import type { Test } from 'tap';
import type { Client, ClientOptions, MigrationClient } from '../../src/client/index.js';
import { closeAll, type Fd } from '../../src/transport/index.js';
import { DmaMapFlag, MigrationState, PciIrq, PciRegion } from '../../src/wire/index.js';
import { viewOf } from './hex.js';
import { eventfd, memfd } from './memory.js';
import { Register, type ScratchDevice } from './scratch-device.js';

const { CONFIG } = PciRegion;
const { STOP, RUNNING } = MigrationState;

export const AWAIT = { action: 'await', timeoutMs: 60_000 } as const;
/** Where every VMM has its memory. */
export const MEMORY = {
  address: 0x10000,
  size: 4096,
  offset: 0,
  flags: DmaMapFlag.READ | DmaMapFlag.WRITE,
} as const;
/** What the guest of the first VMM keeps in the device. */
export const KEPT = 0x12345678;

/** Where a device is served. */
export interface Bed {
  readonly scratch: ScratchDevice;
  vmm(options?: ClientOptions): Promise<Client>;
  manager(): Promise<MigrationClient>;
}

/** A device with a VMM whose guest uses it, and a manager. */
export interface Scene<Where extends Bed = Bed> {
  readonly bed: Where;
  readonly scratch: ScratchDevice;
  readonly first: Client;
  readonly manager: MigrationClient;
  /** The eventfds of the first VMM. */
  readonly vectors: readonly Fd[];
  /** The file behind the memory of all VMMs. */
  readonly memory: Fd;
  /** Another VMM is awaited, and comes, as far as it gets on its own. */
  readonly arrive: () => Promise<Client>;
}

export async function setScene<Where extends Bed>(t: Test, bed: Where): Promise<Scene<Where>> {
  const { scratch } = bed;
  const first = await bed.vmm();
  const memory = memfd(4096);
  const vectors = [eventfd(), eventfd()];
  t.teardown(() => closeAll([memory, ...vectors]));
  await first.dmaMap(MEMORY, memory);
  await writeU32(first, CONFIG, 4, 0x6);
  await writeU32(first, CONFIG, 0x10, 0xfebf0000);
  await writeU32(first, 0, Register.KEPT, KEPT);
  await first.assignEventfds(PciIrq.MSIX, vectors);
  const manager = await bed.manager();
  scratch.takeCalls();
  const arrive = async (): Promise<Client> => {
    await manager.setNextVmm(AWAIT);
    const second = await bed.vmm();
    await realize(second, memory);
    return second;
  };
  return { bed, scratch, first, manager, vectors, memory, arrive };
}

export async function readU32(vmm: Client, region: number, offset: number): Promise<number> {
  const bytes = new Uint8Array(4);
  await vmm.regionRead(region, offset, bytes);
  return viewOf(bytes).getUint32(0, true);
}

export async function writeU32(vmm: Client, region: number, offset: number, value: number): Promise<void> {
  const bytes = new Uint8Array(4);
  viewOf(bytes).setUint32(0, value, true);
  await vmm.regionWrite(region, offset, bytes);
}

export const kept = (vmm: Client): Promise<number> => readU32(vmm, 0, Register.KEPT);

/** Addresses of the memory that the device has. */
export const ranges = ({ scratch }: Scene): number[] =>
  scratch.host.memory.regions.map(({ address }) => address);

/** What QEMU does when it realizes a device: memory, config space, sizes, an eventfd, a reset, BARs to 0. */
export async function realize(vmm: Client, memory: Fd): Promise<void> {
  await vmm.dmaMap(MEMORY, memory);
  await vmm.deviceInfo();
  await vmm.regionInfo(CONFIG);
  await vmm.irqInfo(PciIrq.MSIX);
  await vmm.regionRead(CONFIG, 0, new Uint8Array(256));
  await writeU32(vmm, CONFIG, 0x10, 0xffffffff);
  await writeU32(vmm, CONFIG, 0x10, 0);
  const line = eventfd();
  await vmm.assignEventfds(PciIrq.INTX, [line]);
  line.close();
  await vmm.reset();
  await writeU32(vmm, CONFIG, 0x10, 0);
}

export async function promote(manager: MigrationClient): Promise<void> {
  await manager.setState(STOP);
  await manager.setNextVmm({ action: 'promote' });
}

/** The device runs, and the second has it for good. */
export async function commit(manager: MigrationClient): Promise<void> {
  await manager.setState(RUNNING);
  await manager.setNextVmm({ action: 'commit' });
}
