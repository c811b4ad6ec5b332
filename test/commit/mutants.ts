// SPDX-License-Identifier: Apache-2.0
/**
 * The protocol of the commit, broken on purpose in one way each. Everything is done from outside: inputs and outputs of the
 * machines are changed on their way, the journal lies, the witness does not compare.
 */

import type {
  CommitRecord,
  DestinationInput,
  DestinationOutput,
  DestinationState,
  DestinationStep,
  SourceInput,
  SourceOutput,
  SourceState,
  SourceStep,
} from '../../src/commit/index.js';
import { PROTOCOL, type Protocol } from '../../tools/simulate/protocol.js';

export interface Mutant {
  readonly name: string;
  readonly protocol: Protocol;
}

const { stepSource, stepDestination } = PROTOCOL;

const of = ({ attempt: { vm, generation } }: SourceState | DestinationState) => ({ vm, generation });

/** What is put out, and what becomes of it. */
const sourceOutputs = (
  change: (output: SourceOutput, state: SourceState) => readonly SourceOutput[],
): Partial<Protocol> => {
  const changed = (step: SourceStep): SourceStep => ({
    ...step,
    outputs: step.outputs.flatMap((output) => change(output, step.state)),
  });
  return {
    beginSource: (...args) => changed(PROTOCOL.beginSource(...args)),
    restartSource: (...args) => changed(PROTOCOL.restartSource(...args)),
    stepSource: (...args) => changed(stepSource(...args)),
  };
};
const destinationOutputs = (
  change: (output: DestinationOutput, state: DestinationState) => readonly DestinationOutput[],
): Partial<Protocol> => {
  const changed = (step: DestinationStep): DestinationStep => ({
    ...step,
    outputs: step.outputs.flatMap((output) => change(output, step.state)),
  });
  return {
    beginDestination: (...args) => changed(PROTOCOL.beginDestination(...args)),
    restartDestination: (...args) => changed(PROTOCOL.restartDestination(...args)),
    stepDestination: (...args) => changed(stepDestination(...args)),
  };
};

/** A step, and another one from the state it leads to. */
function thenSource({ state, outputs }: SourceStep, input: SourceInput): SourceStep {
  const next = stepSource(state, input);
  return { state: next.state, outputs: [...outputs, ...next.outputs] };
}
function thenDestination({ state, outputs }: DestinationStep, input: DestinationInput): DestinationStep {
  const next = stepDestination(state, input);
  return { state: next.state, outputs: [...outputs, ...next.outputs] };
}

/** The source believes that the destination has given up. */
const believesGaveUp = (state: SourceState): SourceInput => ({
  type: 'message',
  message: { type: 'gaveUp', ...of(state) },
});

const withoutRecord = (records: readonly CommitRecord[], type: string) =>
  records.filter((record) => record.type !== type);

const lazyDisk = (...types: string[]): Partial<Protocol> => ({
  waitsForDisk: ({ type }) => !types.includes(type),
});

const MUTANTS: Readonly<Record<string, Partial<Protocol>>> = {
  'the grant is sent before it is durable': lazyDisk('granted'),
  'the destination runs before the grant is durable': lazyDisk('taken'),
  'the source resumes before `back` is durable': lazyDisk('back'),
  'the source ends its copy before the destination has taken the grant': sourceOutputs((output) =>
    output.type === 'send' && output.message.type === 'grant' ? [output, { type: 'end' }] : [output],
  ),
  'the grant is sent before the destination has landed': {
    stepSource: (state, input) => {
      const step = stepSource(state, input);
      const isStopped = input.type === 'vmStopped' && step.state.name === 'migrating';
      return isStopped
        ? thenSource(step, { type: 'message', message: { type: 'landed', ...of(state) } })
        : step;
    },
    // And the destination takes it for what will have landed.
    stepDestination: (state, input) => {
      const isGrant =
        input.type === 'message' && input.message.type === 'grant' && state.name === 'receiving';
      return isGrant
        ? thenDestination(stepDestination(state, { type: 'vmLanded' }), input)
        : stepDestination(state, input);
    },
  },
  'the source resumes when it loses the destination after the grant': {
    stepSource: (state, input) => {
      const step = stepSource(state, input);
      return input.type === 'disconnected' && state.name === 'granted'
        ? thenSource(step, believesGaveUp(state))
        : step;
    },
  },
  'the source resumes on a timer after the grant': {
    stepSource: (state, input) => {
      const step = stepSource(state, input);
      return input.type === 'timer' && input.name === 'patience' && state.name === 'granted' && !state.unsent
        ? thenSource(step, believesGaveUp(state))
        : step;
    },
  },
  'the source may be cancelled after the grant': {
    stepSource: (state, input) =>
      input.type === 'cancel' && state.name === 'granted'
        ? stepSource(state, believesGaveUp(state))
        : stepSource(state, input),
  },
  'the witness sets without comparing': { compareAndSet: () => ({ type: 'set' }) },
  'the witness compares the owner only': {
    compareAndSet: (current, expected) =>
      current.owner === expected.owner ? { type: 'set' } : { type: 'conflict', current },
  },
  'a witness that cannot be reached is taken as a yes': {
    stepSource: (state, input) =>
      stepSource(
        state,
        input.type === 'answer' && input.answer.type === 'unreachable'
          ? { ...input, answer: { type: 'set' } }
          : input,
      ),
    stepDestination: (state, input) =>
      stepDestination(
        state,
        input.type === 'answer' && input.answer.type === 'unreachable'
          ? { ...input, answer: { type: 'set' } }
          : input,
      ),
  },
  'the source takes the token of the destination for its own': {
    stepSource: (state, input) =>
      stepSource(
        state,
        input.type === 'answer' && input.answer.type === 'conflict'
          ? { ...input, answer: { type: 'set' } }
          : input,
      ),
  },
  'the destination takes the token of the source for its own': {
    stepDestination: (state, input) =>
      stepDestination(
        state,
        input.type === 'answer' && input.answer.type === 'conflict'
          ? { ...input, answer: { type: 'set' } }
          : input,
      ),
  },
  'the source does not ask the witness before it goes back': {
    stepSource: (state, input) => {
      const step = stepSource(state, input);
      const { state: next } = step;
      const asks = state.name === 'granted' && step.outputs.some(({ type }) => type === 'ask');
      return asks
        ? thenSource(step, {
            ...{ type: 'answer', generation: next.attempt.generation, id: next.asked },
            answer: { type: 'set' },
          })
        : step;
    },
  },
  'the destination does not ask the witness before it runs': {
    stepDestination: (state, input) => {
      const step = stepDestination(state, input);
      const { state: next } = step;
      const asks = next.name === 'contending' && step.outputs.some(({ type }) => type === 'ask');
      return asks
        ? thenDestination(step, {
            ...{ type: 'answer', generation: next.attempt.generation, id: next.asked },
            answer: { type: 'set' },
          })
        : step;
    },
  },
  'a restart of the source forgets the grant': {
    restartSource: (attempt, records, ...rest) =>
      PROTOCOL.restartSource(attempt, withoutRecord(records, 'granted') as typeof records, ...rest),
  },
  'a restart of the destination forgets the grant': {
    restartDestination: (attempt, records, ...rest) =>
      PROTOCOL.restartDestination(
        attempt,
        withoutRecord(withoutRecord(records, 'taken'), 'ran') as typeof records,
        ...rest,
      ),
  },
  'the destination says that it gives up after it has taken the grant': {
    stepDestination: (state, input) => {
      const step = stepDestination(state, input);
      const isTaken = state.name === 'taking' && input.type === 'persisted';
      return isTaken
        ? { ...step, outputs: [...step.outputs, { type: 'send', message: { type: 'gaveUp', ...of(state) } }] }
        : step;
    },
  },
  'the destination says that it gives up without giving up': {
    stepDestination: (state, input) => {
      const step = stepDestination(state, input);
      return input.type === 'disconnected' && state.name === 'landed'
        ? { ...step, outputs: [...step.outputs, { type: 'send', message: { type: 'gaveUp', ...of(state) } }] }
        : { ...step, outputs: step.outputs };
    },
  },
  'a grant of an earlier attempt is accepted': {
    stepDestination: (state, input) =>
      stepDestination(
        state,
        input.type === 'message' && input.message.type === 'grant'
          ? { ...input, message: { ...input.message, ...of(state) } }
          : input,
      ),
  },
  'a destination that lost the source takes the token without a grant': {
    stepDestination: (state, input) => {
      const step = stepDestination(state, input);
      return input.type === 'disconnected' && state.name === 'landed'
        ? thenDestination(step, {
            ...{ type: 'message', message: { type: 'grant', ...of(state), arbiter: 'witness' } },
          })
        : step;
    },
  },
  'an operator decides without fencing': { operatorFences: false },
  'the source says that it does not ask the witness, and asks': {
    stepSource: (state, input) => {
      const step = stepSource(state, input);
      return step.state.name === 'granted' && step.state.arbiter === 'none' && state.attempt.witness
        ? { ...step, state: { ...step.state, arbiter: 'witness' } }
        : step;
    },
  },
  'a source that goes back tells the destination to run without the witness': {
    stepSource: (state, input) => {
      const isAsked = input.type === 'message' && input.message.type === 'waiting';
      return isAsked && (state.name === 'resuming' || state.name === 'settling' || state.name === 'closing')
        ? { state, outputs: [{ type: 'send', message: { type: 'grant', ...of(state), arbiter: 'none' } }] }
        : stepSource(state, input);
    },
  },
  'the source never lets the destination do without the witness': {
    stepSource: (state, input) =>
      input.type === 'message' && input.message.type === 'waiting' && state.name === 'granted'
        ? { state, outputs: [] }
        : stepSource(state, input),
  },
  'a grant that was lost is not sent again': {
    stepSource: (state, input) => {
      const step = stepSource(state, input);
      if (state.name !== 'granted') return step;
      return {
        ...step,
        outputs: step.outputs.filter((output) => output.type !== 'send' || output.message.type !== 'grant'),
      };
    },
  },
  'the destination tells the source only once that the VM runs': destinationOutputs((output, state) => {
    const isRepeated = state.name === 'running' && output.type === 'timer' && output.name === 'repeat';
    return isRepeated ? [] : [output];
  }),
  'a source that has gone back does not answer': sourceOutputs((output) =>
    output.type === 'send' && output.message.type === 'withdrawn' ? [] : [output],
  ),
  'the token is not made right': {
    stepSource: (state, input) => {
      const step = stepSource(state, input);
      const { state: next } = step;
      return next.name === 'settling'
        ? thenSource(step, {
            ...{ type: 'answer', generation: next.attempt.generation, id: next.asked },
            answer: { type: 'set' },
          })
        : step;
    },
  },
  'the answer to a request of an earlier attempt counts': {
    stepSource: (state, input) =>
      stepSource(
        state,
        input.type === 'answer' ? { ...input, generation: state.attempt.generation, id: state.asked } : input,
      ),
  },
};

export const mutants: readonly Mutant[] = Object.entries(MUTANTS).map(([name, changes]) => ({
  name,
  protocol: { ...PROTOCOL, ...changes },
}));
