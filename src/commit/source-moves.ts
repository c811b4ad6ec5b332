// SPDX-License-Identifier: Apache-2.0
/** What the source does when it leaves one state for another: the state that is entered, and what entering it puts out. */

import { ask, type Base, baseOf, subjectOf, timer, type VmFound } from './machine.js';
import type { Arbiter, DestinationMessage, SourceMessage } from './messages.js';
import type { Outcome, SourceRecord, WhyBack } from './records.js';
import type {
  GoingBack,
  Granted,
  Migrating,
  Releasing,
  Settling,
  SourceOutput,
  SourceState,
  SourceStep,
} from './source-states.js';

export function go(state: SourceState, ...outputs: readonly SourceOutput[]): SourceStep {
  return { state, outputs };
}

export function say(state: Base, type: 'withdrawn' | 'done'): SourceOutput[] {
  return tell(state, { type, ...subjectOf(state) });
}

export function sayGrant(state: Base, arbiter: Arbiter): SourceOutput[] {
  return tell(state, { type: 'grant', ...subjectOf(state), arbiter });
}

export function sayOffer(state: Base): SourceOutput[] {
  return tell(state, { type: 'offer', ...subjectOf(state), attempt: state.attempt });
}

function tell({ link }: Base, message: SourceMessage): SourceOutput[] {
  return link ? [{ type: 'send', message }] : [];
}

function persist(record: SourceRecord): SourceOutput {
  return { type: 'persist', record };
}

export function persistBegun(state: Base): SourceOutput {
  return persist({ type: 'begun', ...subjectOf(state), attempt: state.attempt });
}

export function persistGranted(state: Base, arbiter: Arbiter): SourceOutput {
  return persist({ type: 'granted', ...subjectOf(state), arbiter });
}

export function persistBack(state: GoingBack): SourceOutput {
  return persist({ type: 'back', ...subjectOf(state), why: state.why });
}

export function persistMoved(state: Base): SourceOutput {
  return persist({ type: 'moved', ...subjectOf(state) });
}

export function persistClosed(state: Base, outcome: Outcome): SourceOutput {
  return persist({ type: 'closed', ...subjectOf(state), outcome });
}

/** Rule 1: before the grant the source gives up at any time, without asking the destination or the witness. */
export function giveUp(state: Base, vm: VmFound): SourceStep {
  if (vm === 'gone') return close(state, 'lost', undefined, ...say(state, 'withdrawn'));
  return resume(state, undefined, ...say(state, 'withdrawn'));
}

/** Rule 2: the destination has landed and the VM stands here. The promise is written before the destination learns of it. */
export function promise(state: Migrating): SourceStep {
  const arbiter = state.attempt.witness ? 'witness' : 'none';
  const granting = { ...baseOf(state), name: 'granting', vm: state.vm, cancelled: false } as const;
  return go(granting, persistGranted(state, arbiter));
}

/** The promise is durable. */
export function grant(state: Base, of: Omit<Granted, keyof Base | 'name'>): SourceStep {
  const sent = state.link;
  const { arbiter, vm, unsent, tokenHeld, destinationGone } = of;
  return go(
    {
      ...baseOf(state),
      ...{ name: 'granted', arbiter, vm, unsent: unsent && !sent, tokenHeld, destinationGone },
    },
    ...sayGrant(state, arbiter),
    timer(state, 'repeat'),
    ...(sent ? [] : [timer(state, 'patience')]),
  );
}

/** The destination cannot reach the witness. The two talk, so its answer is not needed (rule 4). */
export function release(state: Granted): SourceStep {
  if (state.arbiter === 'none') return go(state, ...sayGrant(state, 'none'));
  return go({ ...state, name: 'releasing' }, persistGranted(state, 'none'));
}

export function released(state: Releasing, arbiter: Arbiter): SourceStep {
  return grant(state, { ...state, arbiter });
}

/**
 * The witness may decide for the source: it has not been given up, the VM is here, and either the destination cannot be
 * talked to or it says that it has nothing any more.
 */
export function mayContend({ arbiter, vm, unsent, tokenHeld, destinationGone, link }: Granted): boolean {
  return arbiter === 'witness' && vm !== 'gone' && !unsent && !tokenHeld && (!link || destinationGone);
}

/** Rule 4: a source that wants to go back takes the token before it resumes. */
export function contend(state: Granted): SourceStep {
  if (!mayContend(state)) return go(state);
  const [next, question] = ask(state, state.attempt.source);
  return go(next, question, timer(state, 'witness'));
}

/** There is a right to run again: `back` is written before the VM runs, or a restart would take the promise as valid. */
export function goBack(state: Base, vm: VmFound, why: GoingBack['why'], ...more: SourceOutput[]): SourceStep {
  if (vm === 'gone') return close(state, 'lost', undefined, ...more);
  const next: GoingBack = { ...baseOf(state), name: 'goingBack', why, vm };
  return go(next, persistBack(next), ...more);
}

export function resume(state: Base, why: GoingBack['why'] | undefined, ...more: SourceOutput[]): SourceStep {
  return go({ ...baseOf(state), name: 'resuming', why }, ...more, { type: 'run' }, timer(state, 'repeat'));
}

/** The VM runs here. A token that may say otherwise, or become another by a late request, is made to say so. */
export function settle(state: Base, why: GoingBack['why'] | undefined): SourceStep {
  if (why === undefined || !state.attempt.witness || state.token !== undefined)
    return close(state, 'returned', why);
  return askAgain({ ...baseOf(state), name: 'settling', why });
}

export function askAgain(state: Settling): SourceStep {
  const [next, question] = ask(state, state.attempt.source);
  return go(next, question, timer(state, 'witness'));
}

/** The destination has the VM. That is written before this end's copy is ended, and before `done` is sent. */
export function leave(state: Base): SourceStep {
  return go({ ...baseOf(state), name: 'leaving' }, persistMoved(state));
}

export function end(state: Base, ...more: SourceOutput[]): SourceStep {
  return go({ ...baseOf(state), name: 'ending' }, ...more, { type: 'end' }, timer(state, 'repeat'));
}

export function close(
  state: Base,
  outcome: Outcome,
  why: WhyBack | undefined,
  ...more: SourceOutput[]
): SourceStep {
  return go(
    { ...baseOf(state), name: 'closing', outcome, why },
    ...more,
    persistClosed(state, outcome),
    timer(state, 'repeat'),
  );
}

export function finish(state: Base, outcome: Outcome, why: WhyBack | undefined): SourceStep {
  const { token } = state;
  return go({ ...baseOf(state), name: 'ended', outcome, why }, { type: 'finish', outcome, token });
}

/** What a source that has the VM no more, or again, answers. */
export function answerAfter(
  state: SourceState,
  outcome: Outcome,
  why: WhyBack | undefined,
  type: DestinationMessage['type'],
): SourceStep {
  switch (outcome) {
    case 'moved':
      if (type === 'runs' || type === 'gone') return go(state, ...say(state, 'done'));
      // An operator said that the VM runs there, and it only waits: the promise holds.
      if (type === 'landed' || type === 'waiting') return go(state, ...sayGrant(state, 'none'));
      return refuse(state, type === 'gaveUp' ? 'contradiction' : 'stale');
    case 'returned':
      if (type === 'gaveUp' || type === 'declined') return go(state);
      // The destination was fenced when the operator decided, so what it says is of before.
      if (type === 'runs' && why !== 'operator') return refuse(state, 'contradiction');
      return go(state, ...say(state, 'withdrawn'));
    case 'lost':
      if (type === 'gaveUp' || type === 'declined') return go(state);
      return go(state, ...say(state, type === 'runs' || type === 'gone' ? 'done' : 'withdrawn'));
  }
}

/**
 * A destination of an earlier attempt that has not heard how it ended. This end had the VM again when it began the present
 * one, so it was given up. Only an operator can have made the VM run there all the same: after this end was fenced, which has
 * nothing any more then, or before it, and then the destination has nothing, or refuses the answer as a contradiction.
 */
export function answerEarlier(state: SourceState, { type, vm, generation }: DestinationMessage): SourceStep {
  if (type === 'gaveUp' || type === 'declined') return refuse(state, 'stale');
  const hasNothing = (state.name === 'closing' || state.name === 'ended') && state.outcome === 'lost';
  const answer = type === 'runs' && hasNothing ? 'done' : 'withdrawn';
  return go(state, ...tell(state, { type: answer, vm, generation }), { type: 'refuse', code: 'stale' });
}

export function refuse(state: SourceState, code: (SourceOutput & { type: 'refuse' })['code']): SourceStep {
  return go(state, { type: 'refuse', code });
}
