// SPDX-License-Identifier: Apache-2.0
/** What a table does not show: messages and answers of others, a restart with each journal, and what holds in every order of inputs. */

import fc from 'fast-check';
import t from 'tap';
import {
  beginDestination,
  beginSource,
  type DestinationInput,
  type DestinationRecord,
  type DestinationState,
  restartDestination,
  restartSource,
  type SourceInput,
  type SourceRecord,
  type SourceState,
  stepDestination,
  stepSource,
  type VmFound,
} from '../../src/commit/index.js';
import {
  attempt,
  describe,
  destinationInputs,
  destinationStates,
  settings,
  sourceInputs,
  sourceStates,
} from './states.js';

const of = { vm: 'vm', generation: 7 };
const text = (step: {
  state: { name: string };
  outputs: readonly Parameters<typeof describe>[0][];
}): string => [step.state.name, ...step.outputs.map(describe)].join(', ');

t.test('a begin is written before anything else', async (t) => {
  t.equal(text(beginSource(attempt, settings, true)), 'beginning, write begun');
  t.equal(text(beginDestination(attempt, settings, true)), 'accepting, write incoming');
});

t.test('a begin that cannot be written is never spoken of: its generation may be used again', async (t) => {
  const failed = stepSource(sourceStates.beginning!, { type: 'persistFailed', record: 'begun' });
  t.equal(text(failed), 'ended, finish returned');
  t.equal(text(stepSource(failed.state, { type: 'connected' })), 'ended');
});

t.test('a restart of the source', async (t) => {
  const begun: SourceRecord = { type: 'begun', ...of, attempt };
  const granted: SourceRecord = { type: 'granted', ...of, arbiter: 'witness' };
  const free: SourceRecord = { ...granted, arbiter: 'none' };
  const back: SourceRecord = { type: 'back', ...of, why: 'token' };
  const moved: SourceRecord = { type: 'moved', ...of };
  const closed = (outcome: 'moved' | 'returned'): SourceRecord => ({ type: 'closed', ...of, outcome });
  const cases: [SourceRecord[], VmFound, string][] = [
    [[begun], 'stopped', 'resuming, run, repeat timer'],
    [[begun], 'running', 'resuming, run, repeat timer'],
    [[begun], 'gone', 'closing, write closed, repeat timer'],
    [[begun, granted], 'stopped', 'granted, repeat timer, patience timer'],
    [[begun, granted], 'gone', 'granted, repeat timer, patience timer'],
    // Whoever has run it, the promise holds.
    [[begun, granted], 'running', 'granted, stop, repeat timer, patience timer'],
    [[begun, granted, free], 'stopped', 'granted, repeat timer, patience timer'],
    [[begun, granted, back], 'stopped', 'resuming, run, repeat timer'],
    [[begun, granted, back], 'running', 'resuming, run, repeat timer'],
    [[begun, granted, back], 'gone', 'closing, write closed, repeat timer'],
    [[begun, granted, moved], 'stopped', 'ending, end, repeat timer'],
    [[begun, granted, moved, closed('moved')], 'gone', 'ended'],
    // A VM that somebody has stopped since is not run.
    [[begun, granted, back, closed('returned')], 'stopped', 'ended'],
  ];
  for (const [records, vm, expected] of cases) {
    const step = restartSource(attempt, records, vm, settings);
    t.equal(text(step), expected, `${records.map(({ type }) => type).join(' ')}, ${vm}`);
  }
  const { state } = restartSource(attempt, [begun, granted, free], 'stopped', settings);
  t.match(state, { arbiter: 'none', unsent: false }, 'the last promise counts, and it may have been sent');
});

t.test('a restart of the destination', async (t) => {
  const incoming: DestinationRecord = { type: 'incoming', ...of, attempt };
  const taken: DestinationRecord = { type: 'taken', ...of, arbiter: 'witness', why: 'grant' };
  const free: DestinationRecord = { ...taken, arbiter: 'none' };
  const ran: DestinationRecord = { type: 'ran', ...of };
  const gaveUp: DestinationRecord = { type: 'gaveUp', ...of };
  const finished: DestinationRecord = { type: 'finished', ...of, outcome: 'moved' };
  const cases: [DestinationRecord[], VmFound, string][] = [
    [[incoming], 'stopped', 'givingUp, write gaveUp'],
    [[incoming], 'running', 'givingUp, write gaveUp'],
    [[incoming, taken], 'stopped', 'contending, ask for 7 B, witness timer'],
    [[incoming, taken], 'running', 'running, write ran, repeat timer, ask for 7 B, witness timer'],
    [[incoming, taken], 'gone', 'lost, repeat timer'],
    [[incoming, free], 'stopped', 'starting, run, repeat timer'],
    [[incoming, taken, free], 'stopped', 'starting, run, repeat timer'],
    [[incoming, free], 'gone', 'lost, repeat timer'],
    [[incoming, taken, ran], 'running', 'running, repeat timer, ask for 7 B, witness timer'],
    [[incoming, taken, ran], 'stopped', 'running, repeat timer, ask for 7 B, witness timer'],
    // It does not ask for the token: the VM may run elsewhere by now.
    [[incoming, taken, ran], 'gone', 'running, repeat timer'],
    [[incoming, free, ran], 'gone', 'running, repeat timer'],
    [[incoming, taken, gaveUp], 'stopped', 'ending, end, repeat timer'],
    [[incoming, taken, ran, finished], 'stopped', 'ended'],
  ];
  for (const [records, vm, expected] of cases) {
    const step = restartDestination(attempt, records, vm, settings);
    t.equal(text(step), expected, `${records.map(({ type }) => type).join(' ')}, ${vm}`);
  }
});

t.test('messages and answers of other attempts change nothing', async (t) => {
  for (const state of Object.values(sourceStates))
    for (const input of Object.values(sourceInputs(state))) {
      if (input.type === 'answer') {
        t.equal(text(stepSource(state, { ...input, id: 2 })), `${state.name}, refuse stale`);
        t.equal(text(stepSource(state, { ...input, generation: 6 })), `${state.name}, refuse stale`);
      }
      if (input.type !== 'message') continue;
      const later = { ...input, message: { ...input.message, generation: 8 } };
      t.equal(text(stepSource(state, later)), `${state.name}, refuse stale`);
      for (const change of [{ generation: 8 }, { generation: 6 }, { vm: 'w' }])
        t.equal(stepSource(state, { ...input, message: { ...input.message, ...change } }).state, state);
    }
  for (const state of Object.values(destinationStates))
    for (const input of Object.values(destinationInputs(state))) {
      if (input.type === 'answer')
        t.equal(text(stepDestination(state, { ...input, id: 2 })), `${state.name}, refuse stale`);
      if (input.type !== 'message') continue;
      for (const change of [{ generation: 6 }, { vm: 'w' }]) {
        const other = { ...input, message: { ...input.message, ...change } };
        t.equal(text(stepDestination(state, other)), `${state.name}, refuse stale`);
      }
    }
});

t.test('a destination of an earlier attempt is told how it ended', async (t) => {
  const says = (type: 'landed' | 'runs' | 'gaveUp', state: SourceState) =>
    stepSource(state, { type: 'message', message: { type, vm: 'vm', generation: 5 } }).outputs[0];
  const tells = (type: 'withdrawn' | 'done') => ({
    ...{ type: 'send', message: { type, vm: 'vm', generation: 5 } },
  });
  t.same(says('landed', sourceStates.migrating!), tells('withdrawn'));
  t.same(says('gaveUp', sourceStates.migrating!), { type: 'refuse', code: 'stale' });
  t.same(says('runs', sourceStates['ended, lost']!), tells('done'));
});

t.test('an offer of a later attempt withdraws this one', async (t) => {
  const generation = 8;
  const offer: DestinationInput = {
    type: 'message',
    message: { type: 'offer', vm: 'vm', generation, attempt: { ...attempt, generation } },
  };
  t.equal(stepDestination(destinationStates.landed!, offer).state.name, 'givingUp');
  t.equal(text(stepDestination(destinationStates.running!, offer)), 'running, refuse contradiction');
});

t.test('an operator who does not prove that the other host is fenced', async (t) => {
  const input = { type: 'operator', decision: 'here', fenced: false } as const;
  t.equal(text(stepSource(sourceStates.granted!, input)), 'granted, refuse not-fenced');
  t.equal(text(stepDestination(destinationStates.contending!, input)), 'contending, refuse not-fenced');
});

t.test('a token that moves on is followed, one generation higher each time', async (t) => {
  let state: SourceState = sourceStates.settling!;
  for (const generation of [7, 9]) {
    const current = { vm: 'vm', generation, owner: 'B' };
    const answer = { type: 'conflict', current } as const;
    const step = stepSource(state, { type: 'answer', generation: 7, id: state.asked, answer });
    const next = { vm: 'vm', generation: generation + 1, owner: 'A' };
    t.match(step.outputs[0], { type: 'ask', expected: current, next });
    state = step.state;
  }
  const step = stepSource(state, {
    ...{ type: 'answer', generation: 7, id: state.asked },
    answer: { type: 'set' },
  });
  t.same(step.state.token, { vm: 'vm', generation: 10, owner: 'A' });
});

t.test('a witness that refuses the token that it says to have is not an answer', async (t) => {
  const state = sourceStates['granted, cut']!;
  const answer = { type: 'conflict', current: attempt.from } as const;
  t.same(stepSource(state, { type: 'answer', generation: 7, id: 1, answer }), { state, outputs: [] });
});

/** Kinds of input, in any order. A journal answers what was put out, in order. */
const sequences = (kinds: readonly string[]) => fc.array(fc.constantFrom(...kinds), { maxLength: 40 });

/** A journal that writes one record at a time, or fails to. */
class Disk<R extends { readonly type: string }> {
  readonly written: R[] = [];
  readonly #waiting: R[] = [];

  put(record: R): void {
    this.#waiting.push(record);
  }

  has(type: R['type']): boolean {
    return this.written.some((record) => record.type === type);
  }

  /** The answer for the record that is next; undefined if there is none. */
  answer(type: 'persisted' | 'persistFailed'): { type: typeof type; record: R['type'] } | undefined {
    const record = this.#waiting.shift();
    if (record === undefined) return undefined;
    if (type === 'persisted') this.written.push(record);
    return { type, record: record.type };
  }
}

t.test('whatever comes: the source runs the VM by right, and promises what is durable', async (t) => {
  fc.assert(
    fc.property(
      sequences(Object.keys(sourceInputs(sourceStates.migrating!))),
      fc.boolean(),
      (kinds, witness) => {
        const disk = new Disk<SourceRecord>();
        let refused = false;
        const take = ({ state, outputs }: ReturnType<typeof stepSource>): SourceState => {
          for (const output of outputs) {
            if (output.type === 'persist') disk.put(output.record);
            if (output.type === 'send' && output.message.type === 'grant' && !disk.has('granted'))
              throw new Error('a grant is sent that is not durable');
            // The destination's word is as durable as its own record.
            if (output.type === 'run' && disk.has('granted') && !disk.has('back') && !refused)
              throw new Error('runs after the grant');
            if (output.type === 'run' && disk.has('moved')) throw new Error('runs what has moved');
            if (output.type === 'end' && !disk.has('moved')) throw new Error('ends what has not moved');
            if (output.type === 'ask' && !disk.has('granted'))
              throw new Error('asks for the token without need');
          }
          return state;
        };
        let state = take(beginSource({ ...attempt, witness }, settings, true));
        for (const kind of kinds) {
          let input: SourceInput | undefined = (sourceInputs(state) as Record<string, SourceInput>)[kind]!;
          if (input.type === 'answer') input = { ...input, id: state.asked };
          if (input.type === 'persisted' || input.type === 'persistFailed') input = disk.answer(input.type);
          if (input === undefined) continue;
          if (input.type === 'message' && input.message.type === 'gaveUp') refused = true;
          state = take(stepSource(state, input));
        }
      },
    ),
    { numRuns: 3000 },
  );
  t.pass();
});

t.test(
  'whatever comes: the destination runs the VM by a durable grant, and with a witness by the token',
  async (t) => {
    fc.assert(
      fc.property(
        sequences(Object.keys(destinationInputs(destinationStates.landed!))),
        fc.boolean(),
        (kinds, witness) => {
          const disk = new Disk<DestinationRecord>();
          let won = false;
          let gaveUp = false;
          const take = ({ state, outputs }: ReturnType<typeof stepDestination>): DestinationState => {
            for (const output of outputs) {
              if (output.type === 'persist') disk.put(output.record);
              const free = disk.written.some(
                (record) => record.type === 'taken' && record.arbiter === 'none',
              );
              if (output.type === 'run' && !free && !(disk.has('taken') && won))
                throw new Error('runs without a right');
              if (output.type === 'run' && gaveUp) throw new Error('runs after it has given up');
              if (output.type === 'send' && output.message.type === 'gaveUp') gaveUp = true;
              if (output.type === 'send' && output.message.type === 'landed' && disk.has('gaveUp'))
                throw new Error('has landed what it gave up');
            }
            return state;
          };
          let state = take(beginDestination({ ...attempt, witness }, settings, true));
          for (const kind of kinds) {
            let input: DestinationInput | undefined = (
              destinationInputs(state) as Record<string, DestinationInput>
            )[kind]!;
            if (input.type === 'answer') {
              input = { ...input, id: state.asked };
              if (kind === 'won') won = true;
            }
            if (
              input.type === 'message' &&
              input.message.type === 'grant' &&
              witness &&
              state.name === 'landed'
            )
              input = { ...input, message: { ...input.message, arbiter: 'witness' } };
            if (input.type === 'persisted' || input.type === 'persistFailed') input = disk.answer(input.type);
            if (input !== undefined) state = take(stepDestination(state, input));
          }
        },
      ),
      { numRuns: 3000 },
    );
    t.pass();
  },
);
