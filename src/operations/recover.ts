// SPDX-License-Identifier: Apache-2.0
/**
 * Puts a source back that a manager left in the middle of a migration: killed, or cut off. The notes that it left with
 * the device servers say what has to be undone.
 */

import { DevstateError } from '../errors.js';
import { QmpClient, Qtest, queryRunState } from '../qemu/index.js';
import { openDeviceSocket } from './device-socket.js';
import { readNote } from './migrate/note.js';
import { quit, restoreSource } from './migrate/rollback.js';

export interface RecoverOptions {
  readonly sourceQmp: string;
  /** The destination's QMP, if it is still there: it is made to quit, or, should the VM run there, nothing is done. */
  readonly destQmp?: string;
  readonly devices: readonly { readonly id: string; readonly source: string }[];
}

export interface RecoverResult {
  readonly status: 'recovered';
  readonly running: boolean;
  readonly devices: readonly { readonly id: string; readonly noted: boolean }[];
}

/**
 * @throws DEVSTATE_E_INCOMPATIBLE when the VM runs at the destination, DEVSTATE_E_ROLLBACK when something cannot be put back
 */
export async function recover(options: RecoverOptions): Promise<RecoverResult> {
  const close: (() => void)[] = [];
  try {
    if (options.destQmp !== undefined) await stopDestination(options.destQmp);
    const qmp = await QmpClient.connect(options.sourceQmp);
    close.push(() => qmp.close());
    const qtest = await Qtest.attach(qmp);
    close.push(() => qtest.close());
    const devices = [];
    let wasRunning = true;
    for (const { id, source: path } of options.devices) {
      const source = await openDeviceSocket(path);
      close.push(() => source.device.close());
      const note = await readNote(source.device);
      if (note !== undefined && note.id !== id) {
        throw new DevstateError(
          'DEVSTATE_E_USAGE',
          `the socket ${path} belongs to device ${note.id}, not ${id}`,
        );
      }
      if (note?.running === false) wasRunning = false;
      devices.push({ id, source, view: note?.view });
    }
    const problems = await restoreSource({ qmp, qtest, devices, wasRunning });
    if (problems.length > 0) {
      throw new DevstateError(
        'DEVSTATE_E_ROLLBACK',
        `the source could not be put back: ${problems.join('; ')}`,
      );
    }
    const { running } = await queryRunState(qmp);
    return {
      status: 'recovered',
      running,
      devices: devices.map(({ id, view }) => ({ id, noted: view !== undefined })),
    };
  } finally {
    for (const end of close.reverse()) end();
  }
}

async function stopDestination(path: string): Promise<void> {
  const qmp = await QmpClient.connect(path).catch((error: unknown) => {
    if (error instanceof DevstateError && error.code === 'DEVSTATE_E_QMP_CONNECT') return undefined;
    throw error;
  });
  if (qmp === undefined) return; // gone: it cannot run anything
  try {
    const { running } = await queryRunState(qmp);
    if (running) {
      const message = 'the VM runs at the destination: the migration had succeeded, quit the source instead';
      throw new DevstateError('DEVSTATE_E_INCOMPATIBLE', message);
    }
    await quit(qmp);
  } finally {
    qmp.close();
  }
}
