// SPDX-License-Identifier: Apache-2.0
/**
 * What a server serves, asked for by the relay itself when it connects: a server that takes another's place must serve
 * the same, because the VMM has been told once and does not ask again.
 */

import type { Requester } from '../client/index.js';
import type { Fd } from '../transport/index.js';
import {
  IRQ_INFO_LENGTH,
  MIGRATION_REGION_TYPE,
  PciRegion,
  REGION_INFO_LENGTH,
  type RegionInfo,
  RegionInfoFlag,
} from '../wire/index.js';
import type { ResetBit } from './config-log.js';

/** Most of either that we ask for. */
const MAX_REGIONS = 256;
const MAX_IRQS = 64;
/** Configuration space that is read; the extended one says nothing that we need. */
const CONFIG_LENGTH = 256;

const CAPABILITIES = 0x34;
const CAPABILITY_EXPRESS = 0x10;
const CAPABILITY_ADVANCED_FEATURES = 0x13;
const FIRST_CAPABILITY = 0x40;
const MAX_CAPABILITIES = 48;

/** What tells one kind of device from another: ids, revision and class, subsystem. */
const IDENTIFYING: readonly [offset: number, length: number, name: string][] = [
  [0x00, 4, 'vendor and device id'],
  [0x08, 4, 'revision and class'],
  [0x2c, 4, 'subsystem'],
];

export interface Identity {
  readonly flags: number;
  /** By index; the migration region is not among them, as it may come and go. */
  readonly regions: readonly { readonly size: number; readonly access: number }[];
  /** Interrupts by index. */
  readonly irqs: readonly number[];
  /** The beginning of the PCI config space, empty if there is none. */
  readonly config: Uint8Array;
  /** Index of the region of migration v1. */
  readonly migrationRegion: number | undefined;
}

/** Asks a server what it serves. @throws DEVSTATE_E_REFUSED, DEVSTATE_E_CONNECTION_CLOSED */
export async function learnIdentity(server: Requester): Promise<Identity> {
  const info = await server.deviceInfo();
  const [regions, irqs] = await Promise.all([
    Promise.all(Array.from({ length: Math.min(info.regions, MAX_REGIONS) }, (_, i) => regionInfo(server, i))),
    Promise.all(Array.from({ length: Math.min(info.irqs, MAX_IRQS) }, (_, i) => irqCount(server, i))),
  ]);
  const configSize = regions[PciRegion.CONFIG]?.size ?? 0;
  const { READ, WRITE } = RegionInfoFlag;
  const migrationRegion = regions.findIndex(isMigrationRegion);
  return {
    flags: info.flags,
    regions: regions.map((region) =>
      isMigrationRegion(region)
        ? { size: 0, access: 0 }
        : { size: region.size, access: region.flags & (READ | WRITE) },
    ),
    irqs,
    config: await readConfig(server, Math.min(configSize, CONFIG_LENGTH)),
    migrationRegion: migrationRegion < 0 ? undefined : migrationRegion,
  };
}

function isMigrationRegion({ type }: RegionInfo): boolean {
  const { type: migration, subtype } = MIGRATION_REGION_TYPE;
  return type?.type === migration && type.subtype === subtype;
}

/** A region that the server does not describe is one that it does not have. */
async function regionInfo(server: Requester, index: number): Promise<RegionInfo> {
  const none = { argsz: REGION_INFO_LENGTH, flags: 0, index, size: 0, offset: 0 };
  const { fd, ...info } = await server
    .regionInfo(index)
    .catch(unlessClosed<RegionInfo & { fd?: Fd }>(server, none));
  fd?.close();
  return info;
}

async function irqCount(server: Requester, index: number): Promise<number> {
  const none = { argsz: IRQ_INFO_LENGTH, flags: 0, index, count: 0 };
  return (await server.irqInfo(index).catch(unlessClosed(server, none))).count;
}

/** The beginning of the config space, `length` bytes. */
export async function readConfig(server: Requester, length: number): Promise<Uint8Array> {
  const config = new Uint8Array(length);
  await server.regionRead(PciRegion.CONFIG, 0, config);
  return config;
}

function unlessClosed<T>(server: Requester, value: T): (error: unknown) => T {
  return (error) => {
    if (server.isClosed) throw error;
    return value;
  };
}

/** Why a server that serves `next` cannot take the place of one that serves `now`; empty if it can. */
export function identityDifferences(now: Identity, next: Identity): string[] {
  const differences: string[] = [];
  const compare = (what: string, here: number, there: number): void => {
    if (here !== there)
      differences.push(`${what}: 0x${here.toString(16)} here, 0x${there.toString(16)} there`);
  };
  compare('device flags', now.flags, next.flags);
  for (let i = 0; i < Math.max(now.regions.length, next.regions.length); i++) {
    compare(`size of region ${i}`, now.regions[i]?.size ?? 0, next.regions[i]?.size ?? 0);
    compare(`access to region ${i}`, now.regions[i]?.access ?? 0, next.regions[i]?.access ?? 0);
  }
  for (let i = 0; i < Math.max(now.irqs.length, next.irqs.length); i++)
    compare(`interrupts of index ${i}`, now.irqs[i] ?? 0, next.irqs[i] ?? 0);
  for (const [offset, length, name] of IDENTIFYING) {
    if (now.config.length < offset + length || next.config.length < offset + length) continue;
    compare(name, viewOf(now.config).getUint32(offset, true), viewOf(next.config).getUint32(offset, true));
  }
  return differences;
}

/** The bits of function level reset, by its capabilities (PCI Express: Initiate FLR; Advanced Features: the same). */
export function resetBitsOf(config: Uint8Array): ResetBit[] {
  const bits: ResetBit[] = [];
  let at = config[CAPABILITIES] ?? 0;
  for (let steps = 0; at >= FIRST_CAPABILITY && steps < MAX_CAPABILITIES; steps++) {
    if (config[at] === CAPABILITY_EXPRESS) bits.push({ offset: at + 9, mask: 0x80 });
    if (config[at] === CAPABILITY_ADVANCED_FEATURES) bits.push({ offset: at + 4, mask: 0x01 });
    at = config[at + 1] ?? 0;
  }
  return bits;
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}
