// SPDX-License-Identifier: Apache-2.0
/**
 * PCI configuration space of a type 0 device, as far as QEMU's own view of a device depends on it:
 * names of the registers, and what a 256-byte snapshot says. Pure.
 * Numbers and names: PCI Local Bus 3.0 sections 6.1, 6.2.5, 6.7, 6.8.
 */
import { DevstateError } from '../errors.js';

/** Size of the configuration space that every machine reaches; what a view needs is all in there. */
export const CONFIG_SPACE_SIZE = 256;

/** Offsets in a type 0 header. */
export const Register = {
  id: 0x00,
  command: 0x04,
  status: 0x06,
  headerType: 0x0e,
  bar0: 0x10,
  romBar: 0x30,
  capabilities: 0x34,
  interruptLine: 0x3c,
} as const;

export const BAR_COUNT = 6;

/** Bits of the COMMAND register. */
export const Command = { io: 1 << 0, memory: 1 << 1, interruptDisable: 1 << 10 } as const;

/** Status bit: the capability list exists. */
const STATUS_CAPABILITIES = 1 << 4;

export const CapabilityId = { msi: 0x05, msix: 0x11 } as const;

/** MSI capability: register offsets from its start and bits of its control word. */
export const Msi = {
  control: 2,
  controlEnable: 1 << 0,
  addressLow: 4,
  addressHigh: 8,
  data32: 8,
  data64: 12,
  mask32: 12,
  mask64: 16,
  control64Bit: 1 << 7,
  controlMaskable: 1 << 8,
} as const;

/** MSI-X capability: register offsets from its start, bits of its control word, layout of its table. */
export const Msix = {
  control: 2,
  table: 4,
  controlEnable: 1 << 15,
  controlTableSizeMask: 0x7ff,
  tableBarMask: 0x7,
  entrySize: 16,
} as const;

const MEMORY_BAR_TYPE_MASK = 0x6;
const MEMORY_BAR_TYPE_64 = 0x4;
const MEMORY_BAR_FLAGS = 0xf;
const BAR_IO = 1 << 0;

/** One entry of the capability list. */
export interface Capability {
  readonly id: number;
  /** Where it starts in configuration space, bytes. */
  readonly offset: number;
}

/** The snapshot as a view for little-endian reads. Throws DEVSTATE_E_PCI_VIEW unless it is 256 bytes of a type 0 device. */
export function configView(config: Uint8Array): DataView {
  if (config.length !== CONFIG_SPACE_SIZE) {
    throw new DevstateError(
      'DEVSTATE_E_PCI_VIEW',
      `a configuration space of ${config.length} bytes, not 256`,
    );
  }
  const view = new DataView(config.buffer, config.byteOffset, config.byteLength);
  if (view.getUint16(Register.id, true) === 0xffff) {
    const why = 'the device does not answer configuration reads; see whether its server still runs';
    throw new DevstateError('DEVSTATE_E_PCI_VIEW', why);
  }
  const type = view.getUint8(Register.headerType) & 0x7f;
  if (type !== 0) {
    throw new DevstateError(
      'DEVSTATE_E_PCI_VIEW',
      `header type ${type}: bridges are QEMU's own, not captured`,
    );
  }
  return view;
}

/** The capability list in its order. Throws DEVSTATE_E_PCI_VIEW if it leads out of its area or in a circle. */
export function walkCapabilities(config: Uint8Array): Capability[] {
  const view = configView(config);
  const found: Capability[] = [];
  if ((view.getUint16(Register.status, true) & STATUS_CAPABILITIES) === 0) return found;
  const seen = new Set<number>();
  let offset = view.getUint8(Register.capabilities) & ~3;
  while (offset !== 0) {
    if (offset < 0x40 || seen.has(offset)) {
      const problem = `capability list broken at 0x${offset.toString(16)}`;
      throw new DevstateError('DEVSTATE_E_PCI_VIEW', problem);
    }
    seen.add(offset);
    found.push({ id: view.getUint8(offset), offset });
    offset = view.getUint8(offset + 1) & ~3;
  }
  return found;
}

/** Guest-physical base of memory BAR `index`, both halves of a 64-bit one; `undefined` for an I/O or unset BAR. */
export function memoryBarBase(bars: readonly number[], index: number): number | undefined {
  const low = bars[index] ?? BAR_IO;
  if ((low & BAR_IO) !== 0) return undefined;
  const is64 = (low & MEMORY_BAR_TYPE_MASK) === MEMORY_BAR_TYPE_64;
  const high = is64 ? (bars[index + 1] ?? 0) : 0;
  const base = high * 2 ** 32 + ((low & ~MEMORY_BAR_FLAGS) >>> 0);
  // A 64-bit BAR whose size the guest is just asking for reads as an address above any memory.
  return base === 0 || !Number.isSafeInteger(base) ? undefined : base;
}
