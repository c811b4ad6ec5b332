// SPDX-License-Identifier: Apache-2.0
/** The state of the sample device, and its payloads in format `org.devstate.sample` (formats/sample.md). */

import { Errno, RequestError } from '../../wire/index.js';

export const BAR0_SIZE = 8;
export const BAR1_SIZE = 0x3000;
export const PAGE_SIZE = 4096;
export const CONFIG_SIZE = 256;
const TIMER_LENGTH = 16;

/** Record types. */
export const SampleRecord = { PAGE: 0x10000, TIMER: 0x10001, CONFIG: 0x10002 } as const;

export interface TimerState {
  /** What was last written to BAR 0: a second since 1970. */
  readonly second: bigint;
  /** It has yet to come, or it has come while the device was stopped. */
  readonly armed: boolean;
  /** INTx was raised, and there was no one to notify yet. */
  readonly interrupt: boolean;
}

/** The device as what saves and loads it sees it. Quiesced, but for `bar1`. */
export interface StatefulSample {
  readonly bar1: Uint8Array;
  captureTimer(): TimerState;
  readonly configBytes: Uint8Array;
  /** Becomes that state; without `config` its own stays. @throws RequestError EINVAL, unchanged, for another's config space */
  restore(bar1: Uint8Array, timer: TimerState, config?: Uint8Array): void;
}

const ARMED = 1;
const INTERRUPT = 2;

/** `second i64, flags u32, reserved u32` */
export function encodeTimer({ second, armed, interrupt }: TimerState): Uint8Array {
  const bytes = new Uint8Array(TIMER_LENGTH);
  const view = new DataView(bytes.buffer);
  view.setBigInt64(0, second, true);
  view.setUint32(8, (armed ? ARMED : 0) | (interrupt ? INTERRUPT : 0), true);
  return bytes;
}

export function decodeTimer(payload: Uint8Array): TimerState {
  if (payload.length !== TIMER_LENGTH) throw refused(`a timer of ${payload.length} bytes`);
  const view = viewOf(payload);
  const flags = view.getUint32(8, true);
  if ((flags & ~(ARMED | INTERRUPT)) !== 0) throw refused(`timer flags 0x${flags.toString(16)}`);
  return {
    second: view.getBigInt64(0, true),
    armed: (flags & ARMED) !== 0,
    interrupt: (flags & INTERRUPT) !== 0,
  };
}

/** `index u32, reserved u32, 4096 bytes` */
export function encodePage(index: number, content: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(8 + PAGE_SIZE);
  new DataView(bytes.buffer).setUint32(0, index, true);
  bytes.set(content, 8);
  return bytes;
}

/** `content` is a part of the payload. */
export function decodePage(payload: Uint8Array): { index: number; content: Uint8Array } {
  if (payload.length !== 8 + PAGE_SIZE) throw refused(`a page of ${payload.length} bytes`);
  const index = viewOf(payload).getUint32(0, true);
  if (index >= BAR1_SIZE / PAGE_SIZE) throw refused(`BAR 1 has no page ${index}`);
  return { index, content: payload.subarray(8) };
}

export function refused(message: string): RequestError {
  return new RequestError(Errno.EINVAL, `sample state refused: ${message}`);
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}
