// SPDX-License-Identifier: Apache-2.0
/**
 * DEVICE_GET_INFO and DEVICE_GET_IRQ_INFO, request and reply alike, 16 bytes each:
 *
 *     DEVICE_GET_INFO      argsz u32, flags u32, num_regions u32, num_irqs u32
 *     DEVICE_GET_IRQ_INFO  argsz u32, flags u32, index u32, count u32
 */

import { requireBytes } from './reader.js';

export const DEVICE_INFO_LENGTH = 16;
export const IRQ_INFO_LENGTH = 16;

export interface DeviceInfo {
  argsz: number;
  flags: number;
  regions: number;
  irqs: number;
}

export function decodeDeviceInfo(view: DataView, at: number, end: number): DeviceInfo {
  requireBytes(view, at, end, DEVICE_INFO_LENGTH, 'DEVICE_GET_INFO');
  return {
    argsz: view.getUint32(at, true),
    flags: view.getUint32(at + 4, true),
    regions: view.getUint32(at + 8, true),
    irqs: view.getUint32(at + 12, true),
  };
}

export function encodeDeviceInfo(view: DataView, at: number, info: DeviceInfo): void {
  view.setUint32(at, info.argsz, true);
  view.setUint32(at + 4, info.flags, true);
  view.setUint32(at + 8, info.regions, true);
  view.setUint32(at + 12, info.irqs, true);
}

export interface IrqInfo {
  argsz: number;
  flags: number;
  index: number;
  count: number;
}

export function decodeIrqInfo(view: DataView, at: number, end: number): IrqInfo {
  requireBytes(view, at, end, IRQ_INFO_LENGTH, 'DEVICE_GET_IRQ_INFO');
  return {
    argsz: view.getUint32(at, true),
    flags: view.getUint32(at + 4, true),
    index: view.getUint32(at + 8, true),
    count: view.getUint32(at + 12, true),
  };
}

export function encodeIrqInfo(view: DataView, at: number, info: IrqInfo): void {
  view.setUint32(at, info.argsz, true);
  view.setUint32(at + 4, info.flags, true);
  view.setUint32(at + 8, info.index, true);
  view.setUint32(at + 12, info.count, true);
}
