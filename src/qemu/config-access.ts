// SPDX-License-Identifier: Apache-2.0
/**
 * How a machine's configuration space is reached: found out from QEMU's object model, not from the machine's name.
 *
 *     host bridge                     its memory regions                       way
 *     i440FX-pcihost, q35-pcihost     pci-conf-idx, pci-conf-data, I/O ports   latch and data port (0xcf8, 0xcfc)
 *     gpex-pcihost (arm64, riscv64    pcie-ecam, in memory                     ECAM: every register has an address
 *       and loongarch64 `virt`, x86
 *       `microvm`), others
 *
 * A q35 has an ECAM too, but its place is the guest's to choose, and to change. The ports are always there.
 */

import { DevstateError } from '../errors.js';
import * as z from '../zod.js';
import { type Cancellable, type Child, childrenOf, property } from './object-model.js';
import type { QmpClient } from './qmp.js';

/** A latch that selects a register, and the port its value is at. The latch is guest state. */
export interface ConfigPorts {
  readonly kind: 'ports';
  readonly address: number;
  readonly data: number;
}

/** PCI Express enhanced configuration access: 4 KiB of guest-physical memory for each function. */
export interface ConfigEcam {
  readonly kind: 'ecam';
  readonly base: number;
  /** Bytes; 1 MiB for each bus. */
  readonly size: number;
}

export type ConfigAccess = ConfigPorts | ConfigEcam;

/** Bytes of an ECAM for each bus. */
export const ECAM_BUS_SIZE = 2 ** 20;

/** How many buses the way reaches. */
export function busCount(config: ConfigAccess): number {
  return config.kind === 'ecam' ? Math.min(256, config.size / ECAM_BUS_SIZE) : 256;
}

interface HostBridge {
  /** Path in QEMU's object model. */
  readonly path: string;
  readonly access: ConfigAccess;
}

/** Where machines keep the devices that are their own. */
const PARENTS = ['/machine', '/machine/unattached'];
const HOST_BRIDGE = /pcie?-?host|pci-host-bridge|pcie-host/i;
const ECAM_REGION = /^(pcie-ecam|pcie-mmcfg-mmio)\[\d+\]$/;
const SYSTEM_MEMORY = /\/system\[\d+\]$/;
const PORT_SPACE = /\/io\[\d+\]$/;
/** Bridges between a root bus and a device. */
const MAX_DEPTH = 32;

/** What was found, for as long as there is a connection to the QEMU: machines do not change. */
const known = new WeakMap<QmpClient, Promise<readonly HostBridge[]>>();
const knownOfDevice = new WeakMap<QmpClient, Map<string, ConfigAccess>>();

/**
 * How the configuration space of the device with QEMU's id `qdevId` is reached. Asked once; remembered for the connection.
 * @throws DEVSTATE_E_PCI_CONFIG_ACCESS, naming the machine and what was looked for, when there is no way
 */
export async function findConfigAccess(
  qmp: QmpClient,
  qdevId: string,
  options: Cancellable = {},
): Promise<ConfigAccess> {
  const ofDevice = knownOfDevice.get(qmp) ?? new Map<string, ConfigAccess>();
  knownOfDevice.set(qmp, ofDevice);
  const before = ofDevice.get(qdevId);
  if (before !== undefined) return before;
  const bridges = await hostBridges(qmp, options);
  const access = await choose(qmp, bridges, qdevId, options);
  if (access === undefined) throw await noWay(qmp, bridges, options);
  ofDevice.set(qdevId, access);
  return access;
}

function hostBridges(qmp: QmpClient, options: Cancellable): Promise<readonly HostBridge[]> {
  let bridges = known.get(qmp);
  if (bridges === undefined) {
    bridges = search(qmp, options);
    known.set(qmp, bridges);
    // A search that was cut off says nothing.
    bridges.catch(() => known.delete(qmp));
  }
  return bridges;
}

/** The host bridge that the device is below; of a machine with one way only, that one: an expander's buses go by it too. */
async function choose(
  qmp: QmpClient,
  bridges: readonly HostBridge[],
  qdevId: string,
  options: Cancellable,
): Promise<ConfigAccess | undefined> {
  if (bridges.length <= 1) return bridges[0]?.access;
  let path = `/machine/peripheral/${qdevId}`;
  for (let depth = 0; depth < MAX_DEPTH; depth++) {
    const bus = await property(qmp, path, 'parent_bus', z.string(), options);
    if (bus === undefined || bus === '') return undefined;
    const found = bridges.find((bridge) => bus.startsWith(`${bridge.path}/`));
    if (found !== undefined) return found.access;
    path = bus.slice(0, bus.lastIndexOf('/'));
  }
  return undefined;
}

async function search(qmp: QmpClient, options: Cancellable): Promise<HostBridge[]> {
  const found: HostBridge[] = [];
  for (const parent of PARENTS) {
    for (const { name, type } of await childrenOf(qmp, parent, options)) {
      if (!HOST_BRIDGE.test(type)) continue;
      const path = `${parent}/${name}`;
      const access = await accessOf(qmp, path, options);
      if (access !== undefined) found.push({ path, access });
    }
  }
  return found;
}

/** The way that a host bridge offers; ports before an ECAM that the guest could move. */
async function accessOf(
  qmp: QmpClient,
  path: string,
  options: Cancellable,
): Promise<ConfigAccess | undefined> {
  const regions = (await childrenOf(qmp, path, options)).filter(({ type }) => type.includes('memory-region'));
  const at = (pattern: RegExp, space: RegExp): Promise<Region | undefined> =>
    placed(qmp, path, regions, pattern, space, options);
  const latch = await at(/^pci-conf-idx\[\d+\]$/, PORT_SPACE);
  const data = await at(/^pci-conf-data\[\d+\]$/, PORT_SPACE);
  if (latch !== undefined && data !== undefined)
    return { kind: 'ports', address: latch.address, data: data.address };
  const ecam = await at(ECAM_REGION, SYSTEM_MEMORY);
  return ecam === undefined ? undefined : { kind: 'ecam', base: ecam.address, size: ecam.size };
}

interface Region {
  readonly address: number;
  readonly size: number;
}

/** The first region of that name that is directly in such an address space. */
async function placed(
  qmp: QmpClient,
  path: string,
  regions: readonly Child[],
  pattern: RegExp,
  space: RegExp,
  options: Cancellable,
): Promise<Region | undefined> {
  for (const { name } of regions) {
    if (!pattern.test(name)) continue;
    const region = `${path}/${name}`;
    const container = await property(qmp, region, 'container', z.string(), options);
    // A region that is mapped nowhere has the address 0 too.
    if (container === undefined || !space.test(container)) continue;
    const address = await property(qmp, region, 'addr', z.int().nonnegative(), options);
    const size = await property(qmp, region, 'size', z.int().positive(), options);
    if (address !== undefined && size !== undefined) return { address, size };
  }
  return undefined;
}

async function noWay(
  qmp: QmpClient,
  bridges: readonly HostBridge[],
  options: Cancellable,
): Promise<DevstateError> {
  const machine = (await property(qmp, '/machine', 'type', z.string(), options)) ?? 'unknown';
  const tried =
    bridges.length === 0
      ? 'no host bridge has an ECAM in memory or the port pair of a PC'
      : `none of the host bridges ${bridges.map(({ path }) => path).join(', ')} leads to it`;
  const what = `QEMU's machine "${machine.replace(/-machine$/, '')}" has no known way to PCI configuration space (${tried})`;
  return new DevstateError(
    'DEVSTATE_E_PCI_CONFIG_ACCESS',
    `${what}; use a machine with one, such as q35, pc, or virt`,
  );
}
