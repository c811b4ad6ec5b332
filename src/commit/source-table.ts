// SPDX-License-Identifier: Apache-2.0
/**
 * The source's table: what each kind of input leads to in each state. A row is made of groups of cells that say why nothing
 * is done, and of cells of its own; one that lacks a cell does not compile. The rules are those of docs/commit.md.
 */

import { commonCells } from './cells.js';
import { baseOf, timer } from './machine.js';
import type { DestinationMessage } from './messages.js';
import type { Outcome, WhyBack } from './records.js';
import * as move from './source-moves.js';
import { close } from './source-moves.js';
import type { SourceKind, SourceState, SourceStep } from './source-states.js';
import type { Token } from './token.js';

const { go, refuse, say } = move;

/** What an input carries besides its kind. */
export interface Detail {
  readonly fenced: boolean;
  /** The token that the witness has shown. */
  readonly token: Token | undefined;
  /** The record that is durable, or could not be made so. */
  readonly record: string;
}

type Cell<S> = (state: S, detail: Detail) => SourceStep;
type Row<S> = { readonly [K in SourceKind]: Cell<S> };
type Table = { readonly [N in SourceState['name']]: Row<Extract<SourceState, { name: N }>> };

const { quiet, outOfOrder, contradiction, tooLate, stopVm, ...cells } = commonCells<SourceState>();
const { link, nothingWritten, noTimers, noAnswer, vmIgnored, noOperator } = cells;

type Word = DestinationMessage['type'];
/** A cell for each message of the destination. */
function toEach(answer: (state: SourceState, word: Word) => SourceStep): { [W in Word]: Cell<SourceState> } {
  const cell =
    (word: Word): Cell<SourceState> =>
    (state) =>
      answer(state, word);
  return {
    ready: cell('ready'),
    declined: cell('declined'),
    landed: cell('landed'),
    waiting: cell('waiting'),
    runs: cell('runs'),
    gaveUp: cell('gaveUp'),
    gone: cell('gone'),
  };
}

/** Messages that wait until it is durable how things stand. The destination repeats them. */
const later = toEach((state) => go(state));
/** The destination claims what it can only have by a grant that was never given. */
const noGrantYet = { waiting: outOfOrder, runs: contradiction, gone: outOfOrder };

const whyOf = (state: SourceState): WhyBack | undefined => ('why' in state ? state.why : undefined);
const answered = (outcome: Outcome) =>
  toEach((state, word) => move.answerAfter(state, outcome, whyOf(state), word));
const asOutcomeSays = toEach((state, word) =>
  'outcome' in state ? move.answerAfter(state, state.outcome, state.why, word) : go(state),
);

export const sourceTable: Table = {
  beginning: {
    ...link,
    ...noTimers,
    ...noAnswer,
    ...noOperator,
    ...noGrantYet,
    persisted: (state) => {
      if (state.givenUp) return move.giveUp(state, state.vm);
      return go(
        { ...baseOf(state), name: 'migrating', vm: state.vm, landed: false },
        ...move.sayOffer(state),
        timer(state, 'repeat'),
        ...(state.link ? [] : [timer(state, 'patience')]),
      );
    },
    // The generation may be used again. No message of it was sent, and none is.
    persistFailed: (state) => move.finish(state, state.vm === 'gone' ? 'lost' : 'returned', undefined),
    ready: outOfOrder,
    declined: outOfOrder,
    landed: outOfOrder,
    gaveUp: outOfOrder,
    vmRuns: quiet,
    vmRunFailed: quiet,
    vmStopped: quiet,
    vmGone: (state) => go({ ...state, vm: 'gone', givenUp: true }),
    cancel: (state) => go({ ...state, givenUp: true }),
  },

  migrating: {
    ...nothingWritten,
    ...noAnswer,
    ...noOperator,
    ...noGrantYet,
    connected: (state) => go({ ...state, link: true }, ...move.sayOffer({ ...state, link: true })),
    disconnected: (state) => go({ ...state, link: false }, timer(state, 'patience')),
    patience: (state) => (state.link ? go(state) : move.giveUp(state, state.vm)),
    repeat: (state) => go(state, ...move.sayOffer(state), timer(state, 'repeat')),
    witness: quiet,
    ready: quiet,
    landed: (state) =>
      state.vm === 'running' ? go({ ...state, landed: true }) : move.promise({ ...state, landed: true }),
    declined: (state) => move.giveUp(state, state.vm),
    gaveUp: (state) => move.giveUp(state, state.vm),
    vmStopped: (state) => {
      const next = { ...state, vm: 'stopped' } as const;
      return state.landed ? move.promise(next) : go(next);
    },
    // What the destination has is of before.
    vmRuns: (state) => (state.vm === 'running' ? go(state) : move.giveUp(state, 'running')),
    vmRunFailed: quiet,
    vmGone: (state) => (state.vm === 'running' ? move.giveUp(state, 'gone') : go({ ...state, vm: 'gone' })),
    cancel: (state) => move.giveUp(state, state.vm),
  },

  granting: {
    ...link,
    ...noTimers,
    ...noAnswer,
    ...noOperator,
    ...noGrantYet,
    persisted: (state) =>
      state.cancelled && state.vm !== 'gone'
        ? move.goBack(state, state.vm, 'unsent')
        : move.grant(state, {
            arbiter: state.attempt.witness ? 'witness' : 'none',
            ...{ vm: state.vm, unsent: true, tokenHeld: false, destinationGone: false },
          }),
    // It may be durable all the same, so a restart could send it: either `back` becomes durable, or the destination says
    // that it has given up.
    persistFailed: (state) => move.goBack(state, state.vm, 'unsent', ...say(state, 'withdrawn')),
    ready: quiet,
    declined: quiet,
    landed: quiet,
    gaveUp: quiet,
    vmRuns: stopVm,
    vmRunFailed: quiet,
    vmStopped: quiet,
    vmGone: (state) => go({ ...state, vm: 'gone' }),
    cancel: (state) => go({ ...state, cancelled: true }),
  },

  granted: {
    ...nothingWritten,
    connected: (state) =>
      go({ ...state, link: true, unsent: false }, ...move.sayGrant({ ...state, link: true }, state.arbiter)),
    disconnected: (state) => go({ ...state, link: false }, timer(state, 'patience')),
    patience: (state) => {
      if (!state.link && state.unsent && state.vm !== 'gone') return move.goBack(state, state.vm, 'unsent');
      return move.contend(state);
    },
    repeat: (state) => go(state, ...move.sayGrant(state, state.arbiter), timer(state, 'repeat')),
    witness: move.contend,
    won: (state, { token }) =>
      state.arbiter === 'witness' ? move.goBack({ ...state, token }, state.vm, 'token') : go(state),
    held: (state, { token }) => go({ ...state, tokenHeld: true, expected: token ?? state.expected }),
    unreachable: quiet,
    ready: quiet,
    declined: quiet,
    landed: (state) => go(state, ...move.sayGrant(state, state.arbiter)),
    waiting: move.release,
    runs: move.leave,
    gaveUp: (state) => move.goBack(state, state.vm, 'refused'),
    gone: (state) =>
      state.vm === 'gone'
        ? close(state, 'lost', undefined, ...say(state, 'done'))
        : state.destinationGone
          ? go(state)
          : move.contend({ ...state, destinationGone: true }),
    vmRuns: stopVm,
    vmRunFailed: quiet,
    vmStopped: (state) => go({ ...state, vm: state.vm === 'gone' ? 'gone' : 'stopped' }),
    vmGone: (state) => go({ ...state, vm: 'gone' }),
    cancel: (state) =>
      state.unsent && state.vm !== 'gone'
        ? move.goBack(state, state.vm, 'unsent')
        : refuse(state, 'too-late'),
    here: (state, { fenced }) => {
      if (state.vm === 'gone') return refuse(state, 'vm-gone');
      return fenced ? move.goBack(state, state.vm, 'operator') : refuse(state, 'not-fenced');
    },
    elsewhere: move.leave,
  },

  releasing: {
    ...link,
    ...noTimers,
    ...noAnswer,
    ...noOperator,
    ...later,
    persisted: (state) => move.released(state, 'none'),
    // It may be durable all the same. The destination was not told, so the witness may still decide.
    persistFailed: (state) => move.released(state, 'witness'),
    runs: move.leave,
    gaveUp: (state) => move.goBack(state, state.vm, 'refused'),
    vmRuns: stopVm,
    vmRunFailed: quiet,
    vmStopped: (state) => go({ ...state, vm: state.vm === 'gone' ? 'gone' : 'stopped' }),
    vmGone: (state) => go({ ...state, vm: 'gone' }),
    cancel: tooLate,
  },

  goingBack: {
    ...link,
    ...noAnswer,
    ...noOperator,
    ...later,
    persisted: (state, { record }) => {
      if (record !== 'back') return go(state);
      return state.vm === 'gone'
        ? close(state, 'lost', undefined, ...say(state, 'withdrawn'))
        : move.resume(state, state.why);
    },
    persistFailed: (state, { record }) => {
      if (record !== 'back') return go(state);
      // A restart would ask the destination again, and get the same word.
      if (state.why === 'refused') return move.resume(state, state.why);
      return go(state, timer(state, 'repeat'));
    },
    patience: quiet,
    witness: quiet,
    repeat: (state) =>
      go(state, move.persistBack(state), ...(state.why === 'unsent' ? say(state, 'withdrawn') : [])),
    runs: (state) => (state.why === 'operator' ? go(state) : refuse(state, 'contradiction')),
    gaveUp: (state) =>
      state.vm === 'gone' ? close(state, 'lost', undefined) : move.resume(state, 'refused'),
    vmRuns: stopVm,
    vmRunFailed: quiet,
    vmStopped: quiet,
    vmGone: (state) => go({ ...state, vm: 'gone' }),
    cancel: quiet,
  },

  resuming: {
    ...nothingWritten,
    ...noAnswer,
    ...noOperator,
    ...answered('returned'),
    disconnected: link.disconnected,
    connected: (state) => go({ ...state, link: true }, ...say({ ...state, link: true }, 'withdrawn')),
    patience: quiet,
    repeat: (state) => go(state, { type: 'run' }, timer(state, 'repeat')),
    witness: quiet,
    vmRuns: (state) => move.settle(state, state.why),
    vmRunFailed: quiet,
    vmStopped: quiet,
    vmGone: (state) => close(state, 'lost', state.why, ...say(state, 'withdrawn')),
    cancel: quiet,
  },

  settling: {
    ...nothingWritten,
    ...noOperator,
    ...answered('returned'),
    ...vmIgnored,
    disconnected: link.disconnected,
    connected: (state) => go({ ...state, link: true }, ...say({ ...state, link: true }, 'withdrawn')),
    patience: quiet,
    repeat: quiet,
    witness: move.askAgain,
    won: (state, { token }) => close({ ...state, token }, 'returned', state.why),
    // The VM runs here by right, so a token that says otherwise is of a right that was given up.
    held: (state, { token }) => move.askAgain({ ...state, expected: token ?? state.expected }),
    unreachable: quiet,
    cancel: quiet,
  },

  leaving: {
    ...link,
    ...noAnswer,
    ...noOperator,
    ...later,
    ...vmIgnored,
    persisted: (state, { record }) =>
      record === 'moved' ? move.end(state, ...say(state, 'done')) : go(state),
    persistFailed: (state, { record }) =>
      record === 'moved' ? go(state, timer(state, 'repeat')) : go(state),
    patience: quiet,
    repeat: (state) => go(state, move.persistMoved(state)),
    witness: quiet,
    vmRuns: stopVm,
    cancel: tooLate,
  },

  ending: {
    ...link,
    ...nothingWritten,
    ...noAnswer,
    ...noOperator,
    ...answered('moved'),
    patience: quiet,
    repeat: (state) => go(state, { type: 'end' }, timer(state, 'repeat')),
    witness: quiet,
    vmRuns: stopVm,
    vmRunFailed: quiet,
    vmStopped: quiet,
    vmGone: (state) => close(state, 'moved', undefined),
    cancel: tooLate,
  },

  closing: {
    ...link,
    ...noAnswer,
    ...noOperator,
    ...asOutcomeSays,
    ...vmIgnored,
    persisted: (state, { record }) => {
      return record === 'closed' ? move.finish(state, state.outcome, state.why) : go(state);
    },
    persistFailed: quiet,
    patience: quiet,
    repeat: (state) => go(state, move.persistClosed(state, state.outcome), timer(state, 'repeat')),
    witness: quiet,
    cancel: tooLate,
  },

  ended: {
    ...link,
    ...nothingWritten,
    ...noTimers,
    ...noAnswer,
    ...noOperator,
    ...asOutcomeSays,
    ...vmIgnored,
    cancel: tooLate,
  },
};
