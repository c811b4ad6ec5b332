// SPDX-License-Identifier: Apache-2.0
/**
 * The relay: takes a VMM's place at a device server, and a device server's place at the VMM. A relay may begin as the
 * successor of another one, and end by handing over to a successor of its own.
 */

import { resolve as absolutePath } from 'node:path';
import { DevstateError } from '../errors.js';
import type { HandoffReport, HandoffStatus } from '../handoff/index.js';
import { type Log, limitRepeats } from '../logging/index.js';
import { Desk, giveWork, makeRoom, refuse, WorkReceiver } from '../succession/index.js';
import type { Fd } from '../transport/index.js';
import { ControlServer } from './control.js';
import { RelayWork } from './giver.js';
import type { HandOverRequest, RelayOffer } from './handoff-document.js';
import { currentServer, managedBy } from './managed.js';
import { ManagerConnection } from './manager-connection.js';
import { relayKind } from './receiver.js';
import { Session } from './session.js';
import { type SwitchReport, switchBackEnd } from './switch.js';

export interface RelayOptions {
  /** Where the VMM connects. One at a time; the next is served when it has left. */
  readonly listenPath: string;
  /** Where the device server listens. */
  readonly serverPath: string;
  /** Where managers connect. */
  readonly migrationSocketPath?: string;
  /** Where `devstate relay-switch` and `devstate upgrade` connect. */
  readonly controlPath?: string;
  /** How long a request of the VMM waits for a server, ms. Default {@link DEFAULT_HOLD_MS}. */
  readonly holdMs?: number;
  /** Do not let managers map the data section of the migration region (v1). */
  readonly trap?: boolean;
  /** Do not tell managers that the device has pre-copy (v2), for one that does not take all that its like sends. */
  readonly noPreCopy?: boolean;
  /** Let the VMM map memory of the server; then no other server can take its place. */
  readonly mapping?: boolean;
  /** Takes over from the relay that listens at these paths, instead of listening: the directory that a manager named. */
  readonly takeover?: string;
  readonly log?: Log;
}

/** QEMU's time-out for a message is 5 s. */
export const DEFAULT_HOLD_MS = 4000;

export class Relay {
  readonly #options: RelayOptions;
  readonly #log: Log;
  /** Connections so far: tells the lines of one peer from another's. */
  #connections = 0;
  readonly #managers = new Set<ManagerConnection>();
  readonly #control: ControlServer;
  readonly #desk: Desk;
  #serverPath: string;
  #session: Session | undefined;
  #switching = false;
  /** Settles when the relay is no more because its successor is; rejects when it should have been one, and is not. */
  readonly ended: Promise<void>;

  /** Listens at once. @throws DEVSTATE_E_ADDRESS_IN_USE, DEVSTATE_E_SYSTEM */
  constructor(options: RelayOptions) {
    this.#options = options;
    this.#log = limitRepeats(options.log);
    this.#serverPath = options.serverPath;
    this.#desk = this.#createDesk();
    const status = (): HandoffStatus => this.#desk.status;
    this.#control = new ControlServer({
      switchTo: ({ server, state, ...more }) => this.switchTo(server, state === 'with', more),
      handOver: (request) => this.#handOver(request),
      get status() {
        return status();
      },
      configReads: ({ since, vmm }) => this.#session?.configReadsOf(vmm)?.report(since),
      deserted: () => this.#desk.managerLeft(),
    });
    const { handedOver } = this.#desk;
    if (options.takeover === undefined) {
      this.ended = handedOver;
      this.#desk.listen();
      return;
    }
    this.ended = this.#beSuccessor(options.takeover).then(() => handedOver);
    this.ended.catch(() => {});
  }

  #createDesk(): Desk {
    const { listenPath, migrationSocketPath, controlPath } = this.#options;
    const isIdle = (): boolean => this.#session === undefined && this.#managers.size === 0;
    return new Desk(
      { vmm: listenPath, manager: migrationSocketPath, control: controlPath },
      {
        acceptVmm: (fd) => this.#acceptVmm(fd),
        acceptManager: (fd) => this.#acceptManager(fd),
        acceptControl: (fd) => this.#control.accept(fd),
        get isIdle() {
          return isIdle();
        },
        log: this.#log,
      },
    );
  }

  #beSuccessor(directory: string): Promise<void> {
    const kind = relayKind({
      paths: this.#paths,
      newSession: (fd, from) => this.#newSession(fd, from),
      installed: (session) => {
        this.#session = session;
        if (session === undefined) this.#serveNext();
      },
    });
    const receiver = () => new WorkReceiver(this.#desk, kind);
    return this.#desk.awaitPredecessor(directory, receiver, (fd) => this.#control.accept(fd));
  }

  /** As clients of the relay, and its successor, know it. */
  get #paths(): Omit<RelayOffer, 'what' | 'generation'> {
    const { vmm, manager, control } = this.#desk.paths;
    return {
      listenPath: vmm,
      serverPath: absolutePath(this.#serverPath),
      migrationSocketPath: manager ?? null,
      controlPath: control ?? null,
    };
  }

  /** Where the device server of the next attachment listens. */
  get serverPath(): string {
    return this.#serverPath;
  }

  /** Whether a server serves the VMM now. */
  get isAttached(): boolean {
    return this.#session?.servers.isOpen === true;
  }

  /** @returns false when it has to wait */
  #acceptVmm(fd: Fd): boolean {
    if (this.#session !== undefined) return this.#session.next.accept(fd);
    this.#serveVmm(fd);
    return true;
  }

  #serveVmm(fd: Fd): void {
    this.#log('info', 'a VMM has connected');
    this.#session = this.#newSession(fd);
  }

  #serveNext(): void {
    const next = this.#desk.takeWaiting();
    if (next !== undefined) this.#serveVmm(next);
  }

  #newSession(fd: Fd, from?: ConstructorParameters<typeof Session>[2]): Session {
    const options = {
      serverPath: () => this.#serverPath,
      holdMs: this.#options.holdMs ?? DEFAULT_HOLD_MS,
      mapping: this.#options.mapping ?? false,
      log: this.#logOf('VMM'),
      lost: (why: string) => this.#sendManagersAway(why),
      closed: () => {
        this.#log('info', 'the VMM has left');
        this.#session = undefined;
        this.#sendManagersAway('the VMM has left the relay');
        this.#serveNext();
        this.#desk.clientLeft();
      },
    };
    return new Session(fd, options, from);
  }

  #logOf(role: string): Log {
    const peer = `${role} ${++this.#connections}`;
    return (level, message) => this.#log(level, message, peer);
  }

  /** What they were doing has come to nothing, and that is how they notice. */
  #sendManagersAway(why: string): void {
    for (const manager of this.#managers) manager.sendAway(why);
  }

  #acceptManager(fd: Fd): void {
    const session = this.#session;
    if (session === undefined) {
      this.#log('warn', 'a manager was sent away: no VMM is connected');
      refuse(fd, 'no VMM is connected to the relay; start it first');
      return;
    }
    if (!makeRoom(this.#managers, fd)) return;
    const manager = new ManagerConnection(fd, {
      managed: managedBy(session, () => currentServer(session)),
      trap: this.#options.trap ?? false,
      noPreCopy: this.#options.noPreCopy ?? false,
      log: this.#logOf('manager'),
      closed: () => {
        this.#managers.delete(manager);
        this.#desk.clientLeft();
      },
    });
    this.#managers.add(manager);
  }

  /**
   * Replaces the device server by the one at `path`, for the VMM that is connected and those that come.
   * @throws DEVSTATE_E_RELAY when it cannot be done now; when it fails, the old one continues
   */
  async switchTo(
    path: string,
    withState: boolean,
    { imageUnchecked = false }: { imageUnchecked?: boolean } = {},
  ): Promise<SwitchReport> {
    const session = this.#session;
    if (session === undefined)
      throw new DevstateError('DEVSTATE_E_RELAY', 'no VMM is connected to the relay; start it first');
    this.#requireQuiet();
    session.requireSteady();
    this.#switching = true;
    const { holdMs = DEFAULT_HOLD_MS, trap = false } = this.#options;
    try {
      const options = { path, withState, holdMs, trap, imageUnchecked };
      const report = await switchBackEnd(session, options);
      this.#serverPath = path;
      // What they know of the device is of the old server.
      this.#sendManagersAway('the relay has another device server now; connect again');
      this.#log('info', `the device server is ${path} now; the VMM waited ${report.heldMs.toFixed(1)} ms`);
      return report;
    } finally {
      this.#switching = false;
    }
  }

  /** @throws DEVSTATE_E_RELAY when something is being replaced already */
  #requireQuiet(): void {
    if (!this.#switching && !this.#desk.isHandingOver) return;
    const what = this.#switching ? 'the device server' : 'the relay itself';
    throw new DevstateError('DEVSTATE_E_RELAY', `${what} is being replaced already; wait for that`);
  }

  /** Hands over to the relay that waits at `request.socket`. @throws HandoffError when this one continues */
  async #handOver(request: HandOverRequest): Promise<HandoffReport> {
    this.#requireQuiet();
    this.#session?.requireSteady();
    const session = (): Session | undefined => this.#session;
    const given = {
      managers: this.#managers,
      get session() {
        return session();
      },
    };
    const work = new RelayWork(given, this.#paths);
    return this.#desk.handOver(
      () => giveWork(this.#desk, work, request),
      () => this.#relinquish(),
    );
  }

  /** Everything is the successor's now. */
  #relinquish(): { left: Promise<void> } {
    this.#session?.relinquish();
    this.#session = undefined;
    this.#sendManagersAway('another relay is in its place now; connect again');
    // The manager that asked for it gets its reply first.
    return { left: this.#control.idle() };
  }

  /** Stops listening, ends every connection, and settles when nothing is left. A handoff under way ends first. */
  async close(): Promise<void> {
    await this.#desk.close();
    this.#control.close();
    this.#sendManagersAway('the relay was asked to end');
    this.#session?.close();
    await this.#desk.untilIdle();
  }
}
