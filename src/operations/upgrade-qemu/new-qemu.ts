// SPDX-License-Identifier: Apache-2.0
/** The new QEMU: begun, waited for, asked. */

import { DevstateError } from '../../errors.js';
import {
  GuestWatch,
  listeningPaths,
  MigrationWatch,
  QmpClient,
  Qtest,
  queryMigration,
  queryRunState,
} from '../../qemu/index.js';
import type { DetachedProcess } from '../detached-process.js';
import type { Vm } from '../migrate/parties.js';
import { delay } from '../waiting.js';

/** How often to look whether it has come up, ms. */
const LOOK_AGAIN_MS = 2;
/** How often to look whether it has what it came for, ms. */
const ASK_AGAIN_MS = 2;

/** Settles when it listens at `socket`. Its one connection there is for another, so it is not tried. */
export async function untilListening(
  process: DetachedProcess,
  socket: string,
  signal: AbortSignal,
): Promise<void> {
  while (!(await listeningPaths()).includes(socket)) {
    signal.throwIfAborted();
    requireRunning(process);
    await Promise.race([delay(LOOK_AGAIN_MS), process.exited]);
  }
}

/** @throws DEVSTATE_E_QEMU_MIGRATION when it has ended */
export function requireRunning({ ended }: DetachedProcess): void {
  if (ended === undefined) return;
  throw new DevstateError('DEVSTATE_E_QEMU_MIGRATION', `the new QEMU ${ended}`);
}

/** Connects to it as soon as it can be asked. @param process undefined when it is unknown whether it still runs */
export async function connectQemu(
  path: string,
  process: DetachedProcess | undefined,
  signal: AbortSignal,
): Promise<Vm> {
  for (;;) {
    signal.throwIfAborted();
    if (process !== undefined) requireRunning(process);
    try {
      const qmp = await QmpClient.connect(path, { signal });
      let qtest: Qtest | undefined;
      try {
        qtest = await Qtest.attach(qmp, { signal });
        const watch = new MigrationWatch(qmp);
        return { qmp, qtest, watch, guest: await GuestWatch.begin(qmp, { signal }) };
      } catch (error) {
        qtest?.close();
        qmp.close();
        throw error;
      }
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof DevstateError) || error.code !== 'DEVSTATE_E_QMP_CONNECT') throw error;
    }
    await delay(LOOK_AGAIN_MS);
  }
}

/** Settles when it has all that the old one sent, and waits. @throws DEVSTATE_E_QEMU_MIGRATION when it cannot use it */
export async function untilArrived({ qmp }: Vm, signal: AbortSignal): Promise<void> {
  for (;;) {
    const { status } = await queryRunState(qmp, { signal });
    if (status !== 'inmigrate') return;
    const migration = await queryMigration(qmp, { signal });
    if (migration.status === 'failed') {
      const why = migration.error === undefined ? '' : `: ${migration.error}`;
      throw new DevstateError('DEVSTATE_E_QEMU_MIGRATION', `the new QEMU cannot use the VM's state${why}`);
    }
    await delay(ASK_AGAIN_MS);
  }
}
