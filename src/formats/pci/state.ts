// SPDX-License-Identifier: Apache-2.0
/** The state of a PCI function, apart from what its BARs do: part of every device's state, whatever its kind. */

export interface PciFunctionState {
  /** Configuration space, 256 or 4096 bytes, as the device itself has it (a VMM may show the guest another). */
  readonly config: Uint8Array;
  /** MSI-X table, 16 bytes a vector; empty without MSI-X. */
  readonly msixTable: Uint8Array;
  /** MSI-X pending bits, one bit a vector, a multiple of 8 bytes; empty without MSI-X. */
  readonly msixPending: Uint8Array;
}
