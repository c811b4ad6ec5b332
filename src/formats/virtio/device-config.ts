// SPDX-License-Identifier: Apache-2.0
/** The device configuration space of network and block devices (virtio 1.4, "Device configuration layout"), for people. */
import type { FieldMap } from '../fields.js';
import { type FieldType, fieldsOf, type Layout } from '../foreign/layout.js';
import { VirtioDeviceType } from './state.js';

const MAC_LENGTH = 6;

/** `struct virtio_net_config`, behind the MAC address. */
const NET: Layout = [
  ['status', 'u16', 6],
  ['maxVirtqueuePairs', 'u16', 8],
  ['mtu', 'u16', 10],
  ['speed', 'u32', 12],
  ['duplex', 'u8', 16],
  ['rssMaxKeySize', 'u8', 17],
  ['rssMaxIndirectionTableLength', 'u16', 18],
  ['supportedHashTypes', 'u32', 20],
  ['supportedTunnelTypes', 'u32', 24],
];

/** `struct virtio_blk_config`. */
const BLK: Layout = [
  ['capacity', 'u64', 0],
  ['sizeMax', 'u32', 8],
  ['segMax', 'u32', 12],
  ['cylinders', 'u16', 16],
  ['heads', 'u8', 18],
  ['sectors', 'u8', 19],
  ['blkSize', 'u32', 20],
  ['physicalBlockExp', 'u8', 24],
  ['alignmentOffset', 'u8', 25],
  ['minIoSize', 'u16', 26],
  ['optIoSize', 'u32', 28],
  ['writeback', 'u8', 32],
  ['numQueues', 'u16', 34],
  ['maxDiscardSectors', 'u32', 36],
  ['maxDiscardSeg', 'u32', 40],
  ['discardSectorAlignment', 'u32', 44],
  ['maxWriteZeroesSectors', 'u32', 48],
  ['maxWriteZeroesSeg', 'u32', 52],
  ['writeZeroesMayUnmap', 'u8', 56],
  ['maxSecureEraseSectors', 'u32', 60],
  ['maxSecureEraseSeg', 'u32', 64],
  ['secureEraseSectorAlignment', 'u32', 68],
  ['zoneSectors', 'u32', 72],
  ['maxOpenZones', 'u32', 76],
  ['maxActiveZones', 'u32', 80],
  ['maxAppendSectors', 'u32', 84],
  ['writeGranularity', 'u32', 88],
  ['zonedModel', 'u8', 92],
];

/** The fields that lie in `config` whole; a device may have fewer. For other device types: the bytes. */
export function deviceConfigFields(deviceType: number, config: Uint8Array): FieldMap {
  const bytes = Buffer.from(config.buffer, config.byteOffset, config.length);
  if (deviceType === VirtioDeviceType.blk) return fieldsOf(within(BLK, bytes.length), bytes);
  if (deviceType !== VirtioDeviceType.net) return { bytes: bytes.toString('hex') };
  const mac = bytes.length < MAC_LENGTH ? {} : { mac: macText(bytes.subarray(0, MAC_LENGTH)) };
  return { ...mac, ...fieldsOf(within(NET, bytes.length), bytes) };
}

/** `52:54:00:12:34:56` */
export function macText(mac: Uint8Array): string {
  return [...mac].map((byte) => byte.toString(16).padStart(2, '0')).join(':');
}

function within(layout: Layout, length: number): Layout {
  return layout.filter(([, type, offset]) => offset + widthOf(type) <= length);
}

function widthOf(type: FieldType): number {
  return Number(type.slice(1)) / 8;
}
