// SPDX-License-Identifier: Apache-2.0
/** Data structures that Identify returns (NVMe 1.4, section 5.15), built from the model's parameters. */

import { NSID } from './commands.js';
import { namespaceIdentity, subsystemNqn } from './identity.js';
import type { NvmeParameters } from './model.js';
import { PCI_VENDOR_ID } from './pci.js';
import { CQES, SQES, VERSION } from './registers.js';

/** CNTLID. */
export const CONTROLLER_ID = 1;

export const IDENTIFY_SIZE = 4096;

/** Asynchronous Event Requests that may be outstanding: AERL + 1. */
export const ASYNC_EVENT_LIMIT = 4;
/** Entries of the Error Information log: ELPE + 1. */
export const ERROR_LOG_ENTRIES = 8;
/** Kelvin. */
export const WARNING_TEMPERATURE = 343;
export const CRITICAL_TEMPERATURE = 353;
/** Composite temperature, Kelvin; it never changes. */
export const COMPOSITE_TEMPERATURE = 303;

/** Identify Controller (CNS 01h). */
export function identifyController(parameters: NvmeParameters): Uint8Array {
  const bytes = new Uint8Array(IDENTIFY_SIZE);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, PCI_VENDOR_ID, true); // VID
  view.setUint16(2, PCI_VENDOR_ID, true); // SSVID
  padded(bytes, 4, 20, parameters.serial); // SN
  padded(bytes, 24, 40, parameters.model_number); // MN
  padded(bytes, 64, 8, parameters.firmware); // FR
  view.setUint8(77, parameters.mdts); // MDTS
  view.setUint16(78, CONTROLLER_ID, true); // CNTLID
  view.setUint32(80, VERSION, true); // VER
  view.setUint32(88, 10_000_000, true); // RTD3E, microseconds: a shutdown waits for the disk
  view.setUint8(111, 1); // CNTRLTYPE: I/O controller
  view.setUint8(258, 3); // ACL, 0's based
  view.setUint8(259, ASYNC_EVENT_LIMIT - 1); // AERL
  view.setUint8(260, 0x03); // FRMW: one slot, read only
  view.setUint8(261, 0x06); // LPA: commands supported, extended data
  view.setUint8(262, ERROR_LOG_ENTRIES - 1); // ELPE
  view.setUint16(266, WARNING_TEMPERATURE, true); // WCTEMP
  view.setUint16(268, CRITICAL_TEMPERATURE, true); // CCTEMP
  view.setUint8(512, (SQES << 4) | SQES); // SQES
  view.setUint8(513, (CQES << 4) | CQES); // CQES
  view.setUint32(516, NSID, true); // NN
  view.setUint16(520, 0x001d, true); // ONCS: Compare, Dataset Management, Write Zeroes, Save and Select of features
  view.setUint8(525, 0x07); // VWC: present; Flush takes NSID FFFFFFFFh
  bytes.set(Buffer.from(subsystemNqn(parameters.serial)), 768); // SUBNQN
  view.setUint16(2048, 2500, true); // PSD0: 25 W
  return bytes;
}

/** Identify Namespace (CNS 00h). */
export function identifyNamespace(parameters: NvmeParameters): Uint8Array {
  const bytes = new Uint8Array(IDENTIFY_SIZE);
  const view = new DataView(bytes.buffer);
  const { nguid, eui64 } = namespaceIdentity(parameters.serial);
  const blocks = BigInt(parameters.namespace_size / parameters.lba_size);
  for (const at of [0, 8, 16]) view.setBigUint64(at, blocks, true); // NSZE, NCAP, NUSE
  view.setUint8(24, 0x10); // NSFEAT: NPWG and following hold
  view.setUint8(33, 0x09); // DLFEAT: deallocated blocks read zero, Write Zeroes takes DEAC
  view.setBigUint64(48, BigInt(parameters.namespace_size), true); // NVMCAP
  const perPage = 4096 / parameters.lba_size - 1;
  for (const at of [64, 66, 68, 70, 72]) view.setUint16(at, perPage, true); // NPWG, NPWA, NPDG, NPDA, NOWS
  bytes.set(nguid, 104);
  bytes.set(eui64, 120);
  view.setUint8(130, Math.log2(parameters.lba_size)); // LBAF0.LBADS
  return bytes;
}

/** Namespace Identification Descriptors (CNS 03h): EUI-64 and NGUID. */
export function identifyDescriptors(parameters: NvmeParameters): Uint8Array {
  const bytes = new Uint8Array(IDENTIFY_SIZE);
  const { nguid, eui64 } = namespaceIdentity(parameters.serial);
  bytes.set([1, eui64.length, 0, 0, ...eui64]);
  bytes.set([2, nguid.length, 0, 0, ...nguid], 12);
  return bytes;
}

/** Active namespaces with identifiers above `after` (CNS 02h). */
export function identifyActiveNamespaces(after: number): Uint8Array {
  const bytes = new Uint8Array(IDENTIFY_SIZE);
  if (after < NSID) new DataView(bytes.buffer).setUint32(0, NSID, true);
  return bytes;
}

function padded(bytes: Uint8Array, at: number, length: number, text: string): void {
  bytes.set(Buffer.from(text.padEnd(length, ' '), 'latin1'), at);
}
