// SPDX-License-Identifier: Apache-2.0
/** The phases of a handoff: how long each may take, how long it took, and which one an error belongs to. */

import { asDevstateError, DevstateError, type ErrorCode } from '../errors.js';

/**
 * prepare: nothing is moved yet. freeze: the giver stops and says what it is. transfer: fds and state are sent.
 * adopt: the receiver maps and loads. commit: the lease changes hands.
 */
export const HANDOFF_PHASES = ['prepare', 'freeze', 'transfer', 'adopt', 'commit'] as const;
export type HandoffPhase = (typeof HANDOFF_PHASES)[number];

/** Milliseconds that each phase may take. */
export type PhaseTimeouts = Readonly<Record<HandoffPhase, number>>;

/**
 * From the freeze on a VMM may be waiting for an answer, and QEMU waits 5 s before it gives its device up: what follows
 * the preparation must end, one way or the other, well before.
 */
export const DEFAULT_TIMEOUTS: PhaseTimeouts = {
  prepare: 30_000,
  freeze: 1000,
  transfer: 1000,
  adopt: 1500,
  commit: 500,
};

/** A handoff that did not come about, and where it ended. */
export class HandoffError extends DevstateError {
  readonly phase: HandoffPhase;

  constructor(phase: HandoffPhase, cause: unknown, goesOn: string) {
    const { code, message } = asDevstateError(cause);
    const own: readonly ErrorCode[] = ['DEVSTATE_E_HANDOFF_BUNDLE', 'DEVSTATE_E_HANDOFF_PEER'];
    super(
      own.includes(code) ? code : 'DEVSTATE_E_HANDOFF',
      `handoff failed in phase ${phase}: ${message}; ${goesOn}`,
      {
        cause,
      },
    );
    this.phase = phase;
  }
}

/** Where a handoff is, and how long each phase took. */
export class PhaseClock {
  /** Milliseconds, of the phases that have ended. */
  readonly ms: Partial<Record<HandoffPhase, number>> = {};
  phase: HandoffPhase = 'prepare';
  readonly #given: Partial<PhaseTimeouts>;
  #timeouts: PhaseTimeouts;

  constructor(timeouts: Partial<PhaseTimeouts> = {}) {
    this.#given = timeouts;
    this.#timeouts = { ...DEFAULT_TIMEOUTS, ...timeouts };
  }

  get timeouts(): PhaseTimeouts {
    return this.#timeouts;
  }

  /** A receiver's: from the next phase on it waits as long as its giver does, where it was given no time of its own. */
  followGiver(theirs: Partial<PhaseTimeouts>): void {
    const timeouts = { ...DEFAULT_TIMEOUTS, ...theirs, ...this.#given };
    // While the giver freezes, the receiver waits for what it will transfer.
    this.#timeouts = { ...timeouts, transfer: timeouts.freeze + timeouts.transfer };
  }

  /**
   * Carries a phase out. `work` is given a signal that aborts when the phase's time is over.
   * @throws what it threw, or DEVSTATE_E_TIMEOUT
   */
  async run<T>(phase: HandoffPhase, work: (signal: AbortSignal) => T | Promise<T>): Promise<T> {
    this.phase = phase;
    const started = performance.now();
    const limit = this.#timeouts[phase];
    const abort = new AbortController();
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        const error = new DevstateError('DEVSTATE_E_TIMEOUT', `not done within ${limit} ms`);
        abort.abort(error);
        reject(error);
      }, limit);
    });
    try {
      return await Promise.race([Promise.resolve(work(abort.signal)), late]);
    } finally {
      clearTimeout(timer);
      this.ms[phase] = performance.now() - started;
    }
  }
}
