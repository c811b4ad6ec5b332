// SPDX-License-Identifier: Apache-2.0
/** What the transport tests share: messages of a 16-byte header and a body, and recorders of what arrives. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import type { DevstateError } from '../../src/errors.js';
import { check, native } from '../../src/native/index.js';
import {
  Fd,
  type Frame,
  type MessageHandler,
  type MessageLimits,
  MessageSocket,
  socketPair,
} from '../../src/transport/index.js';

export const HEADER = 16;

export const framing = {
  headerLength: HEADER,
  messageLength: (view: DataView, offset: number): number => view.getUint32(offset + 4, true),
};

export const limits: MessageLimits = { maxMessageLength: 1 << 16, maxFds: 8, maxQueuedBytes: 1 << 20 };

/** A message with number `id` and a body of `length` bytes that depend on it. */
export function message(id: number, length: number): Uint8Array {
  const bytes = new Uint8Array(HEADER + length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, id, true);
  view.setUint32(4, bytes.length, true);
  for (let i = 0; i < length; i++) bytes[HEADER + i] = (id * 31 + i) & 0xff;
  return bytes;
}

export function idOf(bytes: Uint8Array): number {
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
}

/** Keeps what arrives, and lets a test wait for it. */
export class Recorder implements MessageHandler {
  readonly messages: Uint8Array[] = [];
  /** The fds of each message. */
  readonly fds: Fd[][] = [];
  /** Undefined while open, else how it ended. */
  end: { error: DevstateError | undefined } | undefined;
  readonly #waiters: { ready: () => boolean; resolve: () => void }[] = [];

  constructor(readonly onMessage: (frame: Frame) => void = () => {}) {}

  message(frame: Frame): void {
    this.messages.push(frame.bytes.slice(0, frame.length));
    this.onMessage(frame);
    this.fds.push(frame.fds.filter((fd) => fd.isOpen).map((fd) => fd.take()));
    this.#wake();
  }

  closed(error: DevstateError | undefined): void {
    if (this.end !== undefined) throw new Error('closed twice');
    this.end = { error };
    this.#wake();
  }

  /** Resolves when `count` messages arrived. */
  received(count: number): Promise<void> {
    return this.#until(() => this.messages.length >= count);
  }

  /** The code of the error that closed the connection, undefined when it ended well. */
  async ended(): Promise<string | undefined> {
    await this.#until(() => this.end !== undefined);
    return this.end?.error?.code;
  }

  closeFds(): void {
    for (const fd of this.fds.flat()) fd.close();
  }

  #until(ready: () => boolean): Promise<void> {
    return new Promise((resolve) => {
      this.#waiters.push({ ready, resolve });
      this.#wake();
    });
  }

  #wake(): void {
    for (const waiter of this.#waiters) if (waiter.ready()) waiter.resolve();
  }
}

/** A MessageSocket with its recorder, and the raw other end. */
export function receiver(
  options: Partial<MessageLimits> = {},
  recorder = new Recorder(),
): { socket: MessageSocket; recorder: Recorder; peer: Fd } {
  const [mine, peer] = socketPair();
  return { socket: new MessageSocket(mine, framing, { ...limits, ...options }, recorder), recorder, peer };
}

/** Two connected MessageSockets. */
export function connected(
  options: Partial<MessageLimits> = {},
): [MessageSocket, Recorder, MessageSocket, Recorder] {
  const [one, other] = socketPair();
  const [first, second] = [new Recorder(), new Recorder()];
  const all = { ...limits, ...options };
  return [
    new MessageSocket(one, framing, all, first),
    first,
    new MessageSocket(other, framing, all, second),
    second,
  ];
}

/** Sends to a raw socket, all or nothing. */
export function rawSend(peer: Fd, bytes: Uint8Array, fds: readonly number[] = []): void {
  const sent = native.sendMessage(peer.number, bytes, 0, bytes.length, Int32Array.from(fds), fds.length);
  if (sent !== bytes.length) throw new Error(`sent ${sent} of ${bytes.length} bytes`);
}

/** `count` new eventfds, each with a counter that tells it apart. */
export function markedFds(count: number, mark: number): Fd[] {
  return Array.from(
    { length: count },
    (_, i) => new Fd(check(native.eventfdCreate(mark + i + 1), 'eventfd')),
  );
}

export { openFds } from '../support/closes.js';

/** A turn of the event loop, in which what is ready is read: between two immediates it polls. */
export function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(() => setImmediate(resolve)));
}

/**
 * Lets this process open only `room` more descriptors while `body` runs. Another process sets the limit, and is started
 * before, as none can be started or spoken to anew without descriptors.
 */
export async function withRoomFor(room: number, body: () => Promise<void>): Promise<void> {
  const usual = /^Max open files +(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))![1]!;
  const shell = spawn('sh', { stdio: ['pipe', 'pipe', 'inherit'] });
  const setLimit = async (limit: string | number): Promise<void> => {
    shell.stdin.write(`prlimit --pid ${process.pid} --nofile=${limit}: && echo done\n`);
    await once(shell.stdout, 'data');
  };
  await setLimit(usual);
  // The limit is on the numbers, and the lowest free one is taken first.
  const lowest = check(native.eventfdCreate(0), 'probe');
  native.close(lowest);
  await setLimit(lowest + room);
  try {
    await body();
  } finally {
    await setLimit(usual);
    shell.stdin.end();
    await once(shell, 'close');
  }
}
