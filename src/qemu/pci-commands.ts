// SPDX-License-Identifier: Apache-2.0
/**
 * The qtest commands that read and write a device as its guest would: configuration space by the way that the
 * machine has, the MSI-X table through its BAR. Pure: values in, commands out.
 */
import { DevstateError } from '../errors.js';
import { busCount, type ConfigAccess, type ConfigEcam, ECAM_BUS_SIZE } from './config-access.js';
import { Command, Msi, Msix, Register } from './pci-config.js';
import { type MsixEntry, msixTableAddress, type PciView } from './pci-view.js';
import type { QtestCommand, ReadOperation, WriteOperation } from './qtest.js';

/** Where a device answers to configuration accesses. */
export interface PciLocation {
  readonly bus: number;
  readonly slot: number;
  readonly function: number;
  /** The way there. */
  readonly config: ConfigAccess;
}

/** A function's address, without the way there. */
type BusAddress = Omit<PciLocation, 'config'>;

export type Width = 'b' | 'w' | 'l';

/** The latch's value for the dword of configuration space that holds byte `offset`. */
export function configAddress({ bus, slot, function: func }: BusAddress, offset: number): number {
  return (0x80000000 | (bus << 16) | (slot << 11) | (func << 8) | (offset & 0xfc)) >>> 0;
}

/** Guest-physical address of byte `offset` of configuration space. @throws DEVSTATE_E_PCI_DEVICE for a bus beyond the ECAM */
export function ecamAddress(
  config: ConfigEcam,
  { bus, slot, function: func }: BusAddress,
  offset: number,
): number {
  const { base, size } = config;
  const within = bus * ECAM_BUS_SIZE + slot * 2 ** 15 + func * 2 ** 12 + offset;
  if (within < size) return base + within;
  const message = `bus ${bus} is beyond the machine's ECAM, which covers ${busCount(config)} buses`;
  throw new DevstateError('DEVSTATE_E_PCI_DEVICE', message);
}

/** Commands that read a configuration register; its value is the last one's. */
export function configRead(location: PciLocation, offset: number, width: Width): QtestCommand[] {
  const { config } = location;
  if (config.kind === 'ecam')
    return [{ operation: `read${width}`, address: ecamAddress(config, location, offset) }];
  const operation: ReadOperation = `in${width}`;
  return [select(config.address, location, offset), { operation, address: config.data + (offset & 3) }];
}

/** Commands that write a configuration register. */
export function configWrite(
  location: PciLocation,
  offset: number,
  width: Width,
  value: number,
): QtestCommand[] {
  const { config } = location;
  if (config.kind === 'ecam')
    return [{ operation: `write${width}`, address: ecamAddress(config, location, offset), value }];
  const operation: WriteOperation = `out${width}`;
  return [
    select(config.address, location, offset),
    { operation, address: config.data + (offset & 3), value },
  ];
}

function select(latch: number, location: BusAddress, offset: number): QtestCommand {
  return { operation: 'outl', address: latch, value: configAddress(location, offset) };
}

/** The values of the registers that {@link configRead}s, and nothing else, have read. */
export function configValues(commands: readonly QtestCommand[], values: readonly number[]): number[] {
  return values.filter((_, index) => {
    const command = commands[index];
    return command !== undefined && !('value' in command);
  });
}

/** Commands that read the whole MSI-X table, four values per entry; none if the table cannot matter. */
export function msixTableReads(view: PciView, location: PciLocation): QtestCommand[] {
  const address = msixTableAddress(view);
  if (view.msix === undefined || address === undefined) return [];
  const count = (view.msix.control & Msix.controlTableSizeMask) + 1;
  const reads: QtestCommand[] = [];
  for (let offset = 0; offset < count * Msix.entrySize; offset += 4) {
    reads.push({ operation: 'readl', address: address + offset });
  }
  if ((view.command & Command.memory) !== 0) return reads;
  // Decoding is off but vectors are wired: the table counts. Decode it for as long as it takes to read it.
  if ((view.msix.control & Msix.controlEnable) === 0) return [];
  return [
    ...configWrite(location, Register.command, 'w', view.command | Command.memory),
    ...reads,
    ...configWrite(location, Register.command, 'w', view.command),
  ];
}

/** The MSI-X entries in the values that {@link msixTableReads} gave for `commands`. */
export function msixEntries(commands: readonly QtestCommand[], values: readonly number[]): MsixEntry[] {
  const words = configValues(commands, values);
  const entries: MsixEntry[] = [];
  for (let index = 0; index < words.length; index += 4) {
    const [addressLow = 0, addressHigh = 0, data = 0, vectorControl = 0] = words.slice(index, index + 4);
    entries.push({ addressLow, addressHigh, data, vectorControl });
  }
  return entries;
}

/** The register that turns MSI-X on, or MSI where there is no MSI-X; undefined for a device that has neither. */
export function signalledControl({
  msi,
  msix,
}: PciView): { offset: number; value: number; enable: number } | undefined {
  if (msix !== undefined)
    return { offset: msix.offset + Msix.control, value: msix.control, enable: Msix.controlEnable };
  if (msi !== undefined)
    return { offset: msi.offset + Msi.control, value: msi.control, enable: Msi.controlEnable };
  return undefined;
}

/** Commands that turn MSI-X, or MSI, from what it is in `view` to the other: on if it is off. */
export function flipCommands(view: PciView, location: PciLocation): QtestCommand[] {
  const control = signalledControl(view);
  return control === undefined
    ? []
    : configWrite(location, control.offset, 'w', control.value ^ control.enable);
}

/** Commands that make QEMU's view of the device at `location` that of `view`, in the order that QEMU needs. */
export function replayCommands(view: PciView, location: PciLocation): QtestCommand[] {
  const write = (offset: number, width: Width, value: number) => configWrite(location, offset, width, value);
  const commands = view.bars.flatMap((bar, index) => write(Register.bar0 + 4 * index, 'l', bar));
  commands.push(...write(Register.romBar, 'l', view.romBar));
  commands.push(...write(Register.interruptLine, 'b', view.interruptLine));
  const { msi, msix } = view;
  const table = msixTableAddress(view);
  if (msix !== undefined && table !== undefined && msix.entries.length > 0) {
    commands.push(...write(Register.command, 'w', view.command | Command.memory));
    for (const [index, entry] of msix.entries.entries()) {
      const words = [entry.addressLow, entry.addressHigh, entry.data, entry.vectorControl];
      const address = table + index * Msix.entrySize;
      commands.push(...words.map((value, word) => writel(address + 4 * word, value)));
    }
  }
  commands.push(...write(Register.command, 'w', view.command));
  if (msi !== undefined) {
    const is64 = (msi.control & Msi.control64Bit) !== 0;
    commands.push(...write(msi.offset + Msi.addressLow, 'l', msi.addressLow));
    if (is64) commands.push(...write(msi.offset + Msi.addressHigh, 'l', msi.addressHigh));
    commands.push(...write(msi.offset + (is64 ? Msi.data64 : Msi.data32), 'w', msi.data));
    if ((msi.control & Msi.controlMaskable) !== 0) {
      commands.push(...write(msi.offset + (is64 ? Msi.mask64 : Msi.mask32), 'l', msi.mask));
    }
    commands.push(...write(msi.offset + Msi.control, 'w', msi.control));
  }
  if (msix !== undefined) commands.push(...write(msix.offset + Msix.control, 'w', msix.control));
  return commands;
}

function writel(address: number, value: number): QtestCommand {
  return { operation: 'writel', address, value };
}
