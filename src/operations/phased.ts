// SPDX-License-Identifier: Apache-2.0
/**
 * What operations in phases share. A phase is a function from the state that the phase before has reached to the one that it
 * reaches itself; the states are types, so that what a phase needs is there, and phases in another order do not compile:
 *
 *     check(…) → checked → precopy(checked) → at-switchover → switchover(at-switchover) → stopped → …
 *
 * In the middle of a phase too things have changed that must be undone if it fails. So there are more states than phases:
 * `reach` gets the next state before the first step that only the rollback from that state undoes. `rollback` takes each
 * of them.
 */

import { asDevstateError, DevstateError } from '../errors.js';
import { QmpCommandError } from '../qemu/index.js';
import type { DeviceSocket } from './device-socket.js';
import { together } from './waiting.js';

/** Called with each state before the first step that belongs to it; returns the state. */
export type Reach<State> = <Next extends State>(next: Next) => Next;

/** How far an operation has come. */
export class Course<State> {
  #state: State;

  constructor(first: State) {
    this.#state = first;
  }

  get state(): State {
    return this.#state;
  }

  readonly reach: Reach<State> = (next) => {
    this.#state = next;
    return next;
  };
}

/** What came of a rollback, as sentences. */
export interface Rollback {
  /** Where and how the VM is then, for the end of an error. */
  readonly left: string;
  /** What could not be undone. Empty: the source continues. */
  readonly problems: readonly string[];
  /** What is left to be done although the source continues. */
  readonly remarks: readonly string[];
}

/** What an operation does after its check. */
export interface Phases<State, Done> {
  /** Phase by phase, until nothing is to be undone any more. */
  readonly proceed: (reach: Reach<State>) => Promise<Done>;
  /** The phase that a state belongs to, as it is reported. */
  readonly phaseOf: (state: State) => string;
  /** The error, or one in its place that explains it better. Before anything is undone. */
  readonly causeOf: (state: State, error: unknown) => Promise<unknown>;
  readonly rollback: (state: State) => Promise<Rollback>;
  /** The end of the error when not all could be undone. @param problems in one text */
  readonly stuck: (problems: string) => string;
}

/**
 * Runs the phases; if one fails, undoes what was changed by the state that was reached.
 * @throws the error with its phase and what is left; DEVSTATE_E_ROLLBACK when not all could be undone
 */
export async function inPhases<State, Done>(
  course: Course<State>,
  { proceed, phaseOf, causeOf, rollback, stuck }: Phases<State, Done>,
): Promise<Done> {
  try {
    return await proceed(course.reach);
  } catch (error) {
    const { state } = course;
    const phase = phaseOf(state);
    const reason = await causeOf(state, error);
    const { left, problems, remarks } = await rollback(state);
    if (problems.length === 0) throw inPhase(phase, reason, [left, ...remarks]);
    const message = `${phase}: ${asDevstateError(reason).message}; ${stuck(problems.join('; '))}`;
    throw new DevstateError('DEVSTATE_E_ROLLBACK', message, { cause: reason });
  }
}

/**
 * Waits for an answer of QEMU to what begins something. Where the answer is lost, or not waited for, it may have begun all the
 * same; one that is refused has not, though one of another manager may be under way.
 */
export async function beginning(order: Promise<unknown>, mayHaveBegun: () => void): Promise<void> {
  try {
    await order;
  } catch (error) {
    if (!(error instanceof QmpCommandError)) mayHaveBegun();
    throw error;
  }
}

/** Says that an error is of the check. */
export async function checking<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    throw inPhase('check', error);
  }
}

/** The error with the phase it came from. Its code and exit code stay. */
function inPhase(phase: string, error: unknown, remarks: readonly string[] = []): DevstateError {
  const { code, message, errno } = asDevstateError(error);
  return new DevstateError(code, [`${phase}: ${message}`, ...remarks].join('; '), {
    cause: error,
    ...(errno === undefined ? {} : { errno }),
  });
}

/** Keeps an error that is no reason to go back. */
export function warn({ warnings }: { readonly warnings: string[] }, prefix = ''): (error: unknown) => void {
  return (error) => {
    warnings.push(`${prefix}${error instanceof Error ? error.message : error}`);
  };
}

/** Runs `work` for all devices at the same time. */
export function forEachDevice<Device extends { readonly id: string }, T>(
  { devices }: { readonly devices: readonly Device[] },
  work: (device: Device) => Promise<T>,
): Promise<T[]> {
  return together(
    devices.map(async (device) => {
      try {
        return await work(device);
      } catch (error) {
        throw aboutDevice(error, device.id);
      }
    }),
  );
}

/** What ends the whole operation: whichever device it was at just then. */
const OF_NO_DEVICE: readonly string[] = ['DEVSTATE_E_CANCELLED', 'DEVSTATE_E_TIMEOUT'];

/** Says which device an error is about, when there is an error of ours to say it in. */
function aboutDevice(error: unknown, id: string): unknown {
  if (error instanceof DevstateError && OF_NO_DEVICE.includes(error.code)) return error;
  if (error instanceof Error && !error.message.startsWith('device '))
    error.message = `device ${id}: ${error.message}`;
  return error;
}

/** @param name of the server, as in `its source server has closed the connection` */
export function lostServer(id: string, name: string, { device, path }: DeviceSocket): DevstateError {
  const why = device.client.farewell ?? 'see whether it still runs';
  const message = `device ${id}: its ${name} (${path}) has closed the connection: ${why}`;
  return new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', message);
}

/** A device server that is lost ends an operation when it is lost, not when it is next needed; unless it never is. */
export function watchServer(
  id: string,
  name: string,
  server: DeviceSocket,
  abort: Limits['abort'],
  isNeeded: () => boolean = () => true,
): void {
  void server.device.client.closed().then(() => {
    if (isNeeded()) abort(lostServer(id, name, server));
  });
}

/** setTimeout takes no more, ms. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** One signal for everything that ends an operation before its time: cancellation, the time limit, somebody who is lost. */
export interface Limits {
  readonly signal: AbortSignal;
  readonly abort: (reason: DevstateError) => void;
  readonly clear: () => void;
}

/**
 * @param what the operation, as in `the migration was cancelled`
 * @param spentMs what earlier attempts have used of the time
 */
export function limitsOf(
  what: string,
  timeoutMs: number,
  cancel: AbortSignal | undefined,
  spentMs = 0,
): Limits {
  const controller = new AbortController();
  const onCancel = (): void => {
    controller.abort(new DevstateError('DEVSTATE_E_CANCELLED', `${what} was cancelled`));
  };
  if (cancel?.aborted === true) onCancel();
  cancel?.addEventListener('abort', onCancel);
  const timer = setTimeout(
    () => {
      const message = `${what} did not complete within ${timeoutMs / 1000} s`;
      controller.abort(new DevstateError('DEVSTATE_E_TIMEOUT', message));
    },
    Math.min(timeoutMs - spentMs, MAX_TIMER_MS),
  );
  return {
    signal: controller.signal,
    abort: (reason) => controller.abort(reason),
    clear: () => {
      clearTimeout(timer);
      cancel?.removeEventListener('abort', onCancel);
    },
  };
}
