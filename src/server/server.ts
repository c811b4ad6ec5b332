// SPDX-License-Identifier: Apache-2.0
/**
 * Serves one device on its sockets: the VMM's, and beside it the migration socket for managers. A server may begin as
 * the successor of another one, and end by handing over to a successor of its own.
 */

import { resolve as absolutePath } from 'node:path';
import { DevstateError } from '../errors.js';
import { type HandoffReport, parseHandoffJson, Takeover } from '../handoff/index.js';
import { type Log, limitRepeats } from '../logging/index.js';
import { closeAll, type Fd, Listener } from '../transport/index.js';
import { Errno, RequestError, WitnessedVmm } from '../wire/index.js';
import type { ConfigReadsOf, HandOver, NextVmmPort } from './command.js';
import {
  Connection,
  type ConnectionOptions,
  type FrozenConnection,
  VERSION_TIMEOUT_MS,
} from './connection.js';
import type { CrashJournal } from './crash-journal.js';
import { giveServer, type HandedOver } from './giver.js';
import { handoffRequest } from './handoff-messages.js';
import type { HandoffPort } from './handoff-port.js';
import { NextVmm } from './next-vmm.js';
import { type AdoptedParts, ServerReceiver, type SuccessorHost } from './receiver.js';
import type { ServedDevice } from './served-device.js';
import { SocketRecords } from './socket-records.js';

/** Managers that may look at once. One of them drives a migration; the others are answered too. */
const MAX_MANAGERS = 16;
/** Clients that may wait while the VMM's place is taken. */
const MAX_WAITING = 16;
/** How long managers may take to leave a server that has been handed over. */
const LEAVE_MS = 1000;
const BUSY = 'the server is being handed over, or ends: try again when that is over, if it has to be';

export interface ServerOptions {
  readonly device: ServedDevice;
  /** Where the VMM connects. One at a time; the next is served when it has left. */
  readonly socketPath: string;
  /** Where managers connect. Without it, the device can be migrated only by its VMM. */
  readonly migrationSocketPath?: string;
  /** Offer VMMs a second socket for the server's own commands. Default true; used only if the VMM asks for it. */
  readonly twinSocket?: boolean;
  /** How long a client may take to agree on a version before it is sent away. Milliseconds, default 5000. */
  readonly versionTimeoutMs?: number;
  readonly log?: Log;
  /** A VMM has left, and the device has been told. */
  readonly vmmLeft?: () => void;
  /**
   * Takes over from the server that listens at these paths, instead of listening: the directory that a manager named
   * (`TAKEOVER_VARIABLE`).
   */
  readonly takeover?: string;
  /** Keeps the VMM's connection and the sockets for a successor after a crash, and goes on with a predecessor's. */
  readonly crash?: CrashJournal | undefined;
}

type Role = Connection['role'];

export class Server {
  readonly #options: ServerOptions;
  readonly #log: Log;
  /** Connections so far: tells the lines of one peer from another's. */
  #connections = 0;
  readonly #managers = new Set<Connection>();
  readonly #takeover: Takeover | undefined;
  readonly #records: SocketRecords | undefined;
  #listener: Listener | undefined;
  #migrationListener: Listener | undefined;
  #waiting: Fd[] = [];
  /** The connection that has the device. */
  #vmm: Connection | undefined;
  /** All of the VMMs': beside that one an understudy's, or one that is just ending. */
  readonly #vmms = new Set<Connection>();
  readonly #nextVmm: NextVmm;
  #closing = false;
  #handing: Promise<unknown> | undefined;
  /** How often the device has been handed over. */
  #generation = 0;
  /** How long the takeover took, as the VMM could notice it, and when it was over. */
  #pause: { pauseMs: number; startedAtMs: number } | undefined;
  #handedOver = (): void => {};
  readonly #idleWaiters: (() => void)[] = [];
  /** Settles when the server is no more because its successor is; rejects when it should have been one, and is not. */
  readonly ended: Promise<void>;

  /** Listens at once. @throws DEVSTATE_E_ADDRESS_IN_USE, DEVSTATE_E_SYSTEM */
  constructor(options: ServerOptions) {
    this.#options = options;
    this.#log = limitRepeats(options.log);
    this.#nextVmm = this.#createNextVmm();
    const handedOver = new Promise<void>((resolve) => {
      this.#handedOver = resolve;
    });
    const { socketPath, migrationSocketPath, takeover, crash } = options;
    if (crash !== undefined) {
      if (takeover !== undefined)
        throw new DevstateError('DEVSTATE_E_USAGE', 'a server with a crash journal takes over from nobody');
      this.#records = new SocketRecords(crash);
      if (crash.recovered) {
        this.ended = this.#recover(crash, this.#records).then(() => handedOver);
        this.ended.catch(() => {});
        return;
      }
    }
    if (takeover === undefined) {
      this.ended = handedOver;
      this.#listen(socketPath, migrationSocketPath);
      crash?.ready();
      return;
    }
    this.#takeover = this.#beSuccessor(takeover);
    this.ended = this.#takeover.done.then(() => handedOver);
    this.ended.catch(() => {});
  }

  #listen(socketPath: string, migrationSocketPath: string | undefined): void {
    try {
      this.#listener = Listener.listen(socketPath, (fd) => this.#acceptVmm(fd));
      if (migrationSocketPath !== undefined)
        this.#migrationListener = Listener.listen(migrationSocketPath, (fd) => this.#acceptManager(fd));
      this.#records?.listening(this.#listener, this.#migrationListener);
    } catch (error) {
      this.#listener?.close();
      this.#migrationListener?.close();
      // Nobody asked by a message: it is the command line that is told.
      if (!(error instanceof RequestError)) throw error;
      const message = `the sockets cannot be kept for a crash: ${error.message}; let the supervisor keep more (devstate run --max-fds, FileDescriptorStoreMax=)`;
      throw new DevstateError('DEVSTATE_E_USAGE', message, { cause: error });
    }
  }

  /** Goes on where a server stood that was killed. */
  async #recover(crash: CrashJournal, records: SocketRecords): Promise<void> {
    const { device, socketPath, migrationSocketPath } = this.#options;
    const { listener, migrationListener, vmm } = records.recover();
    this.#listener = this.#adopt(listener, (fd) => this.#acceptVmm(fd), socketPath);
    if (migrationListener !== undefined)
      this.#migrationListener = this.#adopt(
        migrationListener,
        (fd) => this.#acceptManager(fd),
        migrationSocketPath,
      );
    if (vmm !== undefined) {
      this.#vmm = this.#connect('vmm', vmm.fd, device, vmm.frozen);
      this.#vmms.add(this.#vmm);
    }
    // The device first: then it is there when the next message is answered.
    await device.recovery?.recover();
    crash.transactions.redo();
    await device.recovery?.start();
    crash.store.flush();
    this.#vmm?.thaw();
    for (const accepting of [this.#listener, this.#migrationListener]) accepting?.resume();
    this.#log('info', `went on after a crash, at transaction ${crash.journal.committed}`);
    crash.ready();
  }

  #adopt(fd: Fd, onConnection: (fd: Fd) => void, path: string | undefined): Listener {
    const listener = Listener.adopt(fd, onConnection, path);
    listener.pause();
    return listener;
  }

  #beSuccessor(directory: string): Takeover {
    const { device, socketPath, migrationSocketPath } = this.#options;
    if (device.handoff === undefined)
      throw new DevstateError('DEVSTATE_E_USAGE', 'this device cannot be handed over');
    const acceptManager = (fd: Fd): void => this.#acceptManager(fd);
    const host: SuccessorHost = {
      device: device.handoff,
      socketPath: absolutePath(socketPath),
      migrationSocketPath: migrationSocketPath === undefined ? undefined : absolutePath(migrationSocketPath),
      acceptVmm: (fd) => this.#acceptVmm(fd),
      acceptManager,
      adoptVmm: (fd, frozen) => this.#connect('vmm', fd, undefined, frozen),
      installed: (parts) => this.#install(parts),
    };
    const receiver = (): ServerReceiver => new ServerReceiver(host);
    return new Takeover(directory, { acceptManager, receiver }, (level, message) =>
      this.#log(level, message),
    );
  }

  #install(parts: AdoptedParts): void {
    this.#listener = parts.listener;
    this.#migrationListener = parts.migrationListener;
    this.#vmm = parts.vmm;
    if (parts.vmm !== undefined) this.#vmms.add(parts.vmm);
    this.#waiting = parts.waiting;
    this.#options.device.management.note = parts.note;
    this.#generation = parts.generation;
    this.#pause = { pauseMs: parts.pauseMs, startedAtMs: parts.startedAtMs };
    if (this.#vmm === undefined) this.#serveNext();
  }

  #createNextVmm(): NextVmm {
    const server = this;
    return new NextVmm({
      device: this.#options.device,
      get vmm() {
        return server.#vmm;
      },
      set vmm(vmm) {
        server.#vmm = vmm;
      },
      serve: (fd, device) => this.#connectVmm(fd, device),
      settled: () => this.#vmmSettled(),
      log: (message) => this.#log('info', message),
    });
  }

  #acceptVmm(fd: Fd): void {
    if (this.#nextVmm.accept(fd)) return;
    if (this.#vmm === undefined && !this.#nextVmm.underWay) this.#serveVmm(fd);
    else if (this.#waiting.length < MAX_WAITING) this.#waiting.push(fd);
    else fd.close();
  }

  #serveVmm(fd: Fd): void {
    this.#log('info', 'a VMM has connected');
    try {
      this.#records?.vmmConnected(fd);
    } catch (error) {
      fd.close();
      this.#log(
        'error',
        `the VMM's connection cannot be kept: ${error instanceof Error ? error.message : error}`,
      );
      return;
    }
    this.#vmm = this.#connectVmm(fd);
  }

  #serveNext(): void {
    const next = this.#waiting.shift();
    if (next !== undefined) this.#serveVmm(next);
  }

  #connectVmm(fd: Fd, device?: ServedDevice): Connection {
    const connection = this.#connect('vmm', fd, device);
    this.#vmms.add(connection);
    return connection;
  }

  #connect(role: Role, fd: Fd, device = this.#options.device, frozen?: FrozenConnection): Connection {
    const isManager = role === 'manager';
    const peer = `${isManager ? 'manager' : 'VMM'} ${++this.#connections}`;
    const connection: Connection = new Connection(
      fd,
      {
        role,
        device,
        twinSocket: !isManager && (this.#options.twinSocket ?? true),
        versionTimeoutMs: this.#options.versionTimeoutMs ?? VERSION_TIMEOUT_MS,
        log: (level, message) => this.#log(level, message, peer),
        crash: isManager ? undefined : this.#options.crash,
        ...(isManager ? this.#managerOptions : { keeps: (of) => this.#nextVmm.keeps(of) }),
        closed: () => (isManager ? this.#managerLeft(connection) : this.#vmmLeft(connection)),
      },
      frozen,
    );
    return connection;
  }

  /** What only managers may ask for, and only of a device that can. */
  get #managerOptions(): Partial<ConnectionOptions> {
    const { device } = this.#options;
    const handOver: HandOver = (request) => this.#handOver(request);
    const nextVmm: NextVmmPort = {
      status: () => this.#nextVmm.status(),
      request: (text) => this.#requestNextVmm(text),
    };
    // What a journal keeps is one VMM's and one server's: a successor comes after a crash, not beside it.
    const configReadsOf: ConfigReadsOf = (vmm) =>
      (vmm === WitnessedVmm.PRESENT ? this.#vmm : this.#nextVmm.other)?.configReads;
    if (this.#options.crash !== undefined) return { configReadsOf };
    return {
      configReadsOf,
      ...(device.handoff === undefined ? {} : { handOver }),
      ...(device.openUnderstudy === undefined ? {} : { nextVmm }),
    };
  }

  async #requestNextVmm(text: string): Promise<void> {
    if (this.#handing !== undefined || this.#closing) throw new RequestError(Errno.EBUSY, BUSY);
    await this.#nextVmm.request(text);
  }

  #vmmLeft(connection: Connection): void {
    const had = connection === this.#vmm;
    this.#log('info', had ? 'the VMM has left' : 'a VMM that does not have the device has left');
    this.#vmms.delete(connection);
    if (had) this.#vmm = undefined;
    this.#nextVmm.left(connection);
    if (had && !this.#nextVmm.underWay) this.#vmmSettled();
    this.#settleIdle();
  }

  /** Who has the device is settled: a VMM or, if there is none, the next that comes. */
  #vmmSettled(): void {
    if (this.#vmm === undefined) {
      if (!this.#closing) this.#records?.vmmLeft();
      this.#options.vmmLeft?.();
      this.#serveNext();
    }
    this.#settleIdle();
  }

  #acceptManager(fd: Fd): void {
    if (this.#managers.size >= MAX_MANAGERS) fd.close();
    else this.#managers.add(this.#connect('manager', fd));
  }

  #managerLeft(connection: Connection): void {
    this.#managers.delete(connection);
    if (this.#managers.size === 0) this.#takeover?.giveUp('the manager has left');
    this.#settleIdle();
  }

  /** DEVSTATE_HANDOFF; see `HandOver`. */
  async #handOver(text: string): Promise<string> {
    if (text === '') return JSON.stringify(this.#status);
    const request = parseHandoffJson(handoffRequest, text, 'the request');
    if (this.#nextVmm.underWay)
      throw new DevstateError('DEVSTATE_E_HANDOFF', 'another VMM is about to have the device');
    if (this.#handing !== undefined || this.#closing || this.#listener === undefined)
      throw new DevstateError('DEVSTATE_E_HANDOFF', BUSY);
    const { handoff } = this.#options.device;
    if (handoff === undefined)
      throw new DevstateError('DEVSTATE_E_HANDOFF', 'the device cannot be handed over');
    const parts = this.#parts(this.#listener, this.#migrationListener, handoff);
    const handing = giveServer(parts, request);
    this.#handing = handing.catch(() => {});
    try {
      const report: HandoffReport = await handing;
      await this.#letGo();
      this.#log('info', `handed over to process ${report.pid}`);
      return JSON.stringify(report);
    } finally {
      this.#handing = undefined;
    }
  }

  /** What a manager is told that asks for nothing. */
  get #status(): unknown {
    return {
      generation: this.#generation,
      serving: this.#listener !== undefined,
      ...this.#pause,
    };
  }

  /** Seen as it is at each moment: a VMM may come or go until the freeze. */
  #parts(listener: Listener, migrationListener: Listener | undefined, device: HandoffPort): HandedOver {
    const { socketPath, migrationSocketPath } = this.#options;
    const vmm = (): Connection | undefined => this.#vmm;
    const management = this.#options.device.management;
    return {
      device,
      get vmm() {
        return vmm();
      },
      get note() {
        return management.note;
      },
      listener,
      migrationListener,
      socketPath: absolutePath(socketPath),
      migrationSocketPath: migrationSocketPath === undefined ? undefined : absolutePath(migrationSocketPath),
      waiting: this.#waiting,
      generation: this.#generation + 1,
    };
  }

  /** Everything is the successor's now. */
  async #letGo(): Promise<void> {
    this.#closing = true;
    for (const listener of [this.#listener, this.#migrationListener]) listener?.close({ keepPath: true });
    closeAll(this.#waiting.splice(0));
    this.#vmm?.letGo();
    this.#vmms.clear();
    this.#vmm = undefined;
    await this.#options.device.handoff?.letGo();
    // The manager that asked for it reads the report and leaves.
    const late = setTimeout(() => this.#closeManagers(), LEAVE_MS);
    void this.#untilIdle().then(() => {
      clearTimeout(late);
      this.#handedOver();
    });
  }

  #closeManagers(): void {
    for (const manager of this.#managers) manager.close();
  }

  #untilIdle(): Promise<void> {
    return new Promise((resolve) => {
      this.#idleWaiters.push(resolve);
      this.#settleIdle();
    });
  }

  #settleIdle(): void {
    if (!this.#closing || this.#vmms.size > 0 || this.#managers.size > 0) return;
    for (const resolve of this.#idleWaiters.splice(0)) resolve();
  }

  /** Stops listening, ends every connection, and settles when the device has been told. A handoff under way ends first. */
  async close(): Promise<void> {
    await this.#handing;
    await this.#takeover?.stop();
    this.#closing = true;
    for (const listener of [this.#listener, this.#migrationListener]) listener?.close();
    closeAll(this.#waiting.splice(0));
    for (const vmm of this.#vmms) vmm.close();
    this.#closeManagers();
    await this.#untilIdle();
  }
}
