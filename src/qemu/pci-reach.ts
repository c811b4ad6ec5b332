// SPDX-License-Identifier: Apache-2.0
/**
 * Reaching a device's configuration space where no firmware has numbered the buses yet: in a QEMU that waits for a
 * migration every bridge is as after power-on, and what is behind one answers to no address.
 *
 *     root bus ── bridge ── bridge ── device        each bridge's QOM path is the parent of its bus's path
 */

import { dirname } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { DevstateError } from '../errors.js';
import * as z from '../zod.js';
import { busCount, type ConfigAccess, findConfigAccess } from './config-access.js';
import { type Cancellable, property } from './object-model.js';
import { configRead, configWrite, type PciLocation } from './pci-commands.js';
import {
  type BridgeBuses,
  findPciDevice,
  findShownPciDevice,
  listBuses,
  type PciDevice,
} from './pci-location.js';
import type { QmpClient } from './qmp.js';
import type { QtestAccess, QtestCommand } from './qtest.js';
import { WITH_IDS } from './vfio-user-devices.js';

/** Offset of primary, secondary and subordinate bus number in a bridge's header, a byte each. */
const BUS_NUMBERS = 0x18;
const HIGHEST_BUS = 0xff;
/** How long the firmware of a guest that has been reset may take to number its buses, ms. */
const NUMBERING_MS = 20_000;
/** How often QEMU is asked meanwhile, ms. */
const ASK_AGAIN_MS = 50;
/** Bridges between a root bus and a device. */
const MAX_DEPTH = 32;

/** A device or bridge as its bus knows it. */
interface Place {
  readonly slot: number;
  readonly function: number;
  readonly bus: string;
}

/**
 * Runs `work` with the address of the device with QEMU's id `id`. Bridges that have no bus number get one for as long as
 * it takes, if `mayNumber`: only in a VM that stands. In one that runs they are waited for.
 * @throws DEVSTATE_E_PCI_DEVICE when it has no address, and may not get one
 */
export async function withLocation<T>(
  { qmp, qtest }: { readonly qmp: QmpClient; readonly qtest: QtestAccess },
  id: string,
  mayNumber: boolean,
  work: (location: PciLocation) => Promise<T>,
  options: Cancellable = {},
): Promise<T> {
  const find = mayNumber ? findShownPciDevice : awaitPciDevice;
  const numbered = await find(qmp, id, options);
  if (numbered !== undefined) return work(numbered);
  const { bridges, root, device } = await chainOf(qmp, `${WITH_IDS}/${id}`, options);
  const config = await findConfigAccess(qmp, id, options);
  const undo: QtestCommand[] = [];
  const change = async (at: PciLocation, before: number, after: number): Promise<void> => {
    undo.unshift(...numberCommands(at, before));
    await qtest.run(numberCommands(at, after));
  };
  try {
    const numbered = await numberedOf(qtest, bridges, root, config);
    const others = bridges.slice(numbered.length);
    const free = await freeBuses(qmp, numbered, config, options);
    const given = free.slice(free.length - others.length);
    if (free.length < others.length) throw noneLeft(id, config);
    const last = given.at(-1) ?? 0;
    // A bridge passes on what is for a bus up to its subordinate one.
    for (const { at, numbers } of numbered)
      if (numbers >>> 16 < last) await change(at, numbers, (numbers & 0xffff) | (last << 16));
    let bus = numbered.at(-1)?.secondary ?? root;
    for (const [index, { slot, function: func }] of others.entries()) {
      const at: PciLocation = { bus, slot, function: func, config };
      const secondary = given[index] ?? 0;
      await change(at, await readNumbers(qtest, at), bus | (secondary << 8) | (last << 16));
      bus = secondary;
    }
    return await work({ bus, slot: device.slot, function: device.function, config });
  } finally {
    await qtest.run(undo);
  }
}

/** A bridge that has its bus numbers. */
interface NumberedBridge {
  readonly at: PciLocation;
  /** Primary, secondary and subordinate bus number, from the low byte up. */
  readonly numbers: number;
  readonly secondary: number;
}

/** The bridges from the root bus down to the first that has no number. */
async function numberedOf(
  qtest: QtestAccess,
  bridges: readonly Place[],
  root: number,
  config: ConfigAccess,
): Promise<NumberedBridge[]> {
  const numbered: NumberedBridge[] = [];
  let bus = root;
  for (const { slot, function: func } of bridges) {
    const at: PciLocation = { bus, slot, function: func, config };
    const numbers = await readNumbers(qtest, at);
    const secondary = (numbers >>> 8) & 0xff;
    if (secondary === 0) break;
    numbered.push({ at, numbers, secondary });
    bus = secondary;
  }
  return numbered;
}

async function readNumbers(qtest: QtestAccess, at: PciLocation): Promise<number> {
  const values = await qtest.run(configRead(at, BUS_NUMBERS, 'l'));
  return (values.at(-1) ?? 0) & 0xffffff;
}

/**
 * Bus numbers that the machine's way reaches and no root bus or bridge has, ascending. What is behind `numbered`, the
 * bridges before the device, is free where no bridge further down has it.
 */
async function freeBuses(
  qmp: QmpClient,
  numbered: readonly NumberedBridge[],
  config: ConfigAccess,
  options: Cancellable,
): Promise<number[]> {
  const { roots, bridges } = await listBuses(qmp, options);
  const isBefore = (bridge: BridgeBuses): boolean =>
    numbered.some(
      ({ at }) => at.bus === bridge.bus && at.slot === bridge.slot && at.function === bridge.function,
    );
  const isTaken = (bus: number): boolean =>
    roots.includes(bus) ||
    bridges.some((bridge) => {
      const { secondary, subordinate } = bridge;
      return secondary !== 0 && bus >= secondary && bus <= (isBefore(bridge) ? secondary : subordinate);
    });
  return Array.from({ length: busCount(config) }, (_, bus) => bus).filter((bus) => !isTaken(bus));
}

function noneLeft(id: string, config: ConfigAccess): DevstateError {
  const message = `the PCI device "${id}" is behind bridges without bus numbers, and of the machine's ${busCount(config)} none is left for them`;
  return new DevstateError('DEVSTATE_E_PCI_DEVICE', `${message}; use a machine with more, or fewer bridges`);
}

/**
 * The device with QEMU's id `id` of a VM that runs. A guest that has just been reset shows what is behind a bridge only when
 * its firmware has numbered the buses, which is waited for.
 * @throws DEVSTATE_E_PCI_DEVICE
 */
export async function awaitPciDevice(
  qmp: QmpClient,
  id: string,
  options: Cancellable = {},
): Promise<PciDevice> {
  const deadline = performance.now() + NUMBERING_MS;
  for (;;) {
    const shown = await findShownPciDevice(qmp, id, options);
    if (shown !== undefined) return shown;
    const isThere = (await placeOf(qmp, `${WITH_IDS}/${id}`, options)) !== undefined;
    // Says which devices there are.
    if (!isThere) return findPciDevice(qmp, id, options);
    if (performance.now() > deadline) {
      const why = `the bridge that the PCI device "${id}" is behind has no bus number`;
      const message = `${why}: the guest boots, or does not use the bridge; try again when it has booted`;
      throw new DevstateError('DEVSTATE_E_PCI_DEVICE', message);
    }
    options.signal?.throwIfAborted();
    await delay(ASK_AGAIN_MS);
  }
}

/** Commands that write a bridge's three bus numbers, as they are in the low bytes of `numbers`. */
function numberCommands(at: PciLocation, numbers: number): QtestCommand[] {
  return [
    ...configWrite(at, BUS_NUMBERS, 'w', numbers & 0xffff),
    ...configWrite(at, BUS_NUMBERS + 2, 'b', (numbers >>> 16) & 0xff),
  ];
}

/** The bridges from a root bus to a device, and the root bus's number. */
async function chainOf(
  qmp: QmpClient,
  path: string,
  options: Cancellable,
): Promise<{ bridges: Place[]; root: number; device: Place }> {
  const device = await placeOf(qmp, path, options);
  if (device === undefined) throw unreachable(path);
  const bridges: Place[] = [];
  let top = path;
  for (let bus = device.bus; bridges.length <= MAX_DEPTH; ) {
    const bridge = await placeOf(qmp, dirname(bus), options);
    if (bridge === undefined) break;
    top = dirname(bus);
    bridges.unshift(bridge);
    bus = bridge.bus;
  }
  const root = await property(qmp, top, 'busnr', z.int().min(0).max(HIGHEST_BUS), options);
  return { bridges, root: root ?? 0, device };
}

/**
 * Where a device is in its machine, whatever numbers its buses have by now: slot and function of each bridge before it, and
 * its own, as `1c.0/00.0`. @throws DEVSTATE_E_PCI_DEVICE
 */
export async function pciPlace(qmp: QmpClient, path: string, options: Cancellable = {}): Promise<string> {
  const { bridges, root, device } = await chainOf(qmp, path, options);
  const steps = [...bridges, device].map(
    ({ slot, function: func }) => `${slot.toString(16).padStart(2, '0')}.${func}`,
  );
  // What an expander begins has a number of its own.
  return [...(root === 0 ? [] : [`bus ${root}`]), ...steps].join('/');
}

/** Undefined for what is no PCI device, such as a host bridge. */
async function placeOf(qmp: QmpClient, path: string, options: Cancellable): Promise<Place | undefined> {
  const address = await property(qmp, path, 'addr', z.int().min(0).max(0xff), options);
  const bus = await property(qmp, path, 'parent_bus', z.string(), options);
  if (address === undefined || bus === undefined || bus === '') return undefined;
  return { slot: address >>> 3, function: address & 7, bus };
}

function unreachable(path: string): DevstateError {
  const message = `QEMU has no PCI device ${path}`;
  return new DevstateError('DEVSTATE_E_PCI_DEVICE', message);
}
