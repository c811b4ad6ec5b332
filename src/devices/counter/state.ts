// SPDX-License-Identifier: Apache-2.0
/** The state of the counter device, and its payloads in format `org.devstate.counter` (formats/counter.md). */

import { Errno, RequestError } from '../../wire/index.js';

/** Record types. */
export const CounterRecord = { STATE: 0x10000, CONFIG: 0x10001 } as const;

export const STATE_LENGTH = 88;
export const CONFIG_LENGTH = 256;
export const MAX_ENTRIES = 256;

export interface CounterState {
  value: bigint;
  additions: number;
  exchanges: number;
  expected: bigint;
  desired: bigint;
  /** Result of the last compare-and-swap by register: 1 exchanged, 0 not. */
  result: number;
  /** Entries of each ring; 0 while there are none. */
  entries: number;
  commands: number;
  completions: number;
  head: number;
  tail: number;
  phase: number;
  /** An interrupt was raised, and there was no one to notify yet. */
  interrupt: boolean;
}

export function initialState(): CounterState {
  return {
    value: 0n,
    additions: 0,
    exchanges: 0,
    expected: 0n,
    desired: 0n,
    result: 0,
    entries: 0,
    commands: 0,
    completions: 0,
    head: 0,
    tail: 0,
    phase: 1,
    interrupt: false,
  };
}

/** One more, up to what a state can hold. */
export function counted(value: number): number {
  return Math.min(value + 1, Number.MAX_SAFE_INTEGER);
}

/** Writes the payload to `bytes`, which are reused from one transaction to the next. */
export function encodeState(state: CounterState, bytes = new Uint8Array(STATE_LENGTH)): Uint8Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, STATE_LENGTH);
  view.setBigUint64(0, state.value, true);
  view.setBigUint64(8, BigInt(state.additions), true);
  view.setBigUint64(16, BigInt(state.exchanges), true);
  view.setBigUint64(24, state.expected, true);
  view.setBigUint64(32, state.desired, true);
  view.setUint32(40, state.result, true);
  view.setUint32(44, state.entries, true);
  view.setBigUint64(48, BigInt(state.commands), true);
  view.setBigUint64(56, BigInt(state.completions), true);
  view.setUint32(64, state.head, true);
  view.setUint32(68, state.tail, true);
  view.setUint32(72, state.phase, true);
  view.setUint32(76, state.interrupt ? 1 : 0, true);
  return bytes;
}

/** @throws RequestError EINVAL for what cannot be a state */
export function decodeState(payload: Uint8Array): CounterState {
  if (payload.length !== STATE_LENGTH) throw refused(`a state of ${payload.length} bytes`);
  const view = new DataView(payload.buffer, payload.byteOffset, STATE_LENGTH);
  const state: CounterState = {
    value: view.getBigUint64(0, true),
    additions: safe(view, 8),
    exchanges: safe(view, 16),
    expected: view.getBigUint64(24, true),
    desired: view.getBigUint64(32, true),
    result: view.getUint32(40, true),
    entries: view.getUint32(44, true),
    commands: safe(view, 48),
    completions: safe(view, 56),
    head: view.getUint32(64, true),
    tail: view.getUint32(68, true),
    phase: view.getUint32(72, true),
    interrupt: view.getUint32(76, true) !== 0,
  };
  const { entries, head, tail, phase, result } = state;
  if (entries > MAX_ENTRIES) throw refused(`rings of ${entries} entries`);
  if (Math.max(head, tail) >= Math.max(entries, 1)) throw refused('a ring has an index beyond its end');
  if (phase > 1 || result > 1) throw refused('a flag is neither 0 nor 1');
  return state;
}

function safe(view: DataView, at: number): number {
  const value = Number(view.getBigUint64(at, true));
  if (!Number.isSafeInteger(value)) throw refused(`a field of ${value}`);
  return value;
}

export function refused(message: string): RequestError {
  return new RequestError(Errno.EINVAL, `counter state refused: ${message}`);
}
