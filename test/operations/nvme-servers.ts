// SPDX-License-Identifier: Apache-2.0
/** NVMe controllers of both vendors on real sockets, with a state that can be told from that of a fresh one. */

import { join } from 'node:path';
import type { Device, ParameterValue } from '../../src/device/index.js';
import { createBirchNvme } from '../../src/devices/nvme/birch/index.js';
import { createAlderNvme, ImageFile } from '../../src/devices/nvme/index.js';
import { decodeNvmeState, type NvmeState } from '../../src/formats/index.js';
import { DeviceRuntime } from '../../src/runtime/index.js';
import { PciRegion } from '../../src/wire/index.js';
import { Served, socketFolder, type Test } from '../support/served.js';

export const STANDARD = 'org.devstate.nvme';
export const ALDER = 'org.devstate.nvme.alder';
export const BIRCH = 'org.devstate.nvme.birch';
export type Vendor = 'alder' | 'birch';
export const VENDORS: readonly Vendor[] = ['alder', 'birch'];
const makers = { alder: createAlderNvme, birch: createBirchNvme };

export interface NvmeOptions {
  readonly vendor?: Vendor;
  readonly parameters?: Readonly<Record<string, ParameterValue>>;
  /** Formats to offer; default: all. */
  readonly formats?: readonly string[];
  readonly size?: number;
  /** Path of its image. Default: one of its own. */
  readonly image?: string;
  /** It takes the image's lock at once. Default true. */
  readonly lock?: boolean;
}

export type NvmeServer = Served & { readonly device: Device };

/** A controller. */
export function serveNvme(t: Test, options: NvmeOptions = {}): NvmeServer {
  const image = ImageFile.open({
    path: options.image ?? join(socketFolder(t), 'image'),
    size: options.size ?? 2 ** 20,
    lock: options.lock ?? true,
  });
  const device = makers[options.vendor ?? 'alder']({ image, parameters: options.parameters ?? {} });
  const { formats } = options;
  const served = new Served(
    t,
    new DeviceRuntime(device, { name: 'nvme', ...(formats === undefined ? {} : { formats }) }),
  );
  t.teardown(() => image.close());
  return Object.assign(served, { device });
}

/** A guest has set it up, so far as that needs no memory: BAR 0, bus mastering, admin queues. Its VMM stays. */
export async function setUp(served: Served): Promise<void> {
  const vmm = await served.vmm();
  const write = (region: number, offset: number, ...bytes: number[]): Promise<void> =>
    vmm.regionWrite(region, offset, Uint8Array.from(bytes));
  await write(PciRegion.CONFIG, 0x10, 0x00, 0x00, 0xb0, 0xfe);
  await write(PciRegion.CONFIG, 0x04, 0x06, 0x04);
  await write(0, 0x24, 31, 0, 63, 0);
  await write(0, 0x28, 0, 0x10, 0, 0x20, 0, 0, 0, 0);
  await write(0, 0x30, 0, 0x50, 0, 0x20, 0, 0, 0, 0);
}

/** The state of a quiesced controller, whoever made it. */
export async function stateOf(device: Device): Promise<NvmeState> {
  const format = device.formats.find(({ name }) => name === STANDARD);
  const records = [];
  for await (const { type, optional = false, payload } of format?.save('final') ?? [])
    records.push({ type, optional, payload: payload.slice() });
  return decodeNvmeState(records);
}
