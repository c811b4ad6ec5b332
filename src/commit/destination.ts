// SPDX-License-Identifier: Apache-2.0
/**
 * The destination of a migration, from the offer to its end: which right to the VM it has, and what follows. docs/commit.md
 * has the rules and the argument; destination-states.ts has the states, destination-table.ts the table.
 */

import type { Attempt } from './attempt.js';
import * as move from './destination-moves.js';
import type {
  DestinationInput,
  DestinationKind,
  DestinationState,
  DestinationStep,
} from './destination-states.js';
import { type Detail, destinationTable } from './destination-table.js';
import { type CommitSettings, commonKind, newBase, readAnswer, type VmFound } from './machine.js';
import type { DestinationRecord } from './records.js';

/**
 * An offer that the host accepts.
 * @param link whether there is a connection to the source, which may be another one than the offer came by
 */
export function beginDestination(attempt: Attempt, settings: CommitSettings, link: boolean): DestinationStep {
  const base = newBase(attempt, settings, link);
  return move.go({ ...base, name: 'accepting', givenUp: false }, move.persistIncoming(base));
}

/**
 * The attempt as a process of before has left it. The connection is not there yet.
 * @param records what is durable of this attempt, in order ({@link lastAttempt}); `incoming` is the first
 */
export function restartDestination(
  attempt: Attempt,
  records: readonly DestinationRecord[],
  vm: VmFound,
  settings: CommitSettings,
): DestinationStep {
  const base = newBase(attempt, settings, false);
  const last = records.at(-1);
  switch (last?.type) {
    case undefined:
    case 'incoming':
      // Rule 1. What was under way went with the process of before.
      return move.giveUp(base);
    case 'taken': {
      const right = last.arbiter === 'none' ? 'word' : 'token';
      // Only this end runs it, and only by right.
      if (vm === 'running') return move.running(base, { right, noted: false, vm });
      if (vm === 'gone') return move.lose(base);
      return right === 'word' ? move.start(base, right, last.why) : move.contend(base, false);
    }
    case 'ran': {
      const byWord = records.some((record) => record.type === 'taken' && record.arbiter === 'none');
      const found = vm === 'gone' ? 'gone' : 'running';
      return move.running(base, { right: byWord ? 'word' : 'token', noted: true, vm: found });
    }
    case 'gaveUp':
      return move.end(base, true);
    case 'finished':
      return move.go({
        ...base,
        name: 'ended',
        outcome: last.outcome,
        word: last.outcome === 'moved' ? 'runs' : 'gone',
      });
  }
}

/** One input: the state after it, and what is to be done, in order. */
export function stepDestination(state: DestinationState, input: DestinationInput): DestinationStep {
  const detail: Detail = { fenced: false, token: undefined, record: '', arbiter: 'none' };
  switch (input.type) {
    case 'message': {
      const { message } = input;
      const { vm, generation } = state.attempt;
      const isLater = message.vm === vm && message.generation > generation;
      // A source that offers anew has given up what it offered before.
      if (isLater && message.type === 'offer') return look(state, 'withdrawn', detail);
      if (message.vm !== vm || message.generation !== generation) return move.refuse(state, 'stale');
      return look(
        state,
        message.type,
        message.type === 'grant' ? { ...detail, arbiter: message.arbiter } : detail,
      );
    }
    case 'answer': {
      const answer = readAnswer(state, input, state.attempt.destination);
      if (answer === 'stale') return move.refuse(state, 'stale');
      return look(state, answer.kind, { ...detail, token: answer.token });
    }
    case 'persisted':
    case 'persistFailed':
      return look(state, input.type, { ...detail, record: input.record });
    case 'operator':
      return look(state, input.decision, { ...detail, fenced: input.fenced });
    case 'vmLanded':
      return look(state, input.type, detail);
    default:
      return look(state, commonKind(input), detail);
  }
}

function look(state: DestinationState, kind: DestinationKind, detail: Detail): DestinationStep {
  const cell = destinationTable[state.name][kind] as (
    state: DestinationState,
    detail: Detail,
  ) => DestinationStep;
  return cell(state, detail);
}
