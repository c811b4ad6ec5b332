// SPDX-License-Identifier: Apache-2.0
/** A state of each name and flavour of both machines, and an input of each kind. */

import type {
  Attempt,
  CommitSettings,
  DestinationInput,
  DestinationKind,
  DestinationState,
  SourceInput,
  SourceKind,
  SourceState,
  Token,
} from '../../src/commit/index.js';

export const settings: CommitSettings = { patienceMs: 300, repeatMs: 100, witnessMs: 120 };
const from: Token = { vm: 'vm', generation: 4, owner: 'A' };
export const attempt: Attempt = {
  ...{ vm: 'vm', generation: 7, source: 'A', destination: 'B', from, witness: true },
};
const base = { attempt, settings, link: true, asked: 1, expected: from, token: undefined };
const migrating = { ...base, name: 'migrating', vm: 'stopped', landed: false } as const;
const granted = {
  ...base,
  name: 'granted',
  arbiter: 'witness',
  vm: 'stopped',
  unsent: false,
  tokenHeld: false,
  destinationGone: false,
} as const;
const goingBack = { ...base, name: 'goingBack', vm: 'stopped' } as const;

export const sourceStates: Readonly<Record<string, SourceState>> = {
  beginning: { ...base, name: 'beginning', vm: 'running', givenUp: false },
  'beginning, given up': { ...base, name: 'beginning', vm: 'running', givenUp: true },
  'beginning, gone': { ...base, name: 'beginning', vm: 'gone', givenUp: true },
  migrating: { ...migrating, vm: 'running' },
  'migrating, landed': { ...migrating, vm: 'running', landed: true },
  'migrating, stopped': migrating,
  'migrating, cut': { ...migrating, link: false },
  'migrating, gone': { ...migrating, vm: 'gone' },
  granting: { ...base, name: 'granting', vm: 'stopped', cancelled: false },
  'granting, cancelled': { ...base, name: 'granting', vm: 'stopped', cancelled: true },
  'granting, gone': { ...base, name: 'granting', vm: 'gone', cancelled: false },
  granted,
  'granted, cut': { ...granted, link: false },
  'granted, unsent': { ...granted, link: false, unsent: true },
  'granted, token held': { ...granted, link: false, tokenHeld: true },
  'granted, destination gone': { ...granted, destinationGone: true },
  'granted, no witness': { ...granted, link: false, arbiter: 'none' },
  'granted, gone': { ...granted, link: false, vm: 'gone' },
  releasing: { ...granted, name: 'releasing' },
  'goingBack, refused': { ...goingBack, why: 'refused' },
  'goingBack, token': { ...goingBack, why: 'token' },
  'goingBack, unsent': { ...goingBack, why: 'unsent' },
  'goingBack, operator': { ...goingBack, why: 'operator' },
  'goingBack, gone': { ...goingBack, why: 'token', vm: 'gone' },
  resuming: { ...base, name: 'resuming', why: 'refused' },
  'resuming, before the grant': { ...base, name: 'resuming', why: undefined },
  settling: { ...base, name: 'settling', why: 'refused' },
  leaving: { ...base, name: 'leaving' },
  ending: { ...base, name: 'ending' },
  'closing, moved': { ...base, name: 'closing', outcome: 'moved', why: undefined },
  'ended, moved': { ...base, name: 'ended', outcome: 'moved', why: undefined },
  'ended, returned': { ...base, name: 'ended', outcome: 'returned', why: 'token' },
  'ended, returned by an operator': { ...base, name: 'ended', outcome: 'returned', why: 'operator' },
  'ended, lost': { ...base, name: 'ended', outcome: 'lost', why: undefined },
};

const starting = { ...base, name: 'starting', settled: false, right: 'word', why: 'grant' } as const;
const running = {
  ...base,
  name: 'running',
  vm: 'running',
  noted: true,
  done: false,
  settled: true,
  right: 'token',
} as const;
const ownToken: Token = { vm: 'vm', generation: 7, owner: 'B' };

export const destinationStates: Readonly<Record<string, DestinationState>> = {
  accepting: { ...base, name: 'accepting', givenUp: false },
  'accepting, given up': { ...base, name: 'accepting', givenUp: true },
  receiving: { ...base, name: 'receiving' },
  'receiving, cut': { ...base, name: 'receiving', link: false },
  landed: { ...base, name: 'landed' },
  'landed, cut': { ...base, name: 'landed', link: false },
  'taking, witness': { ...base, name: 'taking', arbiter: 'witness', why: 'grant' },
  'taking, none': { ...base, name: 'taking', arbiter: 'none', why: 'grant' },
  contending: { ...base, name: 'contending', fresh: true },
  'contending, restarted': { ...base, name: 'contending', fresh: false },
  takingRelease: { ...base, name: 'takingRelease', why: 'grant', fresh: true },
  'takingRelease, restarted': { ...base, name: 'takingRelease', why: 'operator', fresh: false },
  'starting, token': { ...starting, settled: true, right: 'token', token: ownToken },
  'starting, word': starting,
  'starting, operator': { ...starting, why: 'operator' },
  running,
  'running, done, not settled': { ...running, done: true, settled: false, right: 'word' },
  'running, done, not noted': { ...running, done: true, noted: false },
  'running, gone': { ...running, vm: 'gone' },
  'running, token unknown': { ...running, settled: false },
  givingUp: { ...base, name: 'givingUp' },
  ending: { ...base, name: 'ending', written: true },
  'ending, not written': { ...base, name: 'ending', written: false },
  lost: { ...base, name: 'lost' },
  'closing, moved': { ...base, name: 'closing', outcome: 'moved', word: 'runs' },
  'closing, gave up': { ...base, name: 'closing', outcome: 'returned', word: 'gaveUp' },
  'ended, moved': { ...base, name: 'ended', outcome: 'moved', word: 'runs' },
  'ended, gave up': { ...base, name: 'ended', outcome: 'returned', word: 'gaveUp' },
  'ended, declined': { ...base, name: 'ended', outcome: 'returned', word: 'declined' },
};

/** The record that a state waits for, or one of before. */
function awaited(state: SourceState | DestinationState): string {
  const of: Readonly<Record<string, string>> = {
    ...{ beginning: 'begun', granting: 'granted', releasing: 'granted', goingBack: 'back', leaving: 'moved' },
    ...{ accepting: 'incoming', taking: 'taken', takingRelease: 'taken', running: 'ran', givingUp: 'gaveUp' },
  };
  if (state.name !== 'closing') return of[state.name] ?? 'begun';
  if (!('word' in state)) return 'closed';
  return state.word === 'gaveUp' ? 'gaveUp' : 'finished';
}

/** What both ends have. `held`: the token is the other end's. */
const common = (record: string, other: string) =>
  ({
    persisted: { type: 'persisted', record },
    persistFailed: { type: 'persistFailed', record },
    connected: { type: 'connected' },
    disconnected: { type: 'disconnected' },
    patience: { type: 'timer', name: 'patience' },
    repeat: { type: 'timer', name: 'repeat' },
    witness: { type: 'timer', name: 'witness' },
    won: { type: 'answer', generation: 7, id: 1, answer: { type: 'set' } },
    held: {
      ...{ type: 'answer', generation: 7, id: 1 },
      answer: { type: 'conflict', current: { vm: 'vm', generation: 7, owner: other } },
    },
    unreachable: { type: 'answer', generation: 7, id: 1, answer: { type: 'unreachable' } },
    vmRuns: { type: 'vmRuns' },
    vmRunFailed: { type: 'vmRunFailed' },
    vmStopped: { type: 'vmStopped' },
    vmGone: { type: 'vmGone' },
    cancel: { type: 'cancel' },
    here: { type: 'operator', decision: 'here', fenced: true },
    elsewhere: { type: 'operator', decision: 'elsewhere', fenced: false },
  }) as const;

const says = (type: string, more: object = {}) => ({
  ...{ type: 'message', message: { type, vm: 'vm', generation: 7, ...more } },
});

export function sourceInputs(state: SourceState): Record<SourceKind, SourceInput> {
  return {
    ...common(awaited(state), 'B'),
    ...{ ready: says('ready'), declined: says('declined'), landed: says('landed'), waiting: says('waiting') },
    ...{ runs: says('runs'), gaveUp: says('gaveUp'), gone: says('gone') },
  } as Record<SourceKind, SourceInput>;
}

export function destinationInputs(state: DestinationState): Record<DestinationKind, DestinationInput> {
  return {
    ...common(awaited(state), 'A'),
    ...{ offer: says('offer', { attempt }), grant: says('grant', { arbiter: 'none' }) },
    ...{ withdrawn: says('withdrawn'), done: says('done') },
    vmLanded: { type: 'vmLanded' },
  } as Record<DestinationKind, DestinationInput>;
}

/** What any output may carry. */
interface AnyOutput {
  readonly type: string;
  readonly message?: { readonly type: string; readonly arbiter?: string };
  readonly record?: { readonly type: string; readonly arbiter?: string; readonly why?: string };
  readonly next?: Token;
  readonly name?: string;
  readonly code?: string;
  readonly outcome?: string;
}

/** What an output is, in a word or two. */
export function describe(output: AnyOutput): string {
  const { message, record, next } = output;
  switch (output.type) {
    case 'send':
      return ['say', message?.type, message?.arbiter].filter(Boolean).join(' ');
    case 'persist':
      return ['write', record?.type, record?.arbiter, record?.why].filter(Boolean).join(' ');
    case 'timer':
      return `${output.name} timer`;
    case 'refuse':
      return `refuse ${output.code}`;
    case 'finish':
      return `finish ${output.outcome}`;
    case 'ask':
      return `ask for ${next?.generation} ${next?.owner}`;
    default:
      return output.type;
  }
}

/** A cell of a table: where an input leads to, and what it puts out; undefined if nothing changes. */
export function cell(
  before: SourceState | DestinationState,
  step: { readonly state: SourceState | DestinationState; readonly outputs: readonly AnyOutput[] },
): string | undefined {
  const to = step.state.name === before.name ? [] : [`→ ${step.state.name}`];
  const outputs = step.outputs.length === 0 ? [] : [step.outputs.map(describe).join(', ')];
  return to.length + outputs.length === 0 ? undefined : [...to, ...outputs].join(': ');
}
