// SPDX-License-Identifier: Apache-2.0
/**
 * Stopping and running several devices of one VM. They may write to each other: none stops before all have ended what
 * they had begun, and none begins before all can be written to. Devices without P2P states go along as they can.
 */

import { MigrationFlag, MigrationState } from '../../wire/index.js';
import type { DeviceSocket } from '../device-socket.js';
import { forEachDevice } from '../phased.js';
import { unlessAborted } from '../waiting.js';
import type { MovedDevice } from './parties.js';

/** As much of a migration as is needed here. */
export interface DevicesOfVm {
  readonly devices: readonly Pick<MovedDevice, 'id' | 'source' | 'destination'>[];
  readonly signal: AbortSignal;
}

const has = ({ flags }: DeviceSocket, flag: number): boolean => (flags & flag) !== 0;

/** The source's devices, from RUNNING or PRE_COPY to STOP_COPY. */
export async function stopSources(run: DevicesOfVm): Promise<void> {
  const { PRE_COPY_P2P, RUNNING_P2P, STOP_COPY } = MigrationState;
  const quiet = (source: DeviceSocket): MigrationState =>
    has(source, MigrationFlag.PRE_COPY) ? PRE_COPY_P2P : RUNNING_P2P;
  await stop(run, quiet, STOP_COPY);
}

/** Devices that stay where they are, from RUNNING to STOP: what they hold they keep. */
export async function pauseDevices(run: DevicesOfVm): Promise<void> {
  await stop(run, () => MigrationState.RUNNING_P2P, MigrationState.STOP);
}

async function stop(
  run: DevicesOfVm,
  quiet: (source: DeviceSocket) => MigrationState,
  stopped: MigrationState,
): Promise<void> {
  await forEachDevice(run, async ({ source }) => {
    if (has(source, MigrationFlag.P2P))
      await unlessAborted(source.device.setState(quiet(source)), run.signal);
  });
  await forEachDevice(run, ({ source }) => unlessAborted(source.device.setState(stopped), run.signal));
}

/** The destination's devices, whose load is committed or is with this, to RUNNING. */
export async function runDestinations(run: DevicesOfVm): Promise<void> {
  const { RUNNING_P2P, RUNNING } = MigrationState;
  await forEachDevice(run, async ({ destination }) => {
    if (has(destination, MigrationFlag.P2P))
      await unlessAborted(destination.device.setState(RUNNING_P2P), run.signal);
  });
  await forEachDevice(run, ({ destination }) =>
    unlessAborted(destination.device.setState(RUNNING), run.signal),
  );
}
