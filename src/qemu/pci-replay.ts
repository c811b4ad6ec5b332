// SPDX-License-Identifier: Apache-2.0
/**
 * Captures QEMU's view of a vfio-user device at the source and replays it at the destination.
 *
 *     capture (source, at pre-switchover)          replay (destination, before `cont`)
 *       configuration space                          BARs, ROM BAR, interrupt line
 *       MSI-X table by reading its BAR               COMMAND                             → BARs are mapped
 *                                                    MSI-X table by writing its BAR
 *                                                    MSI registers, MSI, MSI-X control   → vectors are wired
 *
 * Where a PC's port pair leads there, its address latch is guest state (a vCPU may be stopped between its two accesses):
 * it is put back after every use.
 */
import { DevstateError } from '../errors.js';
import { type Expectation, effectsOf, identityOf, requireSame, requireSameModel } from './pci-checks.js';
import {
  configRead,
  configValues,
  configWrite,
  flipCommands,
  msixEntries,
  msixTableReads,
  type PciLocation,
  replayCommands,
  signalledControl,
} from './pci-commands.js';
import { CONFIG_SPACE_SIZE, Command, Register } from './pci-config.js';
import type { PciDevice } from './pci-location.js';
import { changingRegisters, decodeConfig, type PciView, usesIntx } from './pci-view.js';
import type { QtestAccess, QtestCommand } from './qtest.js';

/**
 * Runs commands for the device at `location`; their values. Where they go by a latch, the guest's value of it is put back
 * afterwards.
 */
export async function runConfig(
  qtest: QtestAccess,
  { config }: PciLocation,
  commands: readonly QtestCommand[],
): Promise<number[]> {
  if (config.kind === 'ecam') return qtest.run(commands);
  const [latch = 0] = await qtest.run([{ operation: 'inl', address: config.address }]);
  const restore: QtestCommand = { operation: 'outl', address: config.address, value: latch };
  const values = await qtest.run([...commands, restore]);
  return values.slice(0, -1);
}

/** The configuration space of the device at `location`, 256 bytes. The VM must be stopped. */
export async function readConfig(qtest: QtestAccess, location: PciLocation): Promise<Uint8Array> {
  const config = new Uint8Array(CONFIG_SPACE_SIZE);
  await readInto(
    qtest,
    location,
    Array.from({ length: CONFIG_SPACE_SIZE / 4 }, (_, index) => 4 * index),
    config,
  );
  return config;
}

/** Reads the dwords at `offsets` into their places in `config`. */
async function readInto(
  qtest: QtestAccess,
  location: PciLocation,
  offsets: readonly number[],
  config: Uint8Array,
): Promise<void> {
  const reads = offsets.flatMap((offset) => configRead(location, offset, 'l'));
  const values = configValues(reads, await runConfig(qtest, location, reads));
  const registers = new DataView(config.buffer, config.byteOffset, config.length);
  for (const [index, offset] of offsets.entries()) registers.setUint32(offset, values[index] ?? 0, true);
}

/**
 * Captures QEMU's view of the device at `location`. The VM must be stopped, the device's server still answering.
 * @param like configuration space of a device of the same model, such as the destination's: only the registers that a
 * guest or QEMU can change are read then, a fifth of all. Most reads are passed on to the device's server, and the guest waits.
 * Throws DEVSTATE_E_PCI_VIEW if the configuration space makes no sense, or is of another device than `like`.
 */
export async function capturePciView(
  qtest: QtestAccess,
  location: PciLocation,
  like?: Uint8Array,
): Promise<PciView> {
  const config = like === undefined ? await readConfig(qtest, location) : like.slice();
  if (like !== undefined) await readInto(qtest, location, changingRegisters(decodeConfig(like)), config);
  const view = decodeConfig(config);
  if (like !== undefined) requireSameModel(decodeConfig(like), view);
  const reads = msixTableReads(view, location);
  if (view.msix === undefined || reads.length === 0) return view;
  const entries = msixEntries(reads, await runConfig(qtest, location, reads));
  return { ...view, msix: { ...view.msix, entries } };
}

/**
 * Makes QEMU's view of the device at `location` that of `view`. The VM must be stopped; the device's own state must
 * be loaded before, because QEMU wires interrupts and maps BARs through the device's server.
 * Throws DEVSTATE_E_PCI_VIEW if the device there is another one, or does not keep what was written.
 */
export async function replayPciView(qtest: QtestAccess, location: PciLocation, view: PciView): Promise<void> {
  const checks = identityOf(view);
  const there = await readAll(qtest, location, checks);
  requireSame(checks, there, 'the device at the destination is another one');
  const kept = effectsOf(view);
  const commands = replayCommands(view, location);
  const readBack = kept.flatMap(({ offset, width }) => configRead(location, offset, width));
  const values = await runConfig(qtest, location, [...commands, ...readBack]);
  const found = configValues(readBack, values.slice(commands.length));
  requireSame(kept, found, 'the device did not keep what was replayed');
}

/**
 * Has a QEMU release the device's eventfds, after {@link silenceIntx}. By CPR the QEMU that follows has the same ones, and
 * both would wait for them: what the one has read, the other never sees. Undone by {@link replayPciView}.
 */
export async function muteInterrupts(
  qtest: QtestAccess,
  location: PciLocation,
  view: PciView,
): Promise<void> {
  await runConfig(qtest, location, flipCommands(view, location));
}

/** A device has no message signalled interrupts: now, or as long as its driver resets it. */
export class IntxError extends DevstateError {
  constructor() {
    const why = 'it interrupts by INTx, and QEMU loses such interrupts by CPR';
    super('DEVSTATE_E_PCI_VIEW', `${why}; use MSI or MSI-X, or migrate the VM to another QEMU`);
  }
}

/**
 * Throws IntxError for a device that interrupts by INTx. By CPR two QEMUs wait for its eventfd: what the wrong one has
 * read, the other never sees, and a level is not signalled again before it was seen. Nor does QEMU give a vfio-user device its
 * INTx eventfd when it comes up by CPR (`vfio_intx_enable`, QEMU 10.1 to 11.1).
 */
export function requireMessageSignalled({ interruptPin }: PciDevice, view: PciView): void {
  if (interruptPin !== 0 && usesIntx(view)) throw new IntxError();
}

/**
 * Keeps the device from asserting INTx, and deasserts the line. An INTx line that is up when QEMU migrates leaves the
 * destination's interrupt controller with an interrupt that nothing ever clears. Undone by {@link restoreCommand}.
 */
export async function silenceIntx(qtest: QtestAccess, location: PciLocation, view: PciView): Promise<void> {
  const silent = view.command | Command.interruptDisable;
  await runConfig(qtest, location, configWrite(location, Register.command, 'w', silent));
}

/** Whether the device is still as {@link silenceIntx} left it. Not if the guest, or a reset, has written COMMAND since. */
export async function isSilenced(qtest: QtestAccess, location: PciLocation, view: PciView): Promise<boolean> {
  const read = configRead(location, Register.command, 'w');
  const [command] = configValues(read, await runConfig(qtest, location, read));
  return command === (view.command | Command.interruptDisable);
}

/**
 * Whether the device is still as {@link silenceIntx} and {@link muteInterrupts} left it in this QEMU. COMMAND is the device's
 * own, and the QEMU that was to follow may have put it back; that MSI-X, or MSI, is off is this QEMU's.
 */
export async function isMuted(qtest: QtestAccess, location: PciLocation, view: PciView): Promise<boolean> {
  const control = signalledControl(view);
  const reads = [Register.command, ...(control === undefined ? [] : [control.offset])].flatMap((offset) =>
    configRead(location, offset, 'w'),
  );
  const [command, found] = configValues(reads, await runConfig(qtest, location, reads));
  if (command === (view.command | Command.interruptDisable)) return true;
  return control !== undefined && command === view.command && found === (control.value ^ control.enable);
}

/** Writes the captured COMMAND register back, after {@link silenceIntx}, when the source continues. */
export async function restoreCommand(
  qtest: QtestAccess,
  location: PciLocation,
  view: PciView,
): Promise<void> {
  await runConfig(qtest, location, configWrite(location, Register.command, 'w', view.command));
}

async function readAll(
  qtest: QtestAccess,
  location: PciLocation,
  checks: readonly Expectation[],
): Promise<number[]> {
  const reads = checks.flatMap(({ offset, width }) => configRead(location, offset, width));
  return configValues(reads, await runConfig(qtest, location, reads));
}
