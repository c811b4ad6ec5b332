// SPDX-License-Identifier: Apache-2.0
/**
 * The source of a migration, from its begin to its end: which right to the VM it has, and what follows. docs/commit.md has
 * the rules and the argument; source-states.ts has the states, source-table.ts the table.
 */

import type { Attempt } from './attempt.js';
import { type CommitSettings, commonKind, newBase, readAnswer, type VmFound } from './machine.js';
import type { SourceRecord } from './records.js';
import * as move from './source-moves.js';
import type { SourceInput, SourceKind, SourceState, SourceStep } from './source-states.js';
import { type Detail, sourceTable } from './source-table.js';

/**
 * A new attempt. The VM runs, and continues to run for now.
 * @param link whether there is a connection to the destination
 */
export function beginSource(attempt: Attempt, settings: CommitSettings, link: boolean): SourceStep {
  const base = newBase(attempt, settings, link);
  return move.go({ ...base, name: 'beginning', vm: 'running', givenUp: false }, move.persistBegun(base));
}

/**
 * The attempt as a process of before has left it. The connection is not there yet.
 * @param records what is durable of this attempt, in order ({@link lastAttempt}); `begun` is the first
 */
export function restartSource(
  attempt: Attempt,
  records: readonly SourceRecord[],
  vm: VmFound,
  settings: CommitSettings,
): SourceStep {
  const base = newBase(attempt, settings, false);
  const last = records.at(-1);
  switch (last?.type) {
    case undefined:
    case 'begun':
      // Rule 1. What was under way went with the process of before.
      return move.giveUp(base, vm);
    case 'granted': {
      const { arbiter } = last;
      // A process of before may have sent it.
      const facts = { unsent: false, tokenHeld: false, destinationGone: false };
      const step = move.grant(base, { arbiter, vm: vm === 'gone' ? 'gone' : 'stopped', ...facts });
      return vm === 'running' ? { ...step, outputs: [{ type: 'stop' }, ...step.outputs] } : step;
    }
    case 'back':
      if (vm === 'gone') return move.close(base, 'lost', last.why);
      return move.resume(base, last.why);
    case 'moved':
      return move.end(base);
    case 'closed': {
      const back = records.find((record) => record.type === 'back');
      return move.go({ ...base, name: 'ended', outcome: last.outcome, why: back?.why });
    }
  }
}

/** One input: the state after it, and what is to be done, in order. */
export function stepSource(state: SourceState, input: SourceInput): SourceStep {
  const detail: Detail = { fenced: false, token: undefined, record: '' };
  switch (input.type) {
    case 'message': {
      const { message } = input;
      const { vm, generation } = state.attempt;
      if (message.vm === vm && message.generation < generation) return move.answerEarlier(state, message);
      if (message.vm !== vm || message.generation !== generation) return move.refuse(state, 'stale');
      return look(state, message.type, detail);
    }
    case 'answer': {
      const answer = readAnswer(state, input, state.attempt.source);
      if (answer === 'stale') return move.refuse(state, 'stale');
      return look(state, answer.kind, { ...detail, token: answer.token });
    }
    case 'persisted':
    case 'persistFailed':
      return look(state, input.type, { ...detail, record: input.record });
    case 'operator':
      return look(state, input.decision, { ...detail, fenced: input.fenced });
    default:
      return look(state, commonKind(input), detail);
  }
}

function look(state: SourceState, kind: SourceKind, detail: Detail): SourceStep {
  const cell = sourceTable[state.name][kind] as (state: SourceState, detail: Detail) => SourceStep;
  return cell(state, detail);
}
