// SPDX-License-Identifier: Apache-2.0
/** What must hold of a device before a captured view is replayed to it, and afterwards. Pure. */
import { DevstateError } from '../errors.js';
import type { Width } from './pci-commands.js';
import { CapabilityId, Command, Msi, Msix, Register } from './pci-config.js';
import type { PciView } from './pci-view.js';

/** A register, the bits of it that matter, and what they must be. */
export interface Expectation {
  readonly what: string;
  readonly offset: number;
  readonly width: Width;
  readonly mask: number;
  readonly value: number;
}

function expectation(
  what: string,
  offset: number,
  width: Width,
  value: number,
  mask = 0xffffffff,
): Expectation {
  return { what, offset, width, mask, value };
}

/** What tells that a device is of the kind that `view` was captured from. */
export function identityOf({ id, msi, msix }: PciView): Expectation[] {
  const checks = [expectation('vendor and device id', Register.id, 'l', id)];
  if (msi !== undefined) {
    const fixed = Msi.control64Bit | Msi.controlMaskable | 0x0e;
    checks.push(expectation('MSI capability', msi.offset, 'b', CapabilityId.msi));
    checks.push(expectation('MSI control', msi.offset + Msi.control, 'w', msi.control, fixed));
  }
  if (msix !== undefined) {
    const size = Msix.controlTableSizeMask;
    checks.push(expectation('MSI-X capability', msix.offset, 'b', CapabilityId.msix));
    checks.push(expectation('MSI-X table size', msix.offset + Msix.control, 'w', msix.control, size));
    checks.push(expectation('MSI-X table place', msix.offset + Msix.table, 'l', msix.table));
  }
  return checks;
}

/** What must read back after a replay. */
export function effectsOf({ bars, command, msi, msix }: PciView): Expectation[] {
  const decoding = Command.io | Command.memory;
  const checks = bars.map((bar, index) => expectation(`BAR${index}`, Register.bar0 + 4 * index, 'l', bar));
  checks.push(expectation('COMMAND', Register.command, 'w', command, decoding));
  if (msi !== undefined) checks.push(expectation('MSI control', msi.offset + Msi.control, 'w', msi.control));
  if (msix !== undefined) {
    checks.push(expectation('MSI-X control', msix.offset + Msix.control, 'w', msix.control));
  }
  return checks;
}

/** Throws DEVSTATE_E_PCI_VIEW, naming every register whose value is not as expected. */
export function requireSame(
  checks: readonly Expectation[],
  values: readonly number[],
  problem: string,
): void {
  const wrong = checks.filter(({ value, mask }, index) => (((values[index] ?? 0) ^ value) & mask) !== 0);
  if (wrong.length === 0) return;
  const hex = (value: number) => `0x${value.toString(16)}`;
  const list = wrong.map((check) => {
    return `${check.what} is ${hex(values[checks.indexOf(check)] ?? 0)}, not ${hex(check.value)}`;
  });
  throw new DevstateError('DEVSTATE_E_PCI_VIEW', `${problem}: ${list.join('; ')}`);
}

/** That two devices are of one model: same identity, same capabilities in the same places. */
export function requireSameModel(like: PciView, found: PciView): void {
  const isSame =
    like.id === found.id &&
    like.msi?.offset === found.msi?.offset &&
    like.msix?.offset === found.msix?.offset;
  if (isSame) return;
  const what = 'the devices at source and destination differ in their configuration space';
  throw new DevstateError('DEVSTATE_E_PCI_VIEW', `${what}; serve both with the same model and parameters`);
}
