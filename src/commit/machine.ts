// SPDX-License-Identifier: Apache-2.0
/**
 * What both ends' state machines have in common. A machine is a table: for each state, what each kind of input leads to. A
 * table that lacks a cell does not compile. States are plain data, a step is a pure function, and nothing here knows a clock.
 */

import type { Attempt } from './attempt.js';
import { isOwnedSince, tokenFor } from './attempt.js';
import type { Outcome } from './records.js';
import { sameToken, type Token, type WitnessAnswer } from './token.js';

/** Durations in ms. They decide how soon something is tried, never whether it is safe. */
export interface CommitSettings {
  /** How long the other end may be away before this one acts without it. */
  readonly patienceMs: number;
  /** How often what the other end has not answered is said again, and what failed is tried again. */
  readonly repeatMs: number;
  /** How long an answer of the witness is waited for. */
  readonly witnessMs: number;
}

export type TimerName = 'patience' | 'repeat' | 'witness';

/** What an end finds of its own copy of the VM. */
export type VmFound = 'running' | 'stopped' | 'gone';

/** Inputs that both ends have. */
export type CommonInput<Message, Rec extends { readonly type: string }> =
  | { readonly type: 'message'; readonly message: Message }
  /** The record is durable. */
  | { readonly type: 'persisted'; readonly record: Rec['type'] }
  /** It could not be written: it may be durable or not. */
  | { readonly type: 'persistFailed'; readonly record: Rec['type'] }
  /** The control connection to the other end is there, new or resumed; or it is not. */
  | { readonly type: 'connected' }
  | { readonly type: 'disconnected' }
  /** The timer that was set last under this name has run out. A machine ignores one that it no longer waits for. */
  | { readonly type: 'timer'; readonly name: TimerName }
  /** @see AskOutput; answers to an earlier process of this end are not passed on */
  | {
      readonly type: 'answer';
      readonly generation: number;
      readonly id: number;
      readonly answer: WitnessAnswer;
    }
  /** This end's copy of the VM: it runs now. */
  | { readonly type: 'vmRuns' }
  /** It surely does not run, although it was to. */
  | { readonly type: 'vmRunFailed' }
  /** It stands; its state is kept. */
  | { readonly type: 'vmStopped' }
  /** It is no more: its QEMU has ended, by itself or because it was told to. */
  | { readonly type: 'vmGone' }
  | { readonly type: 'cancel' }
  /** `fenced`: it is proven that the other end's copy is ended and stays so. */
  | { readonly type: 'operator'; readonly decision: 'here' | 'elsewhere'; readonly fenced: boolean };

/** The kinds of input, which are the columns of a table. */
export type CommonKind =
  | 'persisted'
  | 'persistFailed'
  | 'connected'
  | 'disconnected'
  | 'patience'
  | 'repeat'
  | 'witness'
  /** The token is this end's, by this answer or an earlier one that was lost. */
  | 'won'
  /** Another owner has the token. */
  | 'held'
  | 'unreachable'
  | 'vmRuns'
  | 'vmRunFailed'
  | 'vmStopped'
  | 'vmGone'
  | 'cancel'
  | 'here'
  | 'elsewhere';

/** Ask the witness to set `next` if the token is `expected`. */
export interface AskOutput {
  readonly type: 'ask';
  /** The attempt's, and a number that rises in it. Only the answer to the last request of an attempt counts. */
  readonly generation: number;
  readonly id: number;
  readonly expected: Token;
  readonly next: Token;
}

/** Why an input led to nothing although its sender may have expected something of it. */
export type RefusalCode =
  /** Of another attempt, or the answer to an earlier request. Comes with duplicates; nothing is wrong. */
  | 'stale'
  /** No correct peer, witness or host says this in this state. */
  | 'out-of-order'
  /** Both ends, or an end and the witness, claim the VM: a decision was made against the rules. */
  | 'contradiction'
  /** The VM runs here although it may not; it is being stopped. */
  | 'no-right'
  /** The grant has been sent: the migration cannot be cancelled. */
  | 'too-late'
  /** There is nothing for an operator to decide: the machine knows, or it will without help. */
  | 'nothing-to-decide'
  /** It is not proven that the other host is fenced. */
  | 'not-fenced'
  /** There is no copy of the VM at this end. */
  | 'vm-gone';

export type Output<Message, Rec> =
  | { readonly type: 'send'; readonly message: Message }
  /** Make durable, then say `persisted`. In the order in which they are put out, one after the other. */
  | { readonly type: 'persist'; readonly record: Rec }
  /**
   * Run the VM: `cont`. Said only where this end has the right to, and may be said again. `run`, `stop` and `end` are carried
   * out in the order in which they are put out, and each is answered by an input when it was carried out.
   */
  | { readonly type: 'run' }
  /** Stop the VM at once, and keep its state. */
  | { readonly type: 'stop' }
  /** End this end's copy of the VM, and say `gone` when it is. May be said again. */
  | { readonly type: 'end' }
  | AskOutput
  /** Replaces the timer that was set before under this name. */
  | { readonly type: 'timer'; readonly name: TimerName; readonly ms: number }
  /** The job is done. The machine still answers messages. `token` where the VM has one and this end knows it. */
  | { readonly type: 'finish'; readonly outcome: Outcome; readonly token: Token | undefined }
  | { readonly type: 'refuse'; readonly code: RefusalCode };

export interface Step<State, Out> {
  readonly state: State;
  readonly outputs: readonly Out[];
}

/** What every state has. */
export interface Base {
  readonly attempt: Attempt;
  readonly settings: CommitSettings;
  /** Whether the other end can be sent to. */
  readonly link: boolean;
  /** Id of the last request to the witness. */
  readonly asked: number;
  /** What that request expects; it is repeated as it was, or with what the witness answered. */
  readonly expected: Token;
  /** The token, once this end has seen that it is its own. */
  readonly token: Token | undefined;
}

export function newBase(attempt: Attempt, settings: CommitSettings, link: boolean): Base {
  return { attempt, settings, link, asked: 0, expected: attempt.from, token: undefined };
}

/** Fields that every state has, without those of one state alone. */
export function baseOf({ attempt, settings, link, asked, expected, token }: Base): Base {
  return { attempt, settings, link, asked, expected, token };
}

/** What every message and every record says of its attempt. */
export function subjectOf({ attempt: { vm, generation } }: Base) {
  return { vm, generation };
}

/** A compare-and-set that gives the VM to `owner`, and the timer that waits for its answer. */
export function ask<S extends Base>(state: S, owner: string): [S, AskOutput] {
  const { attempt, expected } = state;
  // Each change raises the generation, so that no value comes twice (see token.ts).
  const own = tokenFor(attempt, owner);
  const next = expected.generation < own.generation ? own : { ...own, generation: expected.generation + 1 };
  const id = state.asked + 1;
  return [
    { ...state, asked: id },
    { type: 'ask', generation: attempt.generation, id, expected, next },
  ];
}

/** What an answer of the witness means to `owner`, and the token that it shows. */
export function readAnswer(
  state: Base,
  input: { readonly generation: number; readonly id: number; readonly answer: WitnessAnswer },
  owner: string,
): { readonly kind: 'won' | 'held' | 'unreachable'; readonly token: Token | undefined } | 'stale' {
  const { generation, id, answer } = input;
  if (generation !== state.attempt.generation || id !== state.asked) return 'stale';
  switch (answer.type) {
    case 'unreachable':
      return { kind: 'unreachable', token: undefined };
    case 'set':
      return { kind: 'won', token: ask({ ...state, asked: 0 }, owner)[1].next };
    case 'conflict': {
      // An earlier request of this end was carried out, and its answer lost.
      if (isOwnedSince(state.attempt, answer.current, owner)) return { kind: 'won', token: answer.current };
      // A witness that refuses what it says to have is not to be trusted with an answer.
      if (sameToken(answer.current, state.expected)) return { kind: 'unreachable', token: undefined };
      return { kind: 'held', token: answer.current };
    }
  }
}

/** `ms` of a timer by its name. */
export function timer(
  state: Base,
  name: TimerName,
): { readonly type: 'timer'; readonly name: TimerName; readonly ms: number } {
  const { patienceMs, repeatMs, witnessMs } = state.settings;
  return { type: 'timer', name, ms: { patience: patienceMs, repeat: repeatMs, witness: witnessMs }[name] };
}

/** The column of an input, for the table of an end; `message` and the end's own kinds aside. */
export function commonKind<Message, Rec extends { readonly type: string }>(
  input: Exclude<CommonInput<Message, Rec>, { type: 'message' } | { type: 'answer' }>,
): CommonKind {
  switch (input.type) {
    case 'timer':
      return input.name;
    case 'operator':
      return input.decision;
    case 'persisted':
    case 'persistFailed':
    case 'connected':
    case 'disconnected':
    case 'vmRuns':
    case 'vmRunFailed':
    case 'vmStopped':
    case 'vmGone':
    case 'cancel':
      return input.type;
  }
}
