// SPDX-License-Identifier: Apache-2.0
/**
 * The migration v2 state machine (`enum vfio_device_mig_state`): which arcs exist, and the path from any state to any
 * other. Pure: a table and a step function.
 *
 *                       RESUMING
 *                          |
 *     RUNNING - R_P2P - STOP - STOP_COPY
 *        |        |               |
 *     PRE_COPY - PRE_COPY_P2P ----'
 *
 * Paths are the shortest; states in which data are saved are never passed through. A state that the device does not
 * have is skipped by asking the table again from there, as the kernel does.
 */

import { Errno, MigrationFlag, MigrationState, migrationStateName, RequestError } from '../wire/index.js';

const { STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P, ERROR } = MigrationState;
/** Refused. */
const none = undefined;

/** `steps[current][target]`: where to go next. Kernel, `vfio_mig_get_next_state`. Indexed by the state's number. */
const steps: readonly (readonly (MigrationState | undefined)[])[] = [
  // to:        ERROR STOP         RUNNING      STOP_COPY     RESUMING     RUNNING_P2P  PRE_COPY     PRE_COPY_P2P
  /* ERROR */ [none, none, none, none, none, none, none, none],
  /* STOP */ [none, STOP, RUNNING_P2P, STOP_COPY, RESUMING, RUNNING_P2P, RUNNING_P2P, RUNNING_P2P],
  /* RUNNING */ [none, RUNNING_P2P, RUNNING, RUNNING_P2P, RUNNING_P2P, RUNNING_P2P, PRE_COPY, RUNNING_P2P],
  /* STOP_COPY */ [none, STOP, STOP, STOP_COPY, STOP, STOP, none, none],
  /* RESUMING */ [none, STOP, STOP, STOP, RESUMING, STOP, STOP, STOP],
  /* RUNNING_P2P */ [none, STOP, RUNNING, STOP, STOP, RUNNING_P2P, RUNNING, PRE_COPY_P2P],
  /* PRE_COPY */ [none, RUNNING, RUNNING, PRE_COPY_P2P, RUNNING, RUNNING, PRE_COPY, PRE_COPY_P2P],
  /* PRE_COPY_P2P */ [
    none,
    RUNNING_P2P,
    RUNNING_P2P,
    STOP_COPY,
    RUNNING_P2P,
    RUNNING_P2P,
    PRE_COPY,
    PRE_COPY_P2P,
  ],
];

/** States that a device with these `MigrationFlag` bits has. */
export function supportedStates(flags: number): Set<MigrationState> {
  const states = new Set<MigrationState>([ERROR, RUNNING]);
  if ((flags & MigrationFlag.STOP_COPY) === 0) return states;
  for (const state of [STOP, STOP_COPY, RESUMING] as const) states.add(state);
  if ((flags & MigrationFlag.P2P) !== 0) states.add(RUNNING_P2P);
  if ((flags & MigrationFlag.PRE_COPY) !== 0) states.add(PRE_COPY);
  if ((flags & MigrationFlag.P2P) !== 0 && (flags & MigrationFlag.PRE_COPY) !== 0) states.add(PRE_COPY_P2P);
  return states;
}

/**
 * The states to go through, `target` last; empty when already there.
 * @throws RequestError EINVAL when there is no way, or the device does not have `target`
 */
export function migrationPath(
  current: MigrationState,
  target: number,
  supported: ReadonlySet<number>,
): MigrationState[] {
  const path: MigrationState[] = [];
  let state = current;
  while (state !== target) {
    let next = supported.has(target) ? steps[state]?.[target] : none;
    while (next !== none && !supported.has(next)) next = steps[next]?.[target];
    if (next === none) {
      throw new RequestError(
        Errno.EINVAL,
        `no transition from ${migrationStateName(current)} to ${migrationStateName(target)}`,
      );
    }
    state = next;
    path.push(state);
  }
  return path;
}

/** Carries out one arc. A throw leaves the machine where it was, unless it is a {@link BrokenDeviceError}. */
export type ArcAction = (from: MigrationState, to: MigrationState) => void | Promise<void>;

/** Thrown by an arc that could not be carried out and could not be undone: the device is in ERROR until it is reset. */
export class BrokenDeviceError extends RequestError {
  constructor(cause: unknown) {
    const errno = cause instanceof RequestError ? cause.errno : Errno.EIO;
    super(errno, cause instanceof Error ? cause.message : String(cause));
    this.name = 'BrokenDeviceError';
    this.cause = cause;
  }
}

/** A device's migration state, and the one way to change it. */
export class MigrationMachine {
  readonly supported: ReadonlySet<MigrationState>;
  #state: MigrationState = RUNNING;
  readonly #arc: ArcAction;

  /** @param flags `MigrationFlag` bits */
  constructor(
    readonly flags: number,
    arc: ArcAction,
  ) {
    this.supported = supportedStates(flags);
    this.#arc = arc;
  }

  get state(): MigrationState {
    return this.#state;
  }

  /**
   * Goes to `target`, arc by arc. When an arc fails the machine stays at the last state that was reached (or ERROR).
   * One call at a time. @throws RequestError EINVAL for an impossible request, else what the arc threw
   */
  async setState(target: number): Promise<void> {
    for (const next of migrationPath(this.#state, target, this.supported)) {
      try {
        await this.#arc(this.#state, next);
      } catch (error) {
        if (error instanceof BrokenDeviceError) this.#state = ERROR;
        throw error;
      }
      this.#state = next;
    }
  }

  /** Gives the device up: ERROR, from any state. */
  breakDown(): void {
    this.#state = ERROR;
  }

  /** The device was found in this state: its process was another one when it came there. */
  find(state: MigrationState): void {
    this.#state = state;
  }

  /** The device was reset: RUNNING, from any state. */
  reset(): void {
    this.#state = RUNNING;
  }
}
