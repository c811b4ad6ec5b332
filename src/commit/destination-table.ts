// SPDX-License-Identifier: Apache-2.0
/**
 * The destination's table: what each kind of input leads to in each state. A row is made of groups of cells that say why
 * nothing is done, and of cells of its own; one that lacks a cell does not compile. The rules are those of docs/commit.md.
 */

import { commonCells } from './cells.js';
import * as move from './destination-moves.js';
import type { DestinationKind, DestinationState, DestinationStep } from './destination-states.js';
import { baseOf, timer } from './machine.js';
import type { Arbiter } from './messages.js';
import type { Token } from './token.js';

const { go, refuse, say } = move;

/** What an input carries besides its kind. */
export interface Detail {
  readonly fenced: boolean;
  /** The token that the witness has shown. */
  readonly token: Token | undefined;
  /** The record that is durable, or could not be made so. */
  readonly record: string;
  /** Of a grant. */
  readonly arbiter: Arbiter;
}

type Cell<S> = (state: S, detail: Detail) => DestinationStep;
type Row<S> = { readonly [K in DestinationKind]: Cell<S> };
type Table = { readonly [N in DestinationState['name']]: Row<Extract<DestinationState, { name: N }>> };
/** A part of a row. */
type Part<K extends DestinationKind> = { readonly [P in K]: Cell<DestinationState> };

const { quiet, outOfOrder, contradiction, tooLate, nothingToDecide, stopVm, ...cells } =
  commonCells<DestinationState>();
const { vmGone, link, nothingWritten, noTimers, noAnswer, noOperator } = cells;
const vmIgnored = { ...cells.vmIgnored, vmLanded: quiet };
const giveUp: Cell<DestinationState> = (state) => move.giveUp(state);

/** Messages that wait until it is durable how things stand. The source repeats them. */
const later: Part<'offer' | 'grant' | 'withdrawn' | 'done'> = {
  offer: quiet,
  grant: quiet,
  withdrawn: quiet,
  done: quiet,
};

/** Before the grant: this end repeats to the source how things stand, and gives up by itself if the source stays away (rule 1). */
const beforeGrant = (
  word: 'ready' | 'landed',
): Part<
  | 'connected'
  | 'disconnected'
  | 'patience'
  | 'repeat'
  | 'witness'
  | 'offer'
  | 'withdrawn'
  | 'cancel'
  | 'vmGone'
> => ({
  connected: (state) => go({ ...state, link: true }, ...say({ ...state, link: true }, word)),
  disconnected: (state) => go({ ...state, link: false }, timer(state, 'patience')),
  patience: (state) => (state.link ? go(state) : move.giveUp(state)),
  repeat: (state) => go(state, ...say(state, word), timer(state, 'repeat')),
  witness: quiet,
  offer: (state) => go(state, ...say(state, word)),
  withdrawn: giveUp,
  cancel: giveUp,
  vmGone: giveUp,
});

export const destinationTable: Table = {
  accepting: {
    ...link,
    ...noTimers,
    ...noAnswer,
    ...vmIgnored,
    ...noOperator,
    persisted: (state) => {
      if (state.givenUp) return move.giveUp(state);
      return go(
        { ...baseOf(state), name: 'receiving' },
        ...say(state, 'ready'),
        timer(state, 'repeat'),
        ...(state.link ? [] : [timer(state, 'patience')]),
      );
    },
    // There is no copy, and perhaps no record.
    persistFailed: (state) => move.finish(state, 'returned', 'declined', ...say(state, 'declined')),
    offer: quiet,
    grant: outOfOrder,
    withdrawn: (state) => go({ ...state, givenUp: true }),
    done: outOfOrder,
    cancel: (state) => go({ ...state, givenUp: true }),
  },

  receiving: {
    ...nothingWritten,
    ...noAnswer,
    ...beforeGrant('ready'),
    // What has not landed cannot run, whatever the source says.
    grant: outOfOrder,
    done: outOfOrder,
    vmLanded: (state) =>
      go({ ...baseOf(state), name: 'landed' }, ...say(state, 'landed'), timer(state, 'repeat')),
    vmRuns: stopVm,
    vmRunFailed: quiet,
    vmStopped: quiet,
    here: nothingToDecide,
    elsewhere: giveUp,
  },

  landed: {
    ...nothingWritten,
    ...noAnswer,
    ...beforeGrant('landed'),
    grant: (state, { arbiter }) => move.take(state, arbiter, 'grant'),
    done: outOfOrder,
    vmLanded: quiet,
    vmRuns: stopVm,
    vmRunFailed: quiet,
    vmStopped: quiet,
    // The source may have run since, so what has landed may be old. Only a grant says that it is not.
    here: nothingToDecide,
    elsewhere: giveUp,
  },

  taking: {
    ...link,
    ...noAnswer,
    ...noOperator,
    ...later,
    persisted: (state, { record }) => (record === 'taken' ? move.taken(state) : go(state)),
    // It may be durable all the same; this end's copy will be gone then, and nothing can be run by it. What an operator has
    // decided is the only copy, and is not given up.
    persistFailed: (state, { record }) => {
      if (record !== 'taken') return go(state);
      return state.why === 'grant' ? move.giveUp(state) : go(state, timer(state, 'repeat'));
    },
    patience: quiet,
    repeat: (state) =>
      state.why === 'grant' ? go(state) : go(state, move.persistTaken(state, state.arbiter, state.why)),
    witness: quiet,
    vmLanded: quiet,
    vmRuns: stopVm,
    vmRunFailed: quiet,
    vmStopped: quiet,
    vmGone: giveUp,
    cancel: tooLate,
  },

  contending: {
    ...nothingWritten,
    connected: (state) => go({ ...state, link: true }, ...say({ ...state, link: true }, 'waiting')),
    disconnected: link.disconnected,
    patience: quiet,
    repeat: quiet,
    witness: (state) => {
      const step = move.askAgain(state);
      return go(step.state, ...say(state, 'waiting'), ...step.outputs);
    },
    won: (state, { token }) => move.start({ ...state, token }, 'token', 'grant'),
    held: giveUp,
    unreachable: move.waitForWord,
    offer: quiet,
    grant: (state, { arbiter }) => (arbiter === 'none' ? move.takeRelease(state, 'grant') : go(state)),
    withdrawn: giveUp,
    done: outOfOrder,
    vmLanded: quiet,
    vmRuns: stopVm,
    vmRunFailed: quiet,
    vmStopped: quiet,
    vmGone: move.goneBeforeRun,
    cancel: tooLate,
    here: (state, { fenced }) => (fenced ? move.takeRelease(state, 'operator') : refuse(state, 'not-fenced')),
    elsewhere: giveUp,
  },

  takingRelease: {
    ...link,
    ...noAnswer,
    ...noOperator,
    ...later,
    persisted: (state, { record }) => (record === 'taken' ? move.start(state, 'word', state.why) : go(state)),
    persistFailed: (state, { record }) =>
      record === 'taken'
        ? go({ ...baseOf(state), name: 'contending', fresh: state.fresh }, timer(state, 'witness'))
        : go(state),
    ...noTimers,
    vmLanded: quiet,
    vmRuns: stopVm,
    vmRunFailed: quiet,
    vmStopped: quiet,
    vmGone: move.goneBeforeRun,
    cancel: tooLate,
  },

  starting: {
    ...link,
    ...nothingWritten,
    ...noAnswer,
    ...noOperator,
    patience: quiet,
    repeat: (state) => go(state, { type: 'run' }, timer(state, 'repeat')),
    witness: quiet,
    offer: quiet,
    grant: quiet,
    withdrawn: contradiction,
    done: outOfOrder,
    vmLanded: quiet,
    vmRuns: (state) => move.running(state, { right: state.right, noted: false, vm: 'running' }),
    // It has not run, and the source can. But what an operator has decided is the only copy: `run` is repeated.
    vmRunFailed: (state) => (state.why === 'grant' ? move.giveUp(state) : go(state)),
    vmStopped: quiet,
    vmGone: move.lose,
    cancel: tooLate,
  },

  running: {
    ...noOperator,
    persisted: (state, { record }) =>
      record === 'ran' ? move.maybeClose({ ...state, noted: true }) : go(state),
    persistFailed: quiet,
    connected: (state) => go({ ...state, link: true }, ...say({ ...state, link: true }, 'runs')),
    disconnected: link.disconnected,
    patience: quiet,
    repeat: (state) =>
      go(
        state,
        ...(state.done ? [] : say(state, 'runs')),
        ...(state.noted ? [] : [move.persistRan(state)]),
        timer(state, 'repeat'),
      ),
    witness: (state) => (state.settled ? go(state) : move.askAgain(state)),
    won: (state, { token }) => move.maybeClose({ ...state, token, settled: true }),
    held: (state, { token }) => {
      if (state.settled) return go(state);
      // The VM runs here by the word of the source or an operator: a token that says otherwise is of a right that was given up.
      if (state.right === 'word') return move.askAgain({ ...state, expected: token ?? state.expected });
      const step = move.maybeClose({ ...state, settled: true });
      return go(step.state, { type: 'refuse', code: 'contradiction' }, ...step.outputs);
    },
    unreachable: quiet,
    offer: (state) => go(state, ...say(state, 'runs')),
    grant: (state) => go(state, ...say(state, 'runs')),
    // Only an operator can have decided so, and then it is gone here.
    withdrawn: (state) =>
      state.vm === 'gone' ? move.close(state, 'returned', 'gone') : refuse(state, 'contradiction'),
    done: (state) => move.maybeClose({ ...state, done: true }),
    vmLanded: quiet,
    vmRuns: quiet,
    vmRunFailed: quiet,
    vmStopped: quiet,
    vmGone: (state) => move.maybeClose({ ...state, vm: 'gone', settled: true }),
    cancel: tooLate,
  },

  givingUp: {
    ...link,
    ...noTimers,
    ...noAnswer,
    ...noOperator,
    ...later,
    persisted: (state, { record }) => (record === 'gaveUp' ? move.end(state, true) : go(state)),
    // A copy that has ended does not run, whatever is durable.
    persistFailed: (state, { record }) => (record === 'gaveUp' ? move.end(state, false) : go(state)),
    vmLanded: quiet,
    vmRuns: stopVm,
    vmRunFailed: quiet,
    vmStopped: quiet,
    vmGone: quiet,
    cancel: quiet,
  },

  ending: {
    ...link,
    ...nothingWritten,
    ...noAnswer,
    ...noOperator,
    ...later,
    patience: quiet,
    repeat: (state) => go(state, { type: 'end' }, timer(state, 'repeat')),
    witness: quiet,
    vmLanded: quiet,
    vmRuns: stopVm,
    vmRunFailed: quiet,
    vmStopped: quiet,
    vmGone: move.hasEnded,
    cancel: quiet,
  },

  lost: {
    ...nothingWritten,
    ...noAnswer,
    ...vmIgnored,
    connected: (state) => go({ ...state, link: true }, ...say({ ...state, link: true }, 'gone')),
    disconnected: link.disconnected,
    patience: quiet,
    repeat: (state) => go(state, ...say(state, 'gone'), timer(state, 'repeat')),
    witness: quiet,
    offer: (state) => go(state, ...say(state, 'gone')),
    grant: (state) => go(state, ...say(state, 'gone')),
    withdrawn: (state) => move.close(state, 'returned', 'gone'),
    done: (state) => move.close(state, 'lost', 'gone'),
    cancel: tooLate,
    here: vmGone,
    elsewhere: (state) => move.close(state, 'lost', 'gone'),
  },

  closing: {
    ...link,
    ...noAnswer,
    ...vmIgnored,
    ...noOperator,
    persisted: (state, { record }) => {
      const last = state.word === 'gaveUp' ? 'gaveUp' : 'finished';
      return record === last ? move.finish(state, state.outcome, state.word) : go(state);
    },
    persistFailed: quiet,
    patience: quiet,
    repeat: (state) => go(state, move.persistLast(state, state.outcome, state.word), timer(state, 'repeat')),
    witness: quiet,
    offer: (state) => go(state, ...say(state, state.word)),
    grant: (state) => go(state, ...say(state, state.word)),
    withdrawn: quiet,
    done: quiet,
    cancel: tooLate,
  },

  ended: {
    ...link,
    ...nothingWritten,
    ...noTimers,
    ...noAnswer,
    ...vmIgnored,
    ...noOperator,
    offer: (state) => go(state, ...say(state, state.word)),
    grant: (state) => go(state, ...say(state, state.word)),
    withdrawn: quiet,
    done: quiet,
    cancel: tooLate,
  },
};
