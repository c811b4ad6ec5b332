// SPDX-License-Identifier: Apache-2.0
/** Which command is carried out by what, for each kind of client. */

import { Command } from '../wire/index.js';
import type { CommandHandler, Role } from './command.js';
import {
  deviceReset,
  deviceSetIrqs,
  dmaMap,
  dmaUnmap,
  regionRead,
  regionWrite,
  regionWriteMulti,
} from './device-commands.js';
import { dirtyPages } from './dirty-pages-command.js';
import { deviceFeature } from './feature-command.js';
import {
  deviceGetInfo,
  deviceGetIrqInfo,
  deviceGetRegionInfo,
  deviceGetRegionIoFds,
} from './info-commands.js';
import { managerDmaRead, managerDmaWrite, migDataRead, migDataWrite } from './migration-commands.js';

const forEveryone: [number, CommandHandler][] = [
  [Command.DEVICE_GET_INFO, deviceGetInfo],
  [Command.DEVICE_GET_REGION_INFO, deviceGetRegionInfo],
  [Command.REGION_READ, regionRead],
  [Command.REGION_WRITE, regionWrite],
  [Command.DEVICE_RESET, deviceReset],
  [Command.DIRTY_PAGES, dirtyPages],
  [Command.DEVICE_FEATURE, deviceFeature],
  [Command.MIG_DATA_READ, migDataRead],
  [Command.MIG_DATA_WRITE, migDataWrite],
];

const forRole: Record<Role, ReadonlyMap<number, CommandHandler>> = {
  vmm: new Map([
    ...forEveryone,
    [Command.DMA_MAP, dmaMap],
    [Command.DMA_UNMAP, dmaUnmap],
    [Command.DEVICE_GET_REGION_IO_FDS, deviceGetRegionIoFds],
    [Command.DEVICE_GET_IRQ_INFO, deviceGetIrqInfo],
    [Command.DEVICE_SET_IRQS, deviceSetIrqs],
    [Command.REGION_WRITE_MULTI, regionWriteMulti],
  ]),
  // The manager moves state; it never plays the guest.
  manager: new Map([
    ...forEveryone,
    [Command.DMA_READ, managerDmaRead],
    [Command.DMA_WRITE, managerDmaWrite],
  ]),
};

export function commandsFor(role: Role): ReadonlyMap<number, CommandHandler> {
  return forRole[role];
}
