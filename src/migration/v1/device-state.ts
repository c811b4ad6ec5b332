// SPDX-License-Identifier: Apache-2.0
/**
 * device_state of migration v1 (kernel 5.10, `vfio.h`, "State transitions"): which writes are legal, and which state of
 * v2 each means. Pure: two tables.
 *
 *     RESUMING ◀──▶ RUNNING ──▶ PRE_COPY ──▶ STOP_COPY ──▶ STOP
 *                    ◀─────────────┘  (cancelled)  │          │
 *                    ◀─────────────────────────────┘          │
 *                    ◀────────────────────────────────────────┘
 *
 * The text draws the way there. QEMU, the protocol's user, also goes back to RUNNING from everywhere (a migration that
 * is cancelled, a VM that is paused and continues) and begins to save a VM that is paused.
 */

import {
  DeviceState,
  deviceStateName,
  Errno,
  MigrationState,
  migrationStateName,
  RequestError,
} from '../../wire/index.js';

const { STOP, RUNNING, STOP_COPY, PRE_COPY, RESUMING, ERROR } = DeviceState;

/** What can be written in each state, beside the state itself. ERROR is left by a reset only. */
const legal: Readonly<Record<DeviceState, readonly DeviceState[]>> = {
  [STOP]: [RUNNING, STOP_COPY],
  [RUNNING]: [STOP, STOP_COPY, PRE_COPY, RESUMING],
  [STOP_COPY]: [STOP, RUNNING],
  [PRE_COPY]: [RUNNING, STOP_COPY],
  [RESUMING]: [RUNNING],
  [ERROR]: [],
};

const states = Object.keys(legal).map(Number) as DeviceState[];

/** What v1 shows of a state of v2: it knows nothing of P2P, so such a device runs. */
export function deviceStateOf(state: MigrationState): DeviceState {
  switch (state) {
    case MigrationState.STOP:
      return STOP;
    case MigrationState.RUNNING:
    case MigrationState.RUNNING_P2P:
      return RUNNING;
    case MigrationState.STOP_COPY:
      return STOP_COPY;
    case MigrationState.RESUMING:
      return RESUMING;
    case MigrationState.PRE_COPY:
    case MigrationState.PRE_COPY_P2P:
      return PRE_COPY;
    case MigrationState.ERROR:
      return ERROR;
  }
}

/** The state of v2 that a state of v1 means. */
export function migrationStateOf(state: DeviceState): MigrationState {
  switch (state) {
    case STOP:
      return MigrationState.STOP;
    case RUNNING:
      return MigrationState.RUNNING;
    case STOP_COPY:
      return MigrationState.STOP_COPY;
    case PRE_COPY:
      return MigrationState.PRE_COPY;
    case RESUMING:
      return MigrationState.RESUMING;
    case ERROR:
      return MigrationState.ERROR;
  }
}

/** Whether the bits are a state, ERROR included. */
export function isDeviceState(value: number): value is DeviceState {
  return (states as number[]).includes(value);
}

/**
 * What a write to device_state asks for.
 * @throws RequestError EINVAL for reserved bits, for 101, 110 and 111, and for a transition that is not legal
 */
export function requireTransition(from: DeviceState, written: number): DeviceState {
  if (!isDeviceState(written) || written === ERROR) {
    throw new RequestError(Errno.EINVAL, `${deviceStateName(written)} cannot be asked for`);
  }
  if (from === written || legal[from].includes(written)) return written;
  throw new RequestError(
    Errno.EINVAL,
    `no transition from ${deviceStateName(from)} to ${deviceStateName(written)}`,
  );
}

/**
 * What a client writes, one after the other, to bring a device from one state to another: the shortest legal way that
 * saves nothing and loads nothing in between. Empty when it is there.
 * @throws RequestError EINVAL when there is none: to or from ERROR
 */
export function deviceStatePath(from: DeviceState, to: DeviceState): DeviceState[] {
  if (from === to) return [];
  if (legal[from].includes(to)) return [to];
  // RUNNING is next to every state, so nothing is further than two steps.
  if (legal[from].includes(RUNNING) && legal[RUNNING].includes(to)) return [RUNNING, to];
  throw new RequestError(
    Errno.EINVAL,
    `no way from ${deviceStateName(from)} to ${migrationStateName(migrationStateOf(to))}`,
  );
}
