// SPDX-License-Identifier: Apache-2.0
/** What the destination does when it leaves one state for another: the state that is entered, and what entering it puts out. */

import type {
  Contending,
  DestinationEnding,
  DestinationOutput,
  DestinationState,
  DestinationStep,
  DestinationWord,
  Running,
  Starting,
  Taking,
  TakingRelease,
} from './destination-states.js';
import { ask, type Base, baseOf, type RefusalCode, subjectOf, timer } from './machine.js';
import type { Arbiter, DestinationMessage } from './messages.js';
import type { DestinationRecord, Outcome, WhyTaken } from './records.js';

export function go(state: DestinationState, ...outputs: readonly DestinationOutput[]): DestinationStep {
  return { state, outputs };
}

export function refuse(state: DestinationState, code: RefusalCode): DestinationStep {
  return go(state, { type: 'refuse', code });
}

export function say(state: Base, type: DestinationMessage['type']): DestinationOutput[] {
  return state.link ? [{ type: 'send', message: { type, ...subjectOf(state) } }] : [];
}

function persist(record: DestinationRecord): DestinationOutput {
  return { type: 'persist', record };
}

export function persistIncoming(state: Base): DestinationOutput {
  return persist({ type: 'incoming', ...subjectOf(state), attempt: state.attempt });
}

export function persistTaken(state: Base, arbiter: Arbiter, why: WhyTaken): DestinationOutput {
  return persist({ type: 'taken', ...subjectOf(state), arbiter, why });
}

export function persistRan(state: Base): DestinationOutput {
  return persist({ type: 'ran', ...subjectOf(state) });
}

export function persistLast(state: Base, outcome: Outcome, word: DestinationWord): DestinationOutput {
  if (word === 'gaveUp') return persistGaveUp(state);
  return persist({ type: 'finished', ...subjectOf(state), outcome });
}

function persistGaveUp(state: Base): DestinationOutput {
  return persist({ type: 'gaveUp', ...subjectOf(state) });
}

/** Rule 3: the grant is written before anything follows from it. */
export function take(state: Base, arbiter: Arbiter, why: WhyTaken): DestinationStep {
  return go({ ...baseOf(state), name: 'taking', arbiter, why }, persistTaken(state, arbiter, why));
}

/** The grant is durable. */
export function taken(state: Taking): DestinationStep {
  return state.arbiter === 'none' ? start(state, 'word', state.why) : contend(state, true);
}

/** Rule 4: the token is taken before `cont`. */
export function contend(state: Base, fresh: boolean): DestinationStep {
  return askAgain({ ...baseOf(state), name: 'contending', fresh });
}

export function askAgain(state: Contending | Starting | Running): DestinationStep {
  const [next, question] = ask(state, state.attempt.destination);
  return go(next, question, timer(state, 'witness'));
}

/** The witness does not answer. A source that can be talked to can do without it. */
export function waitForWord(state: Contending): DestinationStep {
  return go(state, ...say(state, 'waiting'));
}

/** The source, or an operator, gives the right that the witness was asked for. */
export function takeRelease(state: Contending, why: WhyTaken): DestinationStep {
  const { fresh } = state;
  return go({ ...baseOf(state), name: 'takingRelease', why, fresh }, persistTaken(state, 'none', why));
}

/** There is a right, and what gives it is durable: the VM runs. */
export function start(state: Base, right: Starting['right'], why: WhyTaken): DestinationStep {
  return go(
    { ...baseOf(state), name: 'starting', right, why, settled: isSettled(state, right) },
    { type: 'run' },
    timer(state, 'repeat'),
  );
}

/** Whether the token says what the right says, or there is none. */
function isSettled({ attempt, token }: Base, right: Starting['right']): boolean {
  return !attempt.witness || (right === 'token' && token !== undefined);
}

/** The VM runs, and `runs` is sent to the source until it answers (rule 3). A token that says otherwise is made right. */
export function running(
  state: Base,
  from: { right: Starting['right']; noted: boolean; vm: Running['vm'] },
): DestinationStep {
  // An end that has nothing any more does not ask: the VM may run at the other one by now, by an operator's decision.
  const settled = from.vm === 'gone' || isSettled(state, from.right);
  const next: Running = { ...baseOf(state), name: 'running', ...from, done: false, settled };
  const outputs = [...say(state, 'runs'), ...(from.noted ? [] : [persistRan(state)]), timer(state, 'repeat')];
  if (settled) return go(next, ...outputs);
  const asking = askAgain(next);
  return go(asking.state, ...outputs, ...asking.outputs);
}

/** Done once the source knows, the token is right, and a restart will know that the VM has run. */
export function maybeClose(state: Running): DestinationStep {
  return state.done && state.noted && state.settled ? close(state, 'moved', 'runs') : go(state);
}

/** Rule 1: before the grant the destination gives up at any time. It says so when its copy has ended, and not before. */
export function giveUp(state: Base): DestinationStep {
  return go({ ...baseOf(state), name: 'givingUp' }, persistGaveUp(state));
}

export function end(state: Base, written: boolean): DestinationStep {
  return go({ ...baseOf(state), name: 'ending', written }, { type: 'end' }, timer(state, 'repeat'));
}

/** The copy has ended: that it will not run is certain, whatever is durable. */
export function hasEnded(state: DestinationEnding): DestinationStep {
  const told = say(state, 'gaveUp');
  if (state.written) return finish(state, 'returned', 'gaveUp', ...told);
  const step = close(state, 'returned', 'gaveUp');
  return go(step.state, ...told, ...step.outputs);
}

export function finish(
  state: Base,
  outcome: Outcome,
  word: DestinationWord,
  ...more: DestinationOutput[]
): DestinationStep {
  const { token } = state;
  return go({ ...baseOf(state), name: 'ended', outcome, word }, ...more, { type: 'finish', outcome, token });
}

/** The copy is gone while the token was waited for. */
export function goneBeforeRun(state: Contending | TakingRelease): DestinationStep {
  return state.fresh ? giveUp(state) : lose(state);
}

/** The grant is durable and the copy is gone. It may have run, so the source must not go on as if it had not. */
export function lose(state: Base): DestinationStep {
  return go({ ...baseOf(state), name: 'lost' }, ...say(state, 'gone'), timer(state, 'repeat'));
}

export function close(state: Base, outcome: Outcome, word: DestinationWord): DestinationStep {
  return go(
    { ...baseOf(state), name: 'closing', outcome, word },
    persistLast(state, outcome, word),
    timer(state, 'repeat'),
  );
}
