// SPDX-License-Identifier: Apache-2.0
/**
 * Replaces the back end of a running VM by another one, with or without the device's state.
 *
 *     VMM            relay                     old server              new server
 *      │               │ VERSION, what it serves ────────────────────────▶│    prepare: the VMM continues
 *      │               │ DMA_MAP, SET_IRQS, RESUMING ────────────────────▶│
 *      │ access ──────▶│ (waits)                  │                       │
 *      │               │ GET_INFO (fence) ───────▶│                       │    drain
 *      │               │ what has changed since ─────────────────────────▶│    catch up
 *      │               │ STOP_COPY ──────────────▶│                       │    state
 *      │               │◀══════ MIG_DATA ═════════│══════════════════════▶│
 *      │               │ STOP, config writes, RUNNING ───────────────────▶│
 *      │               │ (waiting accesses) ─────────────────────────────▶│    adopt
 *      │◀──────────────│ close ──────────────────▶│
 *
 * Whatever fails before the new device runs, the old one continues. The time that the VMM waits is bounded: when too much
 * of it has gone by, that is a failure like any other.
 */

import { asDevstateError, DevstateError } from '../errors.js';
import { Errno, MigrationState } from '../wire/index.js';
import { withinTime } from './attach.js';
import type { BackEnd } from './back-end.js';
import type { Session } from './session.js';
import { type MoveOptions, StateMove } from './state-move.js';

export interface SwitchOptions extends Omit<MoveOptions, 'stopping'> {
  /** Where the new server listens. */
  readonly path: string;
  readonly withState: boolean;
  /** How long the VMM may wait, ms. */
  readonly holdMs: number;
}

/** Milliseconds; `heldMs` is what an access of the VMM waits at most, and the others but the first are its parts. */
export interface SwitchReport {
  readonly server: string;
  readonly withState: boolean;
  readonly stateBytes: number;
  readonly prepareMs: number;
  readonly heldMs: number;
  readonly drainMs: number;
  readonly catchUpMs: number;
  readonly stateMs: number;
}

/** The rest of the time that the VMM may wait is for the old server to continue. */
const SWITCH_PART = 0.7;
/** How often a device that is still held by the new server is asked to run again, ms. */
const ASK_AGAIN_MS = 10;

/** @throws DEVSTATE_E_RELAY, what `attach` throws, and the reason when the old back end continues */
export async function switchBackEnd(session: Session, options: SwitchOptions): Promise<SwitchReport> {
  const old = requireRunning(session);
  const started = performance.now();
  const { back: next } = await session.servers.attach(options.path);
  let move: StateMove | undefined;
  try {
    await withinTime(next, async () => {
      await session.servers.replay(next);
      if (options.withState)
        move = await StateMove.prepare(old, next, { ...options, stopping: () => session.keepConfig() });
    });
    if (requireRunning(session) !== old)
      throw new DevstateError('DEVSTATE_E_RELAY', 'the device server was replaced meanwhile');
  } catch (error) {
    move?.close();
    session.servers.discard(next);
    throw error;
  }
  const held = performance.now();
  session.servers.shut();
  try {
    const times = await inTime(options.holdMs * SWITCH_PART, replace(session, old, next, move));
    if (session.servers.back !== old)
      throw new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', 'the old server is gone');
    session.servers.adopt(next);
    return {
      server: options.path,
      withState: options.withState,
      stateBytes: move?.bytes ?? 0,
      prepareMs: held - started,
      heldMs: performance.now() - held,
      ...times,
    };
  } catch (error) {
    session.servers.discard(next);
    throw await goOn(session, old, move, error, held + options.holdMs);
  } finally {
    move?.close();
  }
}

/** @throws DEVSTATE_E_RELAY */
function requireRunning(session: Session): BackEnd {
  const { back, isOpen } = session.servers;
  if (back === undefined || !isOpen) {
    const message = 'the relay has no device server that could be replaced; wait until it is attached';
    throw new DevstateError('DEVSTATE_E_RELAY', message);
  }
  session.servers.requireNoMigration();
  return back;
}

async function replace(
  session: Session,
  old: BackEnd,
  next: BackEnd,
  move: StateMove | undefined,
): Promise<Pick<SwitchReport, 'drainMs' | 'catchUpMs' | 'stateMs'>> {
  const began = performance.now();
  await old.fence();
  const drained = performance.now();
  await session.servers.catchUp(next);
  const caughtUp = performance.now();
  await move?.move();
  await session.servers.replayConfig(next);
  await move?.runDestination();
  return {
    drainMs: drained - began,
    catchUpMs: caughtUp - drained,
    stateMs: performance.now() - caughtUp,
  };
}

/** The old server continues, as far as it can. @returns the error to report */
async function goOn(
  session: Session,
  old: BackEnd,
  move: StateMove | undefined,
  reason: unknown,
  deadline: number,
): Promise<DevstateError> {
  const { code, message, errno } = asDevstateError(reason);
  const rest = { cause: reason, ...(errno === undefined ? {} : { errno }) };
  if (session.servers.back !== old) {
    return new DevstateError(
      code,
      `${message}; the old server is gone too, and looked for at its path`,
      rest,
    );
  }
  let problem: string | undefined;
  if (move !== undefined && old.state !== MigrationState.RUNNING)
    problem = await inTime(deadline - performance.now(), runAgain(move, deadline)).then(
      () => undefined,
      (error: unknown) => asDevstateError(error).message,
    );
  if (session.servers.back === old) session.servers.adopt(old);
  if (problem === undefined) return new DevstateError(code, `${message}; the old server continues`, rest);
  const what = `${message}; and the old server does not continue: ${problem}. Reset the device, or restart its server`;
  return new DevstateError('DEVSTATE_E_ROLLBACK', what, rest);
}

/** The new server may be about to give back what only one of the two can hold. */
async function runAgain(move: StateMove, deadline: number): Promise<void> {
  for (;;) {
    try {
      await move.runSource();
      return;
    } catch (error) {
      const isBusy = asDevstateError(error).errno === Errno.EBUSY;
      if (!isBusy || performance.now() >= deadline) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, ASK_AGAIN_MS));
  }
}

/** @throws DEVSTATE_E_TIMEOUT; what is under way then is left to itself */
async function inTime<T>(limitMs: number, work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      const message = `the device servers took longer than the ${Math.round(limitMs)} ms that the VMM can wait`;
      reject(new DevstateError('DEVSTATE_E_TIMEOUT', message));
    }, limitMs);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
    work.catch(() => {});
  }
}
