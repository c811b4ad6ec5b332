// SPDX-License-Identifier: Apache-2.0
/**
 * One VMM follows another at a device that notices nothing: the *first*, which has it, and the *second*, which connects
 * while the first is there still, or when it has just gone. A pure step function: state and event in, state and what is
 * to be done out.
 *
 *     none ──await──▶ awaited ──arrives──▶ arrived ──promote──▶ promoted ──commit──▶ none
 *       ▲               │  ▲                │   │                  │
 *       │               │  └──second leaves─┘   │                  │
 *       └──roll-back, expires, no one is left───┴──────────────────┘
 *
 * Until `promote` the second is an understudy: what it says is taken down, and nothing of it reaches the device. From
 * then on the first is that, so that `roll-back` is the same exchange once more. As long as this is under way no VMM's
 * end resets the device. It ends when the first has the device again, when the second has it for good, which it has also
 * once there is no first to go back to, or when there is neither; then the device is reset as after any VMM.
 */

import { Errno, RequestError } from '../wire/index.js';

export type NextVmmPhase = 'none' | 'awaited' | 'arrived' | 'promoted';

export interface NextVmmState {
  readonly phase: NextVmmPhase;
  /** The VMM that had the device when the next one was asked for is there. */
  readonly first: boolean;
  /** The next one is there. */
  readonly second: boolean;
  /** The time for the second to come is over: it does not get another one. */
  readonly expired: boolean;
}

/** What a manager asks for (`Action`), and what happens. */
export type NextVmmEvent = NextVmmAction | 'arrives' | 'first-leaves' | 'second-leaves' | 'expires';
export type NextVmmAction = 'await' | 'promote' | 'commit' | 'roll-back';

/**
 * `exchange`: the two change places. `end-first`, `end-second`: its connection is closed. `release`: no one has the
 * device any more.
 */
export type NextVmmEffect = 'exchange' | 'end-first' | 'end-second' | 'release';

export interface NextVmmStep {
  readonly state: NextVmmState;
  /** In this order. */
  readonly effects: readonly NextVmmEffect[];
}

/** Nothing is under way. @param vmm whether a VMM has the device */
export function idleNextVmm(vmm: boolean): NextVmmState {
  return { phase: 'none', first: vmm, second: false, expired: false };
}

const refuse = (errno: number, why: string): never => {
  throw new RequestError(errno, why);
};

/** Back to how it was, or as near to it as can be. */
function undo(state: NextVmmState): NextVmmStep {
  const effects: NextVmmEffect[] = [];
  if (state.phase === 'promoted') effects.push('exchange');
  if (state.second) effects.push('end-second');
  if (!state.first) effects.push('release');
  return { state: idleNextVmm(state.first), effects };
}

/** @throws RequestError for an action that cannot be taken now, or an event that cannot be: nothing has changed then */
export function stepNextVmm(state: NextVmmState, event: NextVmmEvent): NextVmmStep {
  const { phase, first, second } = state;
  const to = (change: Partial<NextVmmState>): NextVmmStep => ({
    state: { ...state, ...change },
    effects: [],
  });
  switch (event) {
    case 'await':
      if (phase !== 'none') refuse(Errno.EBUSY, 'the next VMM is awaited already');
      if (!first) refuse(Errno.ENOTCONN, 'no VMM is connected that another one could follow');
      return to({ phase: 'awaited' });
    case 'promote':
      // Without a first there is nothing to go back to.
      if (phase === 'arrived' && !first) return { state: idleNextVmm(true), effects: ['exchange'] };
      if (phase === 'arrived') return { state: { ...state, phase: 'promoted' }, effects: ['exchange'] };
      if (phase === 'awaited') refuse(Errno.ENOTCONN, 'the next VMM has not connected');
      return refuse(Errno.EINVAL, `nothing is to be promoted (${phase})`);
    case 'commit':
      if (phase === 'none') return { state, effects: [] };
      if (phase !== 'promoted') refuse(Errno.EINVAL, `nothing is to be committed (${phase})`);
      return { state: idleNextVmm(second), effects: second ? ['end-first'] : ['end-first', 'release'] };
    case 'roll-back':
      return phase === 'none' ? { state, effects: [] } : undo(state);
    case 'expires':
      return phase === 'awaited' ? undo(state) : to({ expired: true });
    case 'arrives':
      if (phase !== 'awaited') refuse(Errno.EBUSY, 'no VMM is awaited');
      return to({ phase: 'arrived', second: true });
    case 'first-leaves':
      if (phase !== 'promoted') return to({ first: false });
      return { state: idleNextVmm(second), effects: second ? [] : ['release'] };
    case 'second-leaves':
      if (phase !== 'arrived') return to({ second: false });
      if (state.expired) return undo({ ...state, second: false });
      return to({ phase: 'awaited', second: false });
  }
}
