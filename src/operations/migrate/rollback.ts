// SPDX-License-Identifier: Apache-2.0
/**
 * Back to the source: whatever went wrong, in whatever phase, the source's devices and VM run again, and the
 * destination surely does not.
 *
 *     destination QEMU quits → destination devices are reset (and let go of the image)
 *       → source devices run → COMMAND is put back → source VM runs
 */

import { DevstateError } from '../../errors.js';
import {
  cancelMigration,
  cutMigration,
  findPciDevice,
  type PciView,
  type QmpClient,
  type Qtest,
  queryRunState,
  restoreCommand,
  resumeVm,
} from '../../qemu/index.js';
import { Errno, MigrationState } from '../../wire/index.js';
import type { DeviceSocket } from '../device-socket.js';
import { delay, within } from '../waiting.js';
import { quit } from './destination-vm.js';
import { type ChangedSettings, clearNote } from './note.js';
import { putBackAt } from './qemu-settings.js';
import type { Run } from './run.js';

/** How long the source's QEMU may take to end its migration, ms. */
const QEMU_TIMEOUT_MS = 30_000;
/** How long it may take to answer before its migration is cut, ms. */
const ANSWER_TIMEOUT_MS = 2000;
/** How long the destination's QEMU may take to quit while the guest waits, ms. */
const QUIT_TIMEOUT_MS = 10_000;
/** How long a destination's device server may take to let go of the device, ms. */
const RESET_TIMEOUT_MS = 2000;
/** How long a source's device may have to wait for what the destination is just giving back, ms. */
const GIVE_BACK_MS = 2000;
/** How often it asks, ms. */
const ASK_AGAIN_MS = 10;

/** Collects what could not be undone, and goes on. */
class Attempts {
  readonly problems: string[] = [];

  async try(what: string, work: () => Promise<unknown>): Promise<boolean> {
    try {
      await work();
      return true;
    } catch (error) {
      this.problems.push(`${what}: ${error instanceof Error ? error.message : error}`);
      return false;
    }
  }
}

/** What came of a rollback, as sentences. */
export interface Rollback {
  /** What could not be undone. Empty: the source goes on. */
  readonly problems: readonly string[];
  /** What is left to be done although the source goes on. */
  readonly remarks: readonly string[];
}

/** Undoes a migration that failed. */
export async function rollback(run: Run): Promise<Rollback> {
  run.phase = 'rollback';
  run.report({ phase: 'rollback' });
  if (run.mayRunThere) {
    const problem =
      'the destination QEMU was told to run the VM and nobody can tell whether it does: see to it that it does not';
    return { problems: [problem], remarks: [] };
  }
  const attempts = new Attempts();
  // What the destination has is worth nothing only as long as there is a source to go back to.
  await attempts.try('the source QEMU is lost, and the destination was left as it is', () =>
    requireAlive(run.source.qmp),
  );
  if (attempts.problems.length > 0) return { problems: attempts.problems, remarks: [] };
  const remarks: string[] = [];
  await quit(run.destination.qmp, QUIT_TIMEOUT_MS).catch((error: unknown) => {
    // It waits for a `cont` that was never sent, and its devices for an image that the source takes back.
    remarks.push(
      `the destination QEMU does not quit (${error instanceof Error ? error.message : error}): kill it, it must not run`,
    );
  });
  // A server that is gone holds nothing; of one that does not answer the image's lock tells whether it does.
  await Promise.allSettled(
    run.devices.map(({ destination }) => within(RESET_TIMEOUT_MS, destination.device.reset())),
  );
  const devices = run.devices.map(({ id, source, view, silenced }) => ({
    id,
    source,
    view: silenced ? view : undefined,
  }));
  const { qmp, qtest } = run.source;
  const { wasRunning, settings } = run;
  const restored = await restoreSource({ qmp, qtest, devices, wasRunning, settings });
  return { problems: restored.problems, remarks: [...remarks, ...restored.remarks] };
}

export interface SourceToRestore {
  readonly qmp: QmpClient;
  readonly qtest: Qtest;
  readonly devices: readonly {
    readonly id: string;
    readonly source: DeviceSocket;
    /** QEMU's view of the device before INTx was silenced; undefined if it was not. */
    readonly view: PciView | undefined;
  }[];
  /** Whether the VM ran before. If QEMU's migration had completed it does not run again by itself. */
  readonly wasRunning: boolean;
  /** What was changed of QEMU's migration settings, if anything was. */
  readonly settings: ChangedSettings | undefined;
}

/** Lets the source's devices and VM run again, from wherever a migration left them. */
export async function restoreSource({
  qmp,
  qtest,
  devices,
  wasRunning,
  settings,
}: SourceToRestore): Promise<Rollback> {
  const attempts = new Attempts();
  for (const { id, source } of devices)
    await attempts.try(`device ${id} does not run again`, () => runAgain(source));
  // From here on its VM may run: QEMU resumes it when its migration fails.
  await attempts.try('the source QEMU does not answer', () => free(qmp));
  for (const { id, view } of devices) {
    if (view === undefined) continue;
    await attempts.try(`device ${id}: COMMAND was not put back`, async () => {
      const location = await findPciDevice(qmp, id, { signal: AbortSignal.timeout(QEMU_TIMEOUT_MS) });
      await within(QEMU_TIMEOUT_MS, restoreCommand(qtest, location, view));
    });
  }
  // A VM without its devices must not run: the guest would see its disk fail.
  if (attempts.problems.length > 0) return { problems: attempts.problems, remarks: [] };
  await attempts.try('the source VM does not run again', () => restoreVm(qmp, wasRunning));
  // The notes are for whoever tries again.
  if (attempts.problems.length > 0) return { problems: attempts.problems, remarks: [] };
  for (const { id, source } of devices)
    await attempts.try(`device ${id}: its dirty log was not stopped`, () => source.device.stopLogging());
  try {
    await putBackAt('source', qmp, settings);
  } catch (error) {
    const what = error instanceof Error ? error.message : String(error);
    return { problems: attempts.problems, remarks: [`${what}; devstate recover tries it again`] };
  }
  for (const { id, source } of devices)
    await attempts.try(`device ${id}: its note was not cleared`, () => clearNote(source.device));
  return { problems: attempts.problems, remarks: [] };
}

/** @throws when QEMU is gone. While it waits for a destination that does not answer it lives, and can say only that. */
async function requireAlive(qmp: QmpClient): Promise<void> {
  await qmp.execute('query-yank', { outOfBand: true, signal: AbortSignal.timeout(QEMU_TIMEOUT_MS) });
}

/** Frees QEMU from waiting for a destination that does not answer. */
async function free(qmp: QmpClient): Promise<void> {
  const soon = AbortSignal.timeout(ANSWER_TIMEOUT_MS);
  try {
    await queryRunState(qmp, { signal: soon });
  } catch (error) {
    if (!soon.aborted) throw error;
    await cutMigration(qmp, { signal: AbortSignal.timeout(QEMU_TIMEOUT_MS) });
  }
}

/** The destination may be about to give the image back: its server has to notice first that its VMM has ended. */
async function runAgain({ device }: DeviceSocket): Promise<void> {
  const deadline = performance.now() + GIVE_BACK_MS;
  for (;;) {
    try {
      return await device.setState(MigrationState.RUNNING);
    } catch (error) {
      const isBusy = error instanceof DevstateError && error.errno === Errno.EBUSY;
      if (!isBusy || performance.now() >= deadline) throw error;
    }
    await delay(ASK_AGAIN_MS);
  }
}

async function restoreVm(qmp: QmpClient, wasRunning: boolean): Promise<void> {
  const signal = AbortSignal.timeout(QEMU_TIMEOUT_MS);
  await cancelMigration(qmp, { signal });
  const state = await queryRunState(qmp, { signal });
  if (wasRunning && !state.running) await resumeVm(qmp, { signal });
}
