// SPDX-License-Identifier: Apache-2.0
/**
 * A QEMU that is none: speaks QMP and qtest on real sockets for a {@link QemuModel}, as QEMU does it.
 *
 *     QMP       greeting, one client at a time, commands in order, `exec-oob` past them, descriptors (getfd), events
 *     qtest     on the listening socket that it was given by QMP, one client at a time
 *     main loop one thing after the other: commands, qtest's lines, and what the model does by itself
 *
 * A {@link Fault} is put at one command or line, by its number or name: never at a time.
 */
import { rmSync } from 'node:fs';
import { LineSplitter } from '../../src/qemu/line-splitter.js';
import { type Fd, Listener, StreamSocket } from '../../src/transport/index.js';
import { Refusal } from './qemu-hosts.js';
import { QemuModel as Model, type QemuModel, type QemuModelOptions } from './qemu-model.js';

const VERSION = { qemu: { major: 11, minor: 1, micro: 3 }, package: '' };
const GREETING = { QMP: { version: VERSION, capabilities: ['oob'] } };
const QUEUE = { maxQueuedBytes: 8 << 20 };
const LONGEST_LINE = 1 << 20;
/** What QEMU runs at once, whatever it is at. */
const OUT_OF_BAND = ['yank', 'query-yank'];

/**
 * What happens instead of what was asked for.
 *
 *     refuse    an error is the answer; nothing was done
 *     close     the connection ends before anything is done; another one can be made
 *     lose      it is done, and the connection ends in place of the answer
 *     exit      the process ends before anything is done
 *     stuck     nothing is answered any more but out-of-band commands; `yank` frees it, and it does what waited
 *     hang      nothing is answered any more
 */
export type FaultKind = 'refuse' | 'close' | 'lose' | 'exit' | 'stuck' | 'hang';

/** One command, or one line of qtest's. */
export interface Asked {
  readonly by: 'qmp' | 'qtest';
  /** `query-status`; `outl`. */
  readonly name: string;
  /** How many came before it at this QEMU, of both kinds. */
  readonly index: number;
  /** How often this name came before. */
  readonly nth: number;
  /** The line. */
  readonly text: string;
}

export type FaultPlan = (asked: Asked) => FaultKind | undefined;

/** One client of a chardev. */
interface Peer {
  readonly fds: Fd[];
  /** Lines that go when the main loop has nothing else to do, together. */
  say(line: string): void;
  flush(): void;
  close(): void;
}

interface Request {
  readonly execute?: string;
  readonly 'exec-oob'?: string;
  readonly arguments?: Readonly<Record<string, unknown>>;
  readonly id?: number;
}

export class QemuStandIn {
  readonly model: QemuModel;
  /** Where QMP is. */
  readonly path: string;
  /** Everything that was asked, in order. */
  readonly asked: Asked[] = [];
  /** What goes wrong. */
  fault: FaultPlan = () => undefined;
  /** Called before a command or a line is carried out: as another client's work comes in between. */
  before: (asked: Asked) => void | Promise<void> = () => {};
  /** Called when a command was carried out, and was not answered yet. */
  after: (asked: Asked) => void = () => {};
  /** No one else is served: who connects is sent away at once. */
  set isDeaf(isDeaf: boolean) {
    for (const server of [this.#qmp, this.#qtest]) if (server !== undefined) server.isDeaf = isDeaf;
  }

  /** Called when it has fallen silent. */
  onSilence: () => void = () => {};
  /** Something was asked or answered. */
  onActivity: () => void = () => {};
  /** Its process is another program by now. */
  hasExecuted = false;
  /** It has ended. */
  onExit: () => void = () => {};
  silent: 'stuck' | 'hang' | undefined;
  readonly #qmp: ChardevServer;
  #qtest: ChardevServer | undefined;
  readonly #given = new Map<string, Fd>();
  readonly #sets = new Map<number, readonly { readonly fd: Fd; readonly opaque: unknown }[]>();
  readonly #counts = new Map<string, number>();
  /** The main loop's work. */
  readonly #queue: (() => void | Promise<void>)[] = [];
  #working: Promise<void> | undefined;

  private constructor(path: string, model: QemuModel) {
    this.path = path;
    this.model = model;
    model.objects.qtestPath = `${path}.qtest`;
    model.emit = (name, data = {}) => this.#event(name, data);
    model.exit = () => this.exit();
    model.later = (work) => this.#enqueue(work);
    model.objects.listen = (name) => this.#listenQtest(name);
    model.become = (command) => this.#become(command);
    this.#qmp = ChardevServer.listen(path, {
      connected: (peer) => this.#greet(peer),
      line: (peer, line) => this.#takeCommand(peer, line),
    });
  }

  /** @param path where QMP is to be */
  static async start(path: string, options: QemuModelOptions): Promise<QemuStandIn> {
    return new QemuStandIn(path, await Model.start(options));
  }

  /** Clients that are connected: of QMP and of qtest. */
  get clients(): number {
    return this.#qmp.clients + (this.#qtest?.clients ?? 0);
  }

  /** Its process ends, as if it were killed. */
  exit(): void {
    if (this.model.ended) return;
    this.#end();
    this.onExit();
  }

  /** Its process executes a program: nothing of it stays but the memory. */
  #become(command: readonly string[]): void {
    const { hosts, ram } = this.model;
    this.hasExecuted = true;
    this.#end();
    void hosts.programs.get(command[0] ?? '')?.(command, ram);
  }

  #end(): void {
    this.model.close();
    this.#queue.length = 0;
    this.#qmp.close();
    this.#qtest?.close();
    for (const fd of this.#given.values()) fd.close();
    for (const { fd } of [...this.#sets.values()].flat()) fd.close();
  }

  /** Does what is under way, to have nothing left of it. */
  async close(): Promise<void> {
    this.exit();
    await this.#working;
    rmSync(this.path, { force: true });
  }

  /** The main loop does `work` when it is its turn. */
  #enqueue(work: () => void | Promise<void>): void {
    if (this.model.ended) return;
    this.#queue.push(work);
    if (this.silent === undefined) this.#working ??= this.#run();
  }

  async #run(): Promise<void> {
    // What comes in one turn is carried out in the next: as a process that is another one.
    await undefined;
    while (this.silent === undefined) {
      const work = this.#queue.shift();
      if (work === undefined) break;
      await work();
    }
    this.#flush();
    this.#working = undefined;
    if (this.#queue.length > 0 && this.silent === undefined) this.#working = this.#run();
  }

  #flush(): void {
    this.#qmp.flush();
    this.#qtest?.flush();
  }

  #fallSilent(how: 'stuck' | 'hang'): void {
    this.silent = how;
    this.#flush();
    this.onSilence();
  }

  /** It answers again, if it was stuck. */
  free(): void {
    if (this.silent !== 'stuck') return;
    this.silent = undefined;
    this.#working ??= this.#run();
  }

  #count(by: Asked['by'], name: string, text: string): Asked {
    const nth = this.#counts.get(name) ?? 0;
    this.#counts.set(name, nth + 1);
    const asked = { by, name, index: this.asked.length, nth, text };
    this.asked.push(asked);
    this.onActivity();
    return asked;
  }

  // QMP

  #greet(peer: Peer): void {
    send(peer, GREETING);
  }

  #event(event: string, data: object): void {
    const now = Date.now();
    const timestamp = { seconds: Math.floor(now / 1000), microseconds: (now % 1000) * 1000 };
    this.#qmp.send({ event, data, timestamp });
  }

  #takeCommand(peer: Peer, line: string): void {
    const request = JSON.parse(line) as Request;
    const oob = request['exec-oob'];
    if (oob === undefined) {
      this.#enqueue(() => this.#command(peer, request, request.execute ?? ''));
      return;
    }
    const asked = this.#count('qmp', oob, line);
    if (this.silent === 'hang') return;
    if (!OUT_OF_BAND.includes(oob)) throw new Error(`${oob} is not to be run out of band`);
    void this.#answer(peer, request, asked, this.fault(asked)).then(() => this.#flush());
    if (oob === 'yank') this.free();
  }

  async #command(peer: Peer, request: Request, name: string): Promise<void> {
    const asked = this.#count('qmp', name, JSON.stringify(request.arguments ?? {}));
    await this.before(asked);
    const fault = this.fault(asked);
    if (fault === 'stuck' || fault === 'hang') {
      // It does, and answers, what it was at when it is free again.
      this.#queue.unshift(() => this.#answer(peer, request, asked, undefined));
      this.#fallSilent(fault);
    } else await this.#answer(peer, request, asked, fault);
  }

  async #answer(peer: Peer, request: Request, asked: Asked, fault: FaultKind | undefined): Promise<void> {
    const { id } = request;
    const refuse = (errorClass: string, desc: string) =>
      send(peer, { error: { class: errorClass, desc }, id });
    if (this.model.ended) return;
    if (fault === 'refuse') return refuse('GenericError', 'it was to be refused');
    if (fault === 'close') return peer.close();
    if (fault === 'exit') return this.exit();
    try {
      const value = await this.#carryOut(peer, asked.name, request.arguments ?? {});
      this.after(asked);
      if (fault === 'lose') peer.close();
      else send(peer, { return: value, id });
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      refuse(error.errorClass, error.message);
    }
    this.onActivity();
  }

  #carryOut(peer: Peer, name: string, args: Readonly<Record<string, unknown>>): unknown {
    const fdname = String(args.fdname);
    if (name === 'qmp_capabilities') return {};
    if (name === 'getfd') {
      const fd = peer.fds.shift();
      if (fd === undefined) throw new Refusal('No file descriptor supplied via SCM_RIGHTS');
      this.#given.get(fdname)?.close();
      this.#given.set(fdname, fd);
      return {};
    }
    if (name === 'closefd') {
      const fd = this.#given.get(fdname);
      if (fd === undefined) throw new Refusal(`File descriptor named '${fdname}' not found`);
      this.#given.delete(fdname);
      fd.close();
      return {};
    }
    return this.#ofSets(peer, name, args) ?? this.model.execute(name, args);
  }

  /** What is asked of sets of descriptors. */
  #ofSets(peer: Peer, name: string, args: Readonly<Record<string, unknown>>): unknown {
    const set = Number(args['fdset-id'] ?? 0);
    if (name === 'add-fd') {
      const fd = peer.fds.shift();
      if (fd === undefined) throw new Refusal('No file descriptor supplied via SCM_RIGHTS');
      const fds = this.#sets.get(set) ?? [];
      this.#sets.set(set, [...fds, { fd, opaque: args.opaque }]);
      return { 'fdset-id': set, fd: fd.number };
    }
    if (name === 'remove-fd') {
      const fds = this.#sets.get(set);
      if (fds === undefined) throw new Refusal(`File descriptor named 'fdset-id:${set}' not found`);
      this.#sets.delete(set);
      for (const { fd } of fds) fd.close();
      return {};
    }
    if (name !== 'query-fdsets') return undefined;
    return [...this.#sets].map(([id, fds]) => ({
      'fdset-id': id,
      fds: fds.map(({ fd, opaque }) => ({ fd: fd.number, ...(opaque === undefined ? {} : { opaque }) })),
    }));
  }

  // qtest

  #listenQtest(name: string): void {
    const fd = this.#given.get(name);
    if (fd === undefined) throw new Refusal(`File descriptor named '${name}' has not been found`);
    this.#given.delete(name);
    this.#qtest = ChardevServer.adopt(fd, {
      connected: () => {},
      line: (peer, line) => this.#enqueue(() => this.#qtestLine(peer, line)),
    });
  }

  async #qtestLine(peer: Peer, line: string): Promise<void> {
    const asked = this.#count('qtest', line.split(' ')[0] ?? '', line);
    await this.before(asked);
    const fault = this.fault(asked);
    if (fault === 'stuck' || fault === 'hang') {
      this.#queue.unshift(() => this.#answerLine(peer, line, undefined));
      this.#fallSilent(fault);
    } else await this.#answerLine(peer, line, fault);
  }

  async #answerLine(peer: Peer, line: string, fault: FaultKind | undefined): Promise<void> {
    if (this.model.ended) return;
    if (fault === 'close') return peer.close();
    if (fault === 'exit') return this.exit();
    const answer = fault === 'refuse' ? 'FAIL it was to be refused' : await this.model.qtest(line);
    if (fault === 'lose') peer.close();
    else peer.say(answer);
    this.onActivity();
  }
}

function send(peer: Peer, message: object): void {
  peer.say(JSON.stringify(message));
}

interface ChardevHandler {
  connected(peer: Peer): void;
  line(peer: Peer, line: string): void;
}

/** A socket that serves one client at a time, as those of QEMU's chardevs do; the next waits. */
class ChardevServer {
  readonly #handler: ChardevHandler;
  readonly #waiting: Fd[] = [];
  #listener: Listener | undefined;
  #peer: Peer | undefined;
  #isDeaf = false;

  private constructor(handler: ChardevHandler) {
    this.#handler = handler;
  }

  static listen(path: string, handler: ChardevHandler): ChardevServer {
    const server = new ChardevServer(handler);
    server.#listener = Listener.listen(path, (fd) => server.#take(fd));
    return server;
  }

  static adopt(fd: Fd, handler: ChardevHandler): ChardevServer {
    const server = new ChardevServer(handler);
    server.#listener = Listener.adopt(fd, (connected) => server.#take(connected));
    return server;
  }

  /** Those that are there leave, and others are sent away. */
  set isDeaf(isDeaf: boolean) {
    this.#isDeaf = isDeaf;
    if (!isDeaf) return;
    for (const fd of this.#waiting.splice(0)) fd.close();
    this.#peer?.close();
  }

  get clients(): number {
    return this.#waiting.length + (this.#peer === undefined ? 0 : 1);
  }

  #take(fd: Fd): void {
    if (this.#isDeaf) {
      fd.close();
      return;
    }
    this.#waiting.push(fd);
    this.#serveNext();
  }

  #serveNext(): void {
    const fd = this.#peer === undefined ? this.#waiting.shift() : undefined;
    if (fd === undefined) return;
    const peer = new ChardevPeer(
      fd,
      (line) => this.#handler.line(peer, line),
      () => {
        if (this.#peer !== peer) return;
        this.#peer = undefined;
        this.#serveNext();
      },
    );
    this.#peer = peer;
    this.#handler.connected(peer);
    peer.flush();
  }

  send(message: object): void {
    if (this.#peer !== undefined) send(this.#peer, message);
  }

  flush(): void {
    this.#peer?.flush();
  }

  /** The path stays, as of a process that was killed. */
  close(): void {
    this.#listener?.close({ keepPath: true });
    this.#listener = undefined;
    for (const fd of this.#waiting.splice(0)) fd.close();
    this.#peer?.close();
  }
}

class ChardevPeer implements Peer {
  readonly fds: Fd[] = [];
  readonly #socket: StreamSocket;
  readonly #left: () => void;
  #unsaid = '';

  constructor(fd: Fd, onLine: (line: string) => void, left: () => void) {
    this.#left = left;
    const lines = new LineSplitter(LONGEST_LINE);
    lines.onLine = onLine;
    const handler = {
      data: (bytes: Uint8Array, passed: readonly Fd[]) => {
        // It has only those that came last.
        if (passed.length > 0) for (const one of this.fds.splice(0)) one.close();
        for (const one of passed) this.fds.push(one.take());
        lines.push(Buffer.from(bytes));
      },
      ended: () => this.close(),
      lost: () => this.#end(),
    };
    this.#socket = new StreamSocket(fd, handler, QUEUE);
  }

  say(line: string): void {
    this.#unsaid += `${line}\n`;
  }

  flush(): void {
    if (this.#unsaid === '') return;
    this.#socket.send(Buffer.from(this.#unsaid));
    this.#unsaid = '';
  }

  close(): void {
    this.flush();
    this.#socket.close();
    this.#end();
  }

  #end(): void {
    for (const one of this.fds.splice(0)) one.close();
    this.#left();
  }
}
