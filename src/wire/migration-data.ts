// SPDX-License-Identifier: Apache-2.0
/**
 * MIG_DATA_READ and MIG_DATA_WRITE, which stand in for the kernel's data_fd:
 *
 *     MIG_DATA_READ   argsz u32, size u32          reply: argsz u32, size u32, data
 *     MIG_DATA_WRITE  argsz u32, size u32, data    reply: none
 */

import { requireBytes } from './reader.js';

export const MIG_DATA_LENGTH = 8;

export interface MigrationData {
  argsz: number;
  size: number;
}

export function decodeMigrationData(view: DataView, at: number, end: number): MigrationData {
  requireBytes(view, at, end, MIG_DATA_LENGTH, 'migration data');
  return { argsz: view.getUint32(at, true), size: view.getUint32(at + 4, true) };
}

export function encodeMigrationData(view: DataView, at: number, data: MigrationData): void {
  view.setUint32(at, data.argsz, true);
  view.setUint32(at + 4, data.size, true);
}
