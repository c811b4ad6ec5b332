// SPDX-License-Identifier: Apache-2.0
/**
 * A client of QMP, QEMU's monitor protocol: one JSON object per line over a UNIX socket.
 *
 *     QEMU   {"QMP": {"version": …, "capabilities": […]}}
 *     client {"execute": "qmp_capabilities", "id": 0}
 *     QEMU   {"return": {}, "id": 0}
 *     …commands are answered by id; {"event": …} lines come at any time between them.
 *
 * A QMP socket serves one client at a time: a second one is not refused but gets no greeting.
 * See QEMU's docs/interop/qmp-spec.
 */
import { EventEmitter, on } from 'node:events';
import { resolve } from 'node:path';
import { DevstateError } from '../errors.js';
import type { Fd } from '../transport/index.js';
import * as z from '../zod.js';
import { LineSocket } from './line-socket.js';

/** Longest line taken from QEMU, in bytes; its longest known, the reply to query-qmp-schema, has about 0.3 MB. */
const MAX_LINE_BYTES = 8 << 20;

/** Time for QEMU to send its greeting, which it does at once unless another client is connected. */
const GREETING_TIMEOUT_MS = 5000;

const Greeting = z.object({
  QMP: z.object({
    version: z.object({
      qemu: z.object({ major: z.int(), minor: z.int(), micro: z.int() }),
    }),
    capabilities: z.array(z.string()).default([]),
  }),
});

const Event = z.object({
  event: z.string(),
  data: z.record(z.string(), z.unknown()).default({}),
  timestamp: z.object({ seconds: z.number(), microseconds: z.number() }),
});

const Failure = z.object({
  id: z.int(),
  error: z.object({ class: z.string(), desc: z.string() }),
});
const Success = z.object({ id: z.int(), return: z.unknown() });
const Message = z.union([Event, Failure, Success]);

/** The version of a QEMU, e.g. 11.1.3. */
export interface QemuVersion {
  readonly major: number;
  readonly minor: number;
  readonly micro: number;
}

/** Something QEMU told without being asked. */
export interface QmpEvent {
  /** e.g. `STOP`, `RESUME`, `MIGRATION` */
  readonly name: string;
  readonly data: Readonly<Record<string, unknown>>;
  /** When it happened, in ms since the epoch, by QEMU's clock (microsecond resolution). */
  readonly timestampMs: number;
  /** When it arrived here, by this process's `performance.now()`: comparable between QEMUs on different hosts. */
  readonly receivedMs: number;
}

/** QEMU's refusal of a command. */
export class QmpCommandError extends DevstateError {
  /** QMP's error class, e.g. `GenericError`, `CommandNotFound`, `DeviceNotFound`. */
  readonly errorClass: string;

  constructor(command: string, errorClass: string, description: string) {
    super('DEVSTATE_E_QMP_COMMAND', `QEMU refused ${command}: ${description}`);
    this.errorClass = errorClass;
  }
}

/** The capability to run some commands at once, even while QEMU is stuck in another one. */
const OUT_OF_BAND = 'oob';

interface Pending {
  readonly command: string;
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: unknown) => void;
}

interface Cancellable {
  /** Aborting rejects with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
}

interface CommandOptions extends Cancellable {
  readonly arguments?: Readonly<Record<string, unknown>>;
  /** Overtake the commands that QEMU is at; only few commands can. */
  readonly outOfBand?: boolean;
  /**
   * Descriptors for the command, sent with it. They stay the caller's, who may close them when it was answered. QEMU makes
   * the open file blocking.
   */
  readonly fds?: readonly Fd[];
}

/** One connection to a QMP server. Every operation rejects once the connection is lost. */
export class QmpClient {
  /** Absolute path of the socket. */
  readonly path: string;
  readonly version: QemuVersion;
  /** The process that listens there, most often QEMU; 0 if it is in a namespace that we do not see. */
  readonly pid: number;
  readonly #socket: LineSocket;
  readonly #pending = new Map<number, Pending>();
  readonly #emitter = new EventEmitter<{
    event: [QmpEvent];
    lost: [DevstateError];
  }>();
  #nextId = 0;
  /** Settles when the last command that carries descriptors was answered. */
  #passing: Promise<unknown> = Promise.resolve();
  #lost: DevstateError | undefined;

  private constructor(path: string, socket: LineSocket, version: QemuVersion, early: readonly string[]) {
    this.path = resolve(path);
    this.#socket = socket;
    this.pid = socket.peerPid;
    this.version = version;
    this.#emitter.setMaxListeners(0);
    const lose = (code: 'DEVSTATE_E_QMP_CLOSED' | 'DEVSTATE_E_QMP_PROTOCOL', why: string, cause?: unknown) =>
      this.#lose(new DevstateError(code, `QMP connection lost: ${why}`, { cause }));
    socket.onLine = (line) => this.#take(line);
    socket.onOverflow = () => lose('DEVSTATE_E_QMP_PROTOCOL', `a line longer than ${MAX_LINE_BYTES} bytes`);
    for (const line of early) this.#take(line);
    socket.onEnd = (why, cause) =>
      lose('DEVSTATE_E_QMP_CLOSED', `${why}; see whether QEMU still runs`, cause);
  }

  /**
   * Connects to the QMP server at `path` and leaves capability negotiation mode.
   * Throws DEVSTATE_E_QMP_CONNECT if nothing there speaks QMP to us.
   */
  static async connect(path: string, options: Cancellable & { timeoutMs?: number } = {}): Promise<QmpClient> {
    const timeout = AbortSignal.timeout(options.timeoutMs ?? GREETING_TIMEOUT_MS);
    const either = options.signal === undefined ? timeout : AbortSignal.any([options.signal, timeout]);
    options.signal?.throwIfAborted();
    let socket: LineSocket | undefined;
    try {
      const timeoutMs = options.timeoutMs ?? GREETING_TIMEOUT_MS;
      socket = await LineSocket.connect(path, MAX_LINE_BYTES, { timeoutMs, signal: either });
      const [first = '', ...early] = await firstLines(socket, either);
      const { version, capabilities } = Greeting.parse(JSON.parse(first)).QMP;
      const client = new QmpClient(path, socket, version.qemu, early);
      const enable = capabilities.filter((name) => name === OUT_OF_BAND);
      await client.execute('qmp_capabilities', { arguments: { enable }, signal: either });
      return client;
    } catch (cause) {
      socket?.close();
      options.signal?.throwIfAborted();
      throw new DevstateError(
        'DEVSTATE_E_QMP_CONNECT',
        `no QMP server at ${path}: ${whyNot(cause, timeout)}`,
        {
          cause,
        },
      );
    }
  }

  /** Whether the version is `major.minor` or newer. */
  isAtLeast(major: number, minor: number): boolean {
    return this.version.major > major || (this.version.major === major && this.version.minor >= minor);
  }

  /** Runs a command; its return value as `schema` reads it. Commands may overlap: QEMU runs them in order. */
  execute<T>(command: string, options: CommandOptions & { schema: z.ZodType<T> }): Promise<T>;
  /** Runs a command whose return value is of no interest. */
  execute(command: string, options?: CommandOptions): Promise<unknown>;
  async execute(command: string, options: CommandOptions & { schema?: z.ZodType } = {}): Promise<unknown> {
    const { signal, schema, fds = [] } = options;
    let reply: Promise<unknown>;
    if (fds.length === 0) reply = this.#send(command, options);
    else {
      // Descriptors are not kept with the command: QEMU has only those that came last, so they come one by one.
      reply = this.#passing.then(() => this.#send(command, options));
      this.#passing = reply.catch(() => {});
    }
    // QMP cannot withdraw a command: an aborted one is answered later, and the answer is dropped.
    const value = await abortable(reply, signal, () => {});
    if (schema === undefined) return value;
    const parsed = schema.safeParse(value);
    if (parsed.success) return parsed.data;
    throw new DevstateError('DEVSTATE_E_QMP_PROTOCOL', `QEMU's answer to ${command} is not understood`, {
      cause: parsed.error,
    });
  }

  /** What QEMU answers. */
  async #send(command: string, options: CommandOptions): Promise<unknown> {
    options.signal?.throwIfAborted();
    if (this.#lost !== undefined) throw this.#lost;
    const verb = options.outOfBand === true ? 'exec-oob' : 'execute';
    const id = this.#nextId++;
    return new Promise<unknown>((resolve, reject) => {
      this.#pending.set(id, { command, resolve, reject });
      this.#socket.write(JSON.stringify({ [verb]: command, arguments: options.arguments, id }), options.fds);
    });
  }

  /** Calls `listener` with every event from now on; returns the function that ends this. */
  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.#emitter.on('event', listener);
    return () => this.#emitter.off('event', listener);
  }

  /**
   * The first event, from the moment of the call on, that satisfies `predicate` (or has this name).
   * The promise may be left unobserved: its rejection is then of no consequence.
   */
  waitForEvent(
    predicate: string | ((event: QmpEvent) => boolean),
    options: Cancellable = {},
  ): Promise<QmpEvent> {
    const wanted = typeof predicate === 'string' ? (event: QmpEvent) => event.name === predicate : predicate;
    let end = () => {};
    const found = new Promise<QmpEvent>((resolve, reject) => {
      if (this.#lost !== undefined) return reject(this.#lost);
      const take = (event: QmpEvent) => {
        if (wanted(event)) resolve(event);
      };
      this.#emitter.on('event', take).once('lost', reject);
      end = () => this.#emitter.off('event', take).off('lost', reject);
    });
    const waiting = abortable(found, options.signal, () => end());
    waiting.catch(() => {});
    return waiting;
  }

  /** All events from now on, queued until taken. Ends with an error when the connection is lost or the signal aborts. */
  async *events(options: Cancellable = {}): AsyncGenerator<QmpEvent, void, undefined> {
    const ended = new AbortController();
    const abort = () => ended.abort(options.signal?.reason);
    const lost = (error: DevstateError) => ended.abort(error);
    options.signal?.addEventListener('abort', abort, { once: true });
    if (options.signal?.aborted) abort();
    if (this.#lost !== undefined) lost(this.#lost);
    this.#emitter.once('lost', lost);
    try {
      for await (const [event] of on(this.#emitter, 'event', {
        signal: ended.signal,
      }))
        yield event;
    } catch (error) {
      throw ended.signal.aborted ? ended.signal.reason : error;
    } finally {
      options.signal?.removeEventListener('abort', abort);
      this.#emitter.off('lost', lost);
    }
  }

  /** Ends the connection; QEMU continues as it is. */
  close(): void {
    this.#lose(new DevstateError('DEVSTATE_E_QMP_CLOSED', 'QMP connection closed by this side'));
  }

  #take(line: string): void {
    const message = Message.safeParse(parseJson(line));
    if (!message.success) {
      const why = `QMP connection lost: ${JSON.stringify(line.slice(0, 80))} is no QMP message`;
      this.#lose(
        new DevstateError('DEVSTATE_E_QMP_PROTOCOL', why, {
          cause: message.error,
        }),
      );
      return;
    }
    const { data } = message;
    if ('event' in data) {
      const timestampMs = data.timestamp.seconds * 1000 + data.timestamp.microseconds / 1000;
      this.#emitter.emit('event', {
        name: data.event,
        data: data.data,
        timestampMs,
        receivedMs: performance.now(),
      });
      return;
    }
    const pending = this.#pending.get(data.id);
    this.#pending.delete(data.id);
    if (pending === undefined) return;
    if ('error' in data) {
      pending.reject(new QmpCommandError(pending.command, data.error.class, data.error.desc));
    } else {
      pending.resolve(data.return);
    }
  }

  #lose(error: DevstateError): void {
    if (this.#lost !== undefined) return;
    this.#lost = error;
    this.#socket.close();
    for (const { reject } of this.#pending.values()) reject(error);
    this.#pending.clear();
    this.#emitter.emit('lost', error);
  }
}

/** `promise`, or a rejection with the signal's reason; `release` runs in either case. */
async function abortable<T>(
  promise: Promise<T>,
  signal: AbortSignal | undefined,
  release: () => void,
): Promise<T> {
  let abort = () => {};
  try {
    return await new Promise<T>((accept, reject) => {
      promise.then(accept, reject);
      abort = () => reject(signal?.reason);
      if (signal?.aborted) abort();
      signal?.addEventListener('abort', abort, { once: true });
    });
  } finally {
    signal?.removeEventListener('abort', abort);
    release();
  }
}

/** The first line a peer sends, and those that came with it; rejects if it closes or says too much first. */
function firstLines(socket: LineSocket, signal: AbortSignal): Promise<string[]> {
  const found: string[] = [];
  const any = new Promise<string[]>((resolve, reject) => {
    socket.onLine = (line) => {
      found.push(line);
      resolve(found);
    };
    socket.onOverflow = () => reject(new Error('it sends lines without end'));
    socket.onEnd = (why) => reject(new Error(why));
  });
  return abortable(any, signal, () => {});
}

function parseJson(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}

function whyNot(cause: unknown, timeout: AbortSignal): string {
  if (timeout.aborted) return 'no greeting in time; another QMP client may be connected to it';
  if (cause instanceof DevstateError && cause.code === 'DEVSTATE_E_CONNECT') {
    return cause.message.slice(cause.message.lastIndexOf(': ') + 2);
  }
  if (cause instanceof SyntaxError || cause instanceof z.ZodError) return 'what answers there is not QMP';
  return cause instanceof Error ? cause.message : String(cause);
}
