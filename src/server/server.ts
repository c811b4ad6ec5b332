// SPDX-License-Identifier: Apache-2.0
/**
 * Serves one device on its sockets: the VMM's, and beside it the migration socket for managers. A server may begin as
 * the successor of another one, and end by handing over to a successor of its own.
 */

import { DevstateError } from '../errors.js';
import { parseHandoffJson } from '../handoff/index.js';
import { type Log, limitRepeats } from '../logging/index.js';
import {
  BUSY,
  Desk,
  giveWork,
  makeRoom,
  NextVmm,
  type NextVmmSteps,
  WorkReceiver,
} from '../succession/index.js';
import type { Fd } from '../transport/index.js';
import { Errno, RequestError, WitnessedVmm } from '../wire/index.js';
import type { ConfigReadsOf, HandOver } from './command.js';
import {
  Connection,
  type ConnectionOptions,
  type FrozenConnection,
  VERSION_TIMEOUT_MS,
} from './connection.js';
import type { CrashJournal } from './crash-journal.js';
import { ServerWork } from './giver.js';
import { type HandoffOffer, handoffRequest } from './handoff-messages.js';
import { serverKind } from './receiver.js';
import type { ServedDevice, Understudy } from './served-device.js';
import { SocketRecords } from './socket-records.js';

/** How long managers may take to leave a server that has been handed over. */
const LEAVE_MS = 1000;

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
  /** Keeps the VMM's connection and the sockets for a successor after a crash, and continues with a predecessor's. */
  readonly crash?: CrashJournal | undefined;
}

type Role = Connection['role'];

export class Server {
  readonly #options: ServerOptions;
  readonly #log: Log;
  /** Connections so far: tells the lines of one peer from another's. */
  #connections = 0;
  readonly #managers = new Set<Connection>();
  readonly #desk: Desk;
  readonly #records: SocketRecords | undefined;
  /** The connection that has the device. */
  #vmm: Connection | undefined;
  /** All of the VMMs': beside that one an understudy's, or one that is just ending. */
  readonly #vmms = new Set<Connection>();
  readonly #nextVmm: NextVmm<Connection, Understudy>;
  /** Settles when the server is no more because its successor is; rejects when it should have been one, and is not. */
  readonly ended: Promise<void>;

  /** Listens at once. @throws DEVSTATE_E_ADDRESS_IN_USE, DEVSTATE_E_SYSTEM */
  constructor(options: ServerOptions) {
    this.#options = options;
    this.#log = limitRepeats(options.log);
    this.#nextVmm = this.#createNextVmm();
    const { socketPath, migrationSocketPath, takeover, crash } = options;
    this.#desk = this.#createDesk(socketPath, migrationSocketPath);
    const { handedOver } = this.#desk;
    if (crash !== undefined) {
      if (takeover !== undefined)
        throw new DevstateError(
          'DEVSTATE_E_USAGE',
          'a server with a crash journal cannot take over from another process: give one of the two',
        );
      this.#records = new SocketRecords(crash);
      if (crash.recovered) {
        this.ended = this.#recover(crash, this.#records).then(() => handedOver);
        this.ended.catch(() => {});
        return;
      }
    }
    if (takeover === undefined) {
      this.ended = handedOver;
      this.#listen();
      crash?.ready();
      return;
    }
    this.ended = this.#beSuccessor(takeover).then(() => handedOver);
    this.ended.catch(() => {});
  }

  #createDesk(vmm: string, manager: string | undefined): Desk {
    const isIdle = (): boolean => this.#vmms.size === 0 && this.#managers.size === 0;
    return new Desk(
      { vmm, manager },
      {
        acceptVmm: (fd) => this.#acceptVmm(fd),
        acceptManager: (fd) => this.#acceptManager(fd),
        acceptControl: (fd) => fd.close(),
        get isIdle() {
          return isIdle();
        },
        log: this.#log,
      },
    );
  }

  #listen(): void {
    try {
      this.#desk.listen(({ vmm, manager }) => this.#records?.listening(vmm, manager));
    } catch (error) {
      // No message asked for it: the command line reports it.
      if (!(error instanceof RequestError)) throw error;
      const message = `the sockets cannot be kept for a crash: ${error.message}; let the supervisor keep more (devstate run --max-fds, FileDescriptorStoreMax=)`;
      throw new DevstateError('DEVSTATE_E_USAGE', message, { cause: error });
    }
  }

  /** Continues where a server stood that was killed. */
  async #recover(crash: CrashJournal, records: SocketRecords): Promise<void> {
    const { device } = this.#options;
    const { listener, migrationListener, vmm } = records.recover();
    this.#desk.relisten({ vmm: listener, manager: migrationListener, control: undefined });
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
    this.#desk.resume();
    this.#log('info', `continued after a crash, at transaction ${crash.journal.committed}`);
    crash.ready();
  }

  #beSuccessor(directory: string): Promise<void> {
    const { management, handoff } = this.#options.device;
    if (handoff === undefined)
      throw new DevstateError('DEVSTATE_E_USAGE', 'this device cannot be handed over');
    const kind = serverKind({
      device: handoff,
      paths: this.#paths,
      adoptVmm: (fd, frozen) => this.#connect('vmm', fd, undefined, frozen),
      installed: (vmm, note) => {
        this.#vmm = vmm;
        management.note = note;
        if (vmm === undefined) this.#serveNext();
        else this.#vmms.add(vmm);
      },
    });
    const receiver = () => new WorkReceiver(this.#desk, kind);
    return this.#desk.awaitPredecessor(directory, receiver, (fd) => this.#acceptManager(fd));
  }

  /** As clients of the server, and its successor, know it. */
  get #paths(): Pick<HandoffOffer, 'socketPath' | 'migrationSocketPath'> {
    const { vmm, manager } = this.#desk.paths;
    return { socketPath: vmm, migrationSocketPath: manager ?? null };
  }

  #createNextVmm(): NextVmm<Connection, Understudy> {
    const vmm = (): Connection | undefined => this.#vmm;
    const { device } = this.#options;
    return new NextVmm<Connection, Understudy>({
      get vmm() {
        return vmm();
      },
      get isNegotiated() {
        return vmm()?.isNegotiated === true;
      },
      get usesIntx() {
        return device.management.intxAssigned;
      },
      get resets() {
        return device.management.resets;
      },
      requireMayBeFollowed: () => {},
      openUnderstudy: () => openUnderstudy(device),
      serveUnderstudy: (fd, understudy) => this.#connectVmm(fd, understudy),
      hasAgreed: (second) => second.isNegotiated,
      // The end of its VMM has cleared it.
      vacate: () => {},
      prepareExchange: () => {},
      exchange: (understudy, up, down) => {
        understudy.exchange();
        down?.redirect(understudy);
        up?.redirect(device);
        this.#vmm = up;
      },
      // Its VMM may have left long ago, and then nothing else clears it.
      closeUnderstudy: (understudy) => void understudy.disconnected(),
      release: () => this.#release(),
      settled: () => this.#vmmSettled(),
      log: (level, message) => this.#log(level, message),
    });
  }

  async #release(): Promise<void> {
    try {
      await this.#options.device.disconnected();
    } catch (error) {
      this.#log('info', `after the VMM left: ${error instanceof Error ? error.message : error}`);
    }
  }

  /** @returns false when it has to wait */
  #acceptVmm(fd: Fd): boolean {
    if (this.#nextVmm.accept(fd)) return true;
    if (this.#vmm !== undefined || this.#nextVmm.underWay) return false;
    this.#serveVmm(fd);
    return true;
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
    const next = this.#desk.takeWaiting();
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
        ...(isManager
          ? this.#managerOptions
          : { keeps: (of) => this.#nextVmm.follows && of === this.#options.device }),
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
    const nextVmm: NextVmmSteps = {
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
    if (this.#desk.isHandingOver || this.#desk.isClosing) throw new RequestError(Errno.EBUSY, BUSY);
    await this.#nextVmm.request(text);
  }

  #vmmLeft(connection: Connection): void {
    const had = connection === this.#vmm;
    this.#log('info', had ? 'the VMM has left' : 'a VMM that does not have the device has left');
    this.#vmms.delete(connection);
    if (had) this.#vmm = undefined;
    const isKept = this.#nextVmm.left(connection);
    if (had && !isKept && !this.#nextVmm.underWay) this.#vmmSettled();
    this.#desk.clientLeft();
  }

  /** Who has the device is settled: a VMM or, if there is none, the next that comes. */
  #vmmSettled(): void {
    if (this.#vmm === undefined) {
      if (!this.#desk.isClosing) this.#records?.vmmLeft();
      this.#options.vmmLeft?.();
      this.#serveNext();
    }
    this.#desk.clientLeft();
  }

  #acceptManager(fd: Fd): void {
    if (makeRoom(this.#managers, fd)) this.#managers.add(this.#connect('manager', fd));
  }

  #managerLeft(connection: Connection): void {
    this.#managers.delete(connection);
    if (this.#managers.size === 0) this.#desk.managerLeft();
    this.#desk.clientLeft();
  }

  /** DEVSTATE_HANDOFF; see `HandOver`. */
  async #handOver(text: string): Promise<string> {
    if (text === '') return JSON.stringify(this.#desk.status);
    const request = parseHandoffJson(handoffRequest, text, 'the request');
    if (this.#nextVmm.underWay)
      throw new DevstateError('DEVSTATE_E_HANDOFF', 'another VMM is about to have the device');
    const { handoff: device, management } = this.#options.device;
    if (device === undefined)
      throw new DevstateError('DEVSTATE_E_HANDOFF', 'the device cannot be handed over');
    const vmm = (): Connection | undefined => this.#vmm;
    const given = {
      device,
      get vmm() {
        return vmm();
      },
      get note() {
        return management.note;
      },
    };
    const work = new ServerWork(given, request, this.#paths);
    const report = await this.#desk.handOver(
      () => giveWork(this.#desk, work, request),
      () => this.#relinquish(),
    );
    return JSON.stringify(report);
  }

  /** Everything is the successor's now. */
  async #relinquish(): Promise<{ left: Promise<void> }> {
    this.#vmm?.relinquish();
    this.#vmms.clear();
    this.#vmm = undefined;
    await this.#options.device.handoff?.relinquish();
    // The manager that asked for it reads the report and leaves.
    const late = setTimeout(
      () => this.#closeManagers('another process serves the device now; connect again'),
      LEAVE_MS,
    );
    return { left: this.#desk.untilIdle().then(() => clearTimeout(late)) };
  }

  #closeManagers(why: string): void {
    for (const manager of this.#managers) manager.sendAway(why);
  }

  /** Stops listening, ends every connection, and settles when the device has been told. A handoff under way ends first. */
  async close(): Promise<void> {
    await this.#desk.close();
    const isKept = this.#nextVmm.follows;
    for (const vmm of this.#vmms) vmm.close();
    // No VMM comes any more for what the device has kept for one.
    if (isKept) {
      this.#nextVmm.close();
      await this.#release();
    }
    this.#closeManagers('it was asked to end');
    await this.#desk.untilIdle();
  }
}

/** @throws RequestError ENOTSUP */
function openUnderstudy(device: ServedDevice): Understudy {
  if (device.openUnderstudy === undefined)
    throw new RequestError(Errno.ENOTSUP, 'the VMMs of this device can only come one after the other');
  return device.openUnderstudy();
}
