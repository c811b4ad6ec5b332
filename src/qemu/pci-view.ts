// SPDX-License-Identifier: Apache-2.0
/**
 * QEMU's own view of a vfio-user device, as a value.
 *
 * Stock QEMU emulates a part of a vfio-user device itself (BARs, MSI and MSI-X control, the MSI-X table) and derives
 * from writes to them, and to COMMAND, where the device is mapped and how it interrupts. None of it migrates: at the
 * destination the device is unmapped and mute, until the writes that the guest once made are made again.
 */
import * as z from '../zod.js';
import {
  BAR_COUNT,
  CapabilityId,
  CONFIG_SPACE_SIZE,
  configView,
  Msi,
  Msix,
  memoryBarBase,
  Register,
  walkCapabilities,
} from './pci-config.js';

const U8 = z.int().min(0).max(0xff);
const U16 = z.int().min(0).max(0xffff);
const U32 = z.int().min(0).max(0xffffffff);

const MsiView = z.object({
  /** Start of the capability in configuration space, bytes. */
  offset: U8,
  control: U16,
  addressLow: U32,
  /** 0 unless the capability is a 64-bit one. */
  addressHigh: U32,
  data: U16,
  /** 0 unless vectors are maskable one by one. */
  mask: U32,
});

const MsixEntry = z.object({ addressLow: U32, addressHigh: U32, data: U32, vectorControl: U32 });

const MsixView = z.object({
  /** Start of the capability in configuration space, bytes. */
  offset: U8,
  control: U16,
  /** Table Offset / Table BIR, as in the capability. */
  table: U32,
  /** Empty if the guest could not reach the table either: its BAR is not set or not decoded. */
  entries: z.array(MsixEntry).max(2048),
});

/** What QEMU knows about a device and does not migrate. Plain JSON, so that it can be journalled. */
export const PciView = z.object({
  /** Vendor and device id, the first dword. */
  id: U32,
  command: U16,
  interruptLine: U8,
  /** The six BAR registers as the guest reads them, flags included. */
  bars: z.array(U32).length(BAR_COUNT),
  romBar: U32,
  msi: MsiView.optional(),
  msix: MsixView.optional(),
});
export type PciView = z.infer<typeof PciView>;
export type MsixEntry = z.infer<typeof MsixEntry>;

/** Everything a 256-byte configuration space says; the MSI-X table's entries are elsewhere and left empty. */
export function decodeConfig(config: Uint8Array): PciView {
  const registers = configView(config);
  const u16 = (offset: number) => registers.getUint16(offset, true);
  const u32 = (offset: number) => registers.getUint32(offset, true);
  const capabilities = walkCapabilities(config);
  const at = (id: number) => capabilities.find((capability) => capability.id === id)?.offset;
  const view: PciView = {
    id: u32(Register.id),
    command: u16(Register.command),
    interruptLine: registers.getUint8(Register.interruptLine),
    bars: Array.from({ length: BAR_COUNT }, (_, index) => u32(Register.bar0 + 4 * index)),
    romBar: u32(Register.romBar),
  };
  const msi = at(CapabilityId.msi);
  if (msi !== undefined) {
    const control = u16(msi + Msi.control);
    const is64 = (control & Msi.control64Bit) !== 0;
    const maskable = (control & Msi.controlMaskable) !== 0;
    view.msi = {
      offset: msi,
      control,
      addressLow: u32(msi + Msi.addressLow),
      addressHigh: is64 ? u32(msi + Msi.addressHigh) : 0,
      data: u16(msi + (is64 ? Msi.data64 : Msi.data32)),
      mask: maskable ? u32(msi + (is64 ? Msi.mask64 : Msi.mask32)) : 0,
    };
  }
  const msix = at(CapabilityId.msix);
  if (msix !== undefined) {
    view.msix = {
      offset: msix,
      control: u16(msix + Msix.control),
      table: u32(msix + Msix.table),
      entries: [],
    };
  }
  return view;
}

/** Whether the device interrupts by INTx, if at all: message signalled interrupts are off. */
export function usesIntx({ msi, msix }: PciView): boolean {
  const isMsix = ((msix?.control ?? 0) & Msix.controlEnable) !== 0;
  return !isMsix && ((msi?.control ?? 0) & Msi.controlEnable) === 0;
}

/** Offsets of the dwords that a view consists of and that can change while the device stays the same; the identity too. */
export function changingRegisters(view: PciView): number[] {
  const offsets: number[] = [Register.id, Register.command, Register.romBar, Register.interruptLine];
  for (let bar = 0; bar < BAR_COUNT; bar++) offsets.push(Register.bar0 + 4 * bar);
  const { msi, msix } = view;
  if (msi !== undefined) {
    for (let offset = 0; offset <= Msi.mask64; offset += 4) offsets.push(msi.offset + offset);
  }
  if (msix !== undefined) offsets.push(msix.offset);
  // An MSI capability without all of its optional registers ends before: what follows does no harm, the end does.
  return offsets.filter((offset) => offset < CONFIG_SPACE_SIZE);
}

/** Guest-physical address of the MSI-X table, or `undefined` while its BAR has none. */
export function msixTableAddress(view: PciView): number | undefined {
  if (view.msix === undefined) return undefined;
  const base = memoryBarBase(view.bars, view.msix.table & Msix.tableBarMask);
  return base === undefined ? undefined : base + ((view.msix.table & ~Msix.tableBarMask) >>> 0);
}
