// SPDX-License-Identifier: Apache-2.0
/**
 * Access to a running QEMU's ports and physical memory through its qtest server.
 *
 * qtest is a line protocol (`readl 0xfebf0000` → `OK 0x0000000000000001`) meant for QEMU's own device tests; it works
 * under any accelerator and whether or not the VM runs. It is the only way on stock QEMU to write a device's MMIO.
 * Commands are pipelined: a batch costs one round trip.
 *
 * The server is added to QEMU at the first use and stays: QEMU (11.1 and before) keeps a pointer to the first one for
 * ever and crashes at the first answer of a second. Where it is: qtest-socket.ts.
 */
import type { Socket } from 'node:net';
import { DevstateError } from '../errors.js';
import { LineSplitter } from './line-splitter.js';
import type { QmpClient } from './qmp.js';
import { connectServer } from './qtest-socket.js';

/** Answers are a few words; nothing that we ask for makes a longer line. */
const MAX_LINE_BYTES = 4096;

/** Time for the first answer, which comes at once unless another manager is connected. */
const FIRST_ANSWER_TIMEOUT_MS = 5000;

export type ReadOperation = 'readb' | 'readw' | 'readl' | 'inb' | 'inw' | 'inl';
export type WriteOperation = 'writeb' | 'writew' | 'writel' | 'outb' | 'outw' | 'outl';

/**
 * One access: memory (`read`, `write`) at a guest-physical address, or I/O port (`in`, `out`);
 * of 1 (`b`), 2 (`w`) or 4 (`l`) bytes, as the guest's little-endian CPU would make it.
 */
export type QtestCommand =
  | { readonly operation: ReadOperation; readonly address: number }
  | {
      readonly operation: WriteOperation;
      readonly address: number;
      readonly value: number;
    };

/** The line that asks for `command`. */
export function encodeQtestCommand(command: QtestCommand): string {
  const line = `${command.operation} 0x${command.address.toString(16)}`;
  return 'value' in command ? `${line} 0x${command.value.toString(16)}\n` : `${line}\n`;
}

/** The value in an answer (0 when it carries none), or `undefined` if the answer is no success. */
export function decodeQtestAnswer(line: string): number | undefined {
  const match = /^OK(?: 0x([0-9a-fA-F]{1,16}))?$/.exec(line);
  if (match === null) return undefined;
  return match[1] === undefined ? 0 : Number.parseInt(match[1], 16);
}

/** What runs batches of accesses; {@link Qtest} does, and tests may put a model of a machine in its place. */
export interface QtestAccess {
  /** Runs the commands in order; one value per command, 0 for a write. */
  run(commands: readonly QtestCommand[]): Promise<number[]>;
}

interface Batch {
  readonly commands: readonly QtestCommand[];
  readonly values: number[];
  readonly resolve: (values: number[]) => void;
  readonly reject: (error: DevstateError) => void;
}

/** A connection to the qtest server of one QEMU. */
export class Qtest implements QtestAccess {
  readonly #socket: Socket;
  readonly #batches: Batch[] = [];
  #lost: DevstateError | undefined;

  private constructor(socket: Socket) {
    this.#socket = socket;
    const lines = LineSplitter.of(socket, MAX_LINE_BYTES);
    lines.onLine = (line) => this.#take(line);
    lines.onOverflow = () => this.#lose('QEMU sent a line without end');
    socket.on('error', (error) => this.#lose(error.message, error));
    socket.on('close', () => this.#lose('QEMU closed it'));
  }

  /**
   * Connects to the qtest server of the QEMU behind `qmp`, which gets one if it has none yet.
   * Throws DEVSTATE_E_QTEST if it cannot have one (it was started with a qtest server of its own) or another manager
   * is connected to it.
   */
  static async attach(
    qmp: QmpClient,
    options: { signal?: AbortSignal | undefined; timeoutMs?: number } = {},
  ): Promise<Qtest> {
    const timeout = AbortSignal.timeout(options.timeoutMs ?? FIRST_ANSWER_TIMEOUT_MS);
    const signal = options.signal === undefined ? timeout : AbortSignal.any([options.signal, timeout]);
    let socket: Socket | undefined;
    const abort = () => socket?.destroy();
    signal.addEventListener('abort', abort);
    try {
      socket = await connectServer(qmp, signal);
      const qtest = new Qtest(socket);
      // One client is served at a time; another one would wait for an answer for ever.
      await qtest.run([{ operation: 'inl', address: 0xcf8 }]);
      return qtest;
    } catch (cause) {
      socket?.destroy();
      options.signal?.throwIfAborted();
      const message = cause instanceof Error ? cause.message : String(cause);
      const why = timeout.aborted ? 'no answer; another devstate may be connected to it' : message;
      throw new DevstateError('DEVSTATE_E_QTEST', `cannot use QEMU's qtest server: ${why}`, { cause });
    } finally {
      signal.removeEventListener('abort', abort);
    }
  }

  run(commands: readonly QtestCommand[]): Promise<number[]> {
    if (this.#lost !== undefined) return Promise.reject(this.#lost);
    if (commands.length === 0) return Promise.resolve([]);
    return new Promise((resolve, reject) => {
      this.#batches.push({ commands, values: [], resolve, reject });
      this.#socket.write(commands.map(encodeQtestCommand).join(''));
    });
  }

  /** Ends the connection; batches still under way are rejected. The server stays in QEMU for the next one. */
  close(): void {
    this.#lose('closed by this side');
  }

  #take(line: string): void {
    // Interrupt lines may be reported between answers; no one asked for them here.
    if (line.startsWith('IRQ ')) return;
    const batch = this.#batches[0];
    const command = batch?.commands[batch.values.length];
    if (batch === undefined || command === undefined) {
      this.#lose(`QEMU sent "${line}" unasked`);
      return;
    }
    const value = decodeQtestAnswer(line);
    if (value === undefined) {
      this.#lose(`QEMU answered "${line}" to "${encodeQtestCommand(command).trim()}"`);
      return;
    }
    batch.values.push(value);
    if (batch.values.length < batch.commands.length) return;
    this.#batches.shift();
    batch.resolve(batch.values);
  }

  #lose(why: string, cause?: unknown): void {
    if (this.#lost !== undefined) return;
    this.#lost = new DevstateError('DEVSTATE_E_QTEST', `qtest connection lost: ${why}`, { cause });
    this.#socket.destroy();
    for (const { reject } of this.#batches.splice(0)) reject(this.#lost);
  }
}
