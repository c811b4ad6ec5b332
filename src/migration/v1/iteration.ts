// SPDX-License-Identifier: Apache-2.0
/**
 * The order in which the registers of migration v1 are used for one chunk (kernel 5.10, `vfio.h`, "The sequence to be
 * followed"). Pure: a table for saving and one for resuming, phase × access → what to do, and the next phase.
 *
 * Saving:  read pending_bytes ─▶ read data_offset ─▶ read data_size ─▶ read the data ─┐
 *              ▲───────────────────── read pending_bytes (has taken it) ◀─────────────┘
 *
 * Resuming:  read data_offset ─▶ write the data ─▶ write data_size ─┐
 *              ▲────────────────────────────────────────────────────┘
 *
 * A chunk is the client's, and the next one comes, only when pending_bytes is read after its data_size was: who does not
 * know how long it is cannot have taken it. So nothing is staged twice, and nothing is lost by a read too many. The
 * saving continues from PRE_COPY to STOP_COPY with the chunk that is staged.
 */

/** Accesses that take part, of either direction. */
export type IterationAccess = 'pending_bytes' | 'data_offset' | 'data_size' | 'data';

/** `next`: a chunk is fetched, if there is one. `repeat`: as the last time. `stage`: the chunk is put in place. */
export type SaveAction = 'next' | 'repeat' | 'stage' | 'refuse';

/**
 * - `idle`: nothing is pending as far as the client knows
 * - `pending`: it knows that there is a chunk
 * - `staged`: the chunk is in the data section
 * - `told`: and the client knows how long it is
 */
export type SavePhase = 'idle' | 'pending' | 'staged' | 'told';

interface Step<Action, Phase> {
  readonly action: Action;
  /** The phase of `next`, when there is a chunk; without one the phase is `idle`. */
  readonly phase: Phase;
}

function step<Action, Phase>(action: Action, phase: Phase): Step<Action, Phase> {
  return { action, phase };
}

export const saveSteps: Readonly<
  Record<SavePhase, Readonly<Record<IterationAccess, Step<SaveAction, SavePhase>>>>
> = {
  idle: {
    pending_bytes: step('next', 'pending'),
    data_offset: step('refuse', 'idle'),
    data_size: step('refuse', 'idle'),
    data: step('refuse', 'idle'),
  },
  pending: {
    pending_bytes: step('repeat', 'pending'),
    data_offset: step('stage', 'staged'),
    data_size: step('refuse', 'pending'),
    data: step('refuse', 'pending'),
  },
  staged: {
    pending_bytes: step('repeat', 'staged'),
    data_offset: step('repeat', 'staged'),
    data_size: step('repeat', 'told'),
    data: step('repeat', 'staged'),
  },
  told: {
    pending_bytes: step('next', 'pending'),
    data_offset: step('repeat', 'told'),
    data_size: step('repeat', 'told'),
    data: step('repeat', 'told'),
  },
};

/** `place`: the client may write the data. `consume`: it has. */
export type LoadAction = 'place' | 'write' | 'consume' | 'refuse';
/** `placed`: the client knows where to write. */
export type LoadPhase = 'idle' | 'placed';

/** The steps of RESUMING: data_offset is read, data and data_size are written. */
export const loadSteps: Readonly<
  Record<LoadPhase, Readonly<Record<Exclude<IterationAccess, 'pending_bytes'>, Step<LoadAction, LoadPhase>>>>
> = {
  idle: {
    data_offset: step('place', 'placed'),
    data: step('refuse', 'idle'),
    data_size: step('refuse', 'idle'),
  },
  placed: {
    data_offset: step('place', 'placed'),
    data: step('write', 'placed'),
    data_size: step('consume', 'idle'),
  },
};
