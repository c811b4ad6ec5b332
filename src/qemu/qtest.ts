// SPDX-License-Identifier: Apache-2.0
/**
 * Access to a running QEMU's ports and physical memory through its qtest server, attached for the purpose and
 * detached again.
 *
 * qtest is a line protocol (`readl 0xfebf0000` → `OK 0x0000000000000001`) meant for QEMU's own device tests; it works
 * under any accelerator and whether or not the VM runs. It is the only way on stock QEMU to write a device's MMIO.
 * Commands are pipelined: a batch costs one round trip.
 */
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DevstateError } from '../errors.js';
import { LineSplitter } from './line-splitter.js';
import type { QmpClient } from './qmp.js';

/** Answers are a few words; nothing that we ask for makes a longer line. */
const MAX_LINE_BYTES = 4096;

/**
 * QEMU allows one qtest server, so ours has one name: what a manager left that was killed is found by it and removed.
 */
const OBJECT_ID = 'devstate-qtest';
const CHARDEV_ID = 'devstate-qtest-socket';

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

/** The qtest server of one QEMU while we have it attached. */
export class Qtest implements QtestAccess {
  readonly #qmp: QmpClient;
  readonly #socket: Socket;
  readonly #batches: Batch[] = [];
  #lost: DevstateError | undefined;

  private constructor(qmp: QmpClient, socket: Socket) {
    this.#qmp = qmp;
    this.#socket = socket;
    const lines = new LineSplitter(socket, MAX_LINE_BYTES);
    lines.onLine = (line) => this.#take(line);
    lines.onOverflow = () => this.#lose('QEMU sent a line without end');
    socket.on('error', (error) => this.#lose(error.message, error));
    socket.on('close', () => this.#lose('QEMU closed it'));
  }

  /**
   * Attaches a qtest server to the QEMU behind `qmp`, replacing one that a killed manager left.
   *
   * @param options.directory where to put the socket for the moment that QEMU needs to connect to it; QEMU must see
   *   the same file system there. Default: the system's directory for temporary files.
   */
  static async attach(
    qmp: QmpClient,
    options: { directory?: string; signal?: AbortSignal | undefined } = {},
  ): Promise<Qtest> {
    const { signal } = options;
    await detach(qmp);
    const directory = await mkdtemp(join(options.directory ?? tmpdir(), 'devstate-qtest-'));
    const server = createServer({ noDelay: true });
    server.maxConnections = 1;
    try {
      // QEMU may run as another user: who knows the name may connect, and only QEMU is told it.
      await chmod(directory, 0o711);
      const path = join(directory, randomUUID());
      server.listen({ path, writableAll: true, readableAll: true });
      await once(server, 'listening', { signal });
      const connected = once(server, 'connection', { signal }) as Promise<[Socket]>;
      connected.catch(() => {});
      await qmp.execute('chardev-add', { arguments: chardev(path), signal });
      const qtest = new Qtest(qmp, (await connected)[0]);
      // Without a log of its own every command would go to QEMU's stderr.
      const object = {
        'qom-type': 'qtest',
        id: OBJECT_ID,
        chardev: CHARDEV_ID,
        log: '/dev/null',
      };
      await qmp.execute('object-add', { arguments: object, signal });
      return qtest;
    } catch (cause) {
      await detach(qmp).catch(() => {});
      signal?.throwIfAborted();
      const why = cause instanceof Error ? cause.message : String(cause);
      throw new DevstateError('DEVSTATE_E_QTEST', `cannot attach a qtest server: ${why}`, { cause });
    } finally {
      server.close();
      await rm(directory, { recursive: true, force: true });
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

  /** Detaches the server from QEMU. Batches still under way are rejected. */
  async close(): Promise<void> {
    try {
      await detach(this.#qmp);
    } finally {
      this.#lose('closed by this side');
    }
  }

  #take(line: string): void {
    // Interrupt lines may be reported between answers; nobody asked for them here.
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

/** QEMU connects to us: no name stays behind in its file system, and the connection is there when it answers. */
function chardev(path: string): Record<string, unknown> {
  const addr = { type: 'unix', data: { path } };
  return {
    id: CHARDEV_ID,
    backend: { type: 'socket', data: { addr, server: false } },
  };
}

/** Removes our qtest server from QEMU if it is there. */
async function detach(qmp: QmpClient): Promise<void> {
  const absent = (error: unknown) => {
    if (!(error instanceof DevstateError) || error.code !== 'DEVSTATE_E_QMP_COMMAND') throw error;
  };
  await qmp.execute('object-del', { arguments: { id: OBJECT_ID } }).catch(absent);
  await qmp.execute('chardev-remove', { arguments: { id: CHARDEV_ID } }).catch(absent);
}
