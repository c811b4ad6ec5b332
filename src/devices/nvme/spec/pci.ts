// SPDX-License-Identifier: Apache-2.0
/**
 * The PCI function that the model `devstate.org/nvme` is: identity, BARs, capabilities.
 *
 * BAR 0 holds registers and doorbells and nothing else, so that every access to it is a plain one. The MSI-X table has
 * BAR 4 to itself: a VMM emulates the table and traps the pages it lies in.
 */

import {
  type Bar,
  expressCapability,
  msixCapability,
  PciConfigSpace,
  powerManagementCapability,
} from '../../../device/index.js';
import type { NvmeParameters } from './model.js';

/**
 * Vendor 0xde57 is not assigned by the PCI-SIG, whose numbers are far below it: a product sets its own. The usual stand-ins will not do,
 * because Linux's nvme driver keys quirks on them: 1b36:0010 (QEMU) has its namespace ids ignored, 8086:5845 loses Write Zeroes too.
 * Drivers bind by class code.
 */
export const PCI_VENDOR_ID = 0xde57;
export const PCI_DEVICE_ID = 0x0001;

const CLASS_NVME = 0x010802;

export const REGISTER_BAR = 0;
export const REGISTER_BAR_SIZE = 0x4000;
export const MSIX_BAR = 4;
export const MSIX_BAR_SIZE = 0x2000;
/** The table is at 0; the PBA is in a page of its own. */
export const MSIX_PBA_OFFSET = 0x1000;
export const MSIX_ENTRY_SIZE = 16;

export const nvmeBars: readonly Bar[] = [
  { index: REGISTER_BAR, size: REGISTER_BAR_SIZE, kind: 'memory64' },
  { index: MSIX_BAR, size: MSIX_BAR_SIZE, kind: 'memory32' },
];

/** The config space after power on. */
export function nvmeConfigSpace(parameters: NvmeParameters): PciConfigSpace {
  return new PciConfigSpace(
    {
      vendorId: PCI_VENDOR_ID,
      deviceId: PCI_DEVICE_ID,
      subsystemVendorId: PCI_VENDOR_ID,
      subsystemId: PCI_DEVICE_ID,
      revision: 1,
      classCode: CLASS_NVME,
      intx: true,
    },
    nvmeBars,
    [
      powerManagementCapability(),
      msixCapability({
        vectors: parameters.msix_vectors,
        tableBar: MSIX_BAR,
        tableOffset: 0,
        pbaBar: MSIX_BAR,
        pbaOffset: MSIX_PBA_OFFSET,
      }),
      expressCapability(),
    ],
  );
}

/** MSI-X pending bits, one a vector, in `length` bytes. */
export function pendingBits(vectors: readonly number[], length: number): Uint8Array {
  const bits = new Uint8Array(length);
  for (const vector of vectors) bits[vector >>> 3]! |= 1 << (vector & 7);
  return bits;
}

/** The vectors whose pending bits are set. */
export function pendingVectors(bits: Uint8Array): number[] {
  const vectors: number[] = [];
  for (const [index, byte] of bits.entries()) {
    if (byte === 0) continue;
    for (let bit = 0; bit < 8; bit++) if ((byte & (1 << bit)) !== 0) vectors.push(8 * index + bit);
  }
  return vectors;
}
