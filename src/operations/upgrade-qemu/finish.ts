// SPDX-License-Identifier: Apache-2.0
/**
 * What is left of a replacement whose manager died: with cpr-exec the new program has the VM, and there is only the way
 * forward; else the old QEMU has its devices again.
 */

import { DevstateError } from '../../errors.js';
import { type QmpClient, type Qtest, queryMigration, queryRunState, resumeVm } from '../../qemu/index.js';
import { MigrationState, type NextVmmStatus } from '../../wire/index.js';
import type { DeviceSocket } from '../device-socket.js';
import { clearNote, type Note } from '../migrate/note.js';
import { runDestinations } from '../migrate/p2p.js';
import { replay } from '../migrate/view.js';
import { forEachDevice } from '../phased.js';
import { delay } from '../waiting.js';

/** How long QEMU and the servers may take, ms. */
const TIMEOUT_MS = 60_000;
/** How often QEMU is asked whether it has executed the program, ms. */
const ASK_AGAIN_MS = 10;

/** A device as it was found. */
export interface LeftDevice {
  readonly id: string;
  readonly source: DeviceSocket;
  readonly note: Note | undefined;
  /** How its VMMs stand; undefined at a server that knows of no next one. */
  readonly vmms: NextVmmStatus | undefined;
}

/**
 * Waits until a QEMU that is just executing another program has, or has failed to; or until that one has read the VM. To go
 * back, or forward, meanwhile would take the devices from a VM that is about to be there.
 * @throws DEVSTATE_E_QMP_CLOSED, DEVSTATE_E_TIMEOUT; nothing has changed
 */
export async function untilExecuted(qmp: QmpClient, devices: readonly LeftDevice[]): Promise<void> {
  if (!devices.some(({ note }) => note?.exec === true)) return;
  const signal = AbortSignal.timeout(TIMEOUT_MS);
  const next = 'nothing was changed: run devstate recover again when it can be asked';
  try {
    while (await isExecuting(qmp, signal)) await delay(ASK_AGAIN_MS);
  } catch (cause) {
    if (signal.aborted) {
      const message = `QEMU has not executed the new program, nor given it up, after ${TIMEOUT_MS / 1000} s; ${next}`;
      throw new DevstateError('DEVSTATE_E_TIMEOUT', message, { cause });
    }
    if (!(cause instanceof DevstateError) || cause.code !== 'DEVSTATE_E_QMP_CLOSED') throw cause;
    const message = `QEMU has executed the new program just now, or has ended; ${next}`;
    throw new DevstateError('DEVSTATE_E_QMP_CLOSED', message, { cause });
  }
}

async function isExecuting(qmp: QmpClient, signal: AbortSignal): Promise<boolean> {
  const [{ status }, migration] = [
    await queryRunState(qmp, { signal }),
    await queryMigration(qmp, { signal }),
  ];
  if (status === 'inmigrate' || migration.status === 'device') return true;
  return status === 'postmigrate' && migration.status === 'completed';
}

/** Whether QEMU has executed the new program, which has the VM and waits. */
export async function hasExecuted(qmp: QmpClient, devices: readonly LeftDevice[]): Promise<boolean> {
  if (!devices.some(({ note }) => note?.exec === true)) return false;
  const [{ status }, migration] = [await queryRunState(qmp), await queryMigration(qmp)];
  // The old program would be at `pre-switchover`, or `postmigrate`.
  return status === 'paused' && migration.status === 'completed';
}

/** Gives the new program its devices, and has the VM run if it did. */
export async function finishExec(
  vm: { readonly qmp: QmpClient; readonly qtest: Qtest },
  devices: readonly LeftDevice[],
): Promise<void> {
  const signal = AbortSignal.timeout(TIMEOUT_MS);
  await forEachDevice({ devices }, async ({ source: { device }, vmms }) => {
    if (vmms?.phase !== 'arrived') return;
    await device.setState(MigrationState.STOP);
    await device.setNextVmm({ action: 'promote' });
  });
  await forEachDevice({ devices }, async ({ id, note }) => {
    if (note?.view !== undefined) await replay(vm, { id, view: note.view }, signal);
  });
  const both = devices.map(({ id, source }) => ({ id, source, destination: source }));
  await runDestinations({ devices: both, signal });
  if (devices.some(({ note }) => note?.running === true)) await resumeVm(vm.qmp, { signal });
  await forEachDevice({ devices }, ({ source: { device } }) => clearNote(device));
}

/**
 * A device that has changed hands and runs may belong to a VM that runs in the new QEMU.
 * @throws DEVSTATE_E_INCOMPATIBLE unless somebody has looked there
 */
export async function requireUnclaimed(devices: readonly LeftDevice[], looked: boolean): Promise<void> {
  for (const { id, source, vmms } of devices) {
    if (looked || vmms?.phase !== 'promoted') continue;
    if ((await source.device.state()) !== MigrationState.RUNNING) continue;
    const message = `device ${id} is the new QEMU's, and the VM may run there: name its QMP socket with --dest-qmp`;
    throw new DevstateError('DEVSTATE_E_INCOMPATIBLE', message);
  }
}
