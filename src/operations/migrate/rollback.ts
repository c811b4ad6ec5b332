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
  findPciDevice,
  type PciView,
  type QmpClient,
  type Qtest,
  queryRunState,
  restoreCommand,
  resumeVm,
} from '../../qemu/index.js';
import { MigrationState } from '../../wire/index.js';
import type { DeviceSocket } from '../device-socket.js';
import { clearNote } from './note.js';
import type { Run } from './run.js';

/** How long a QEMU may take to end its migration or to quit, ms. */
const QEMU_TIMEOUT_MS = 30_000;

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

/** Undoes a migration that failed. @returns what could not be undone, as sentences */
export async function rollback(run: Run): Promise<string[]> {
  run.phase = 'rollback';
  run.report({ phase: 'rollback' });
  const attempts = new Attempts();
  await attempts.try('the destination QEMU does not quit', () => quit(run.destination.qmp));
  if (attempts.problems.length > 0) return attempts.problems;
  // A destination server that is gone holds nothing.
  await Promise.allSettled(run.devices.map(({ destination }) => destination.device.reset()));
  const devices = run.devices.map(({ id, source, view, silenced }) => ({
    id,
    source,
    view: silenced ? view : undefined,
  }));
  return restoreSource({ qmp: run.source.qmp, qtest: run.source.qtest, devices, wasRunning: run.wasRunning });
}

/** A QEMU that is gone has quit. @throws when it may still be there */
export async function quit(qmp: QmpClient): Promise<void> {
  const signal = AbortSignal.timeout(QEMU_TIMEOUT_MS);
  const gone = qmp.waitForEvent(() => false, { signal });
  await qmp.execute('quit', { signal }).catch(() => {});
  await gone.catch((error: unknown) => {
    const isGone = error instanceof DevstateError && error.code === 'DEVSTATE_E_QMP_CLOSED';
    if (!isGone) throw error;
  });
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
  readonly wasRunning: boolean;
}

/** Lets the source's devices and VM run again, from wherever a migration left them. @returns what could not be done */
export async function restoreSource({ qmp, qtest, devices, wasRunning }: SourceToRestore): Promise<string[]> {
  const attempts = new Attempts();
  for (const { id, source, view } of devices) {
    await attempts.try(`device ${id} does not run again`, () =>
      source.device.setState(MigrationState.RUNNING),
    );
    if (view === undefined) continue;
    await attempts.try(`device ${id}: COMMAND was not put back`, async () => {
      await restoreCommand(qtest, await findPciDevice(qmp, id), view);
    });
  }
  // A VM without its devices must not run: the guest would see its disk fail.
  if (attempts.problems.length > 0) return attempts.problems;
  await attempts.try('the source VM does not run again', () => restoreVm(qmp, wasRunning));
  for (const { id, source } of devices) {
    await attempts.try(`device ${id}: its dirty log was not stopped`, () => source.device.stopLogging());
    await attempts.try(`device ${id}: its note was not cleared`, () => clearNote(source.device));
  }
  return attempts.problems;
}

async function restoreVm(qmp: QmpClient, wasRunning: boolean): Promise<void> {
  const signal = AbortSignal.timeout(QEMU_TIMEOUT_MS);
  await cancelMigration(qmp, { signal });
  const state = await queryRunState(qmp, { signal });
  if (wasRunning && !state.running) await resumeVm(qmp, { signal });
}
