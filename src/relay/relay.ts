// SPDX-License-Identifier: Apache-2.0
/**
 * The relay: takes a VMM's place at a device server, and a device server's place at the VMM. A relay may begin as the
 * successor of another one, and end by handing over to a successor of its own.
 */

import { resolve as absolutePath } from 'node:path';
import { DevstateError } from '../errors.js';
import { type HandoffReport, type HandoffStatus, Takeover } from '../handoff/index.js';
import { type Log, limitRepeats } from '../logging/index.js';
import { closeAll, type Fd, Listener } from '../transport/index.js';
import { ControlServer } from './control.js';
import { giveRelay, type HandedOver, type RelayListeners } from './giver.js';
import type { HandOverRequest, RelayOffer } from './handoff-document.js';
import { currentServer, managedBy } from './managed.js';
import { ManagerConnection } from './manager-connection.js';
import { type AdoptedParts, RelayReceiver, type SuccessorHost } from './receiver.js';
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
/** Clients that may wait while the VMM's place is taken. */
const MAX_WAITING = 16;
const MAX_MANAGERS = 16;

export class Relay {
  readonly #options: RelayOptions;
  readonly #log: Log;
  /** Connections so far: tells the lines of one peer from another's. */
  #connections = 0;
  readonly #managers = new Set<ManagerConnection>();
  readonly #control: ControlServer;
  readonly #takeover: Takeover | undefined;
  readonly #idleWaiters: (() => void)[] = [];
  #listeners: RelayListeners | undefined;
  #waiting: Fd[] = [];
  #serverPath: string;
  #session: Session | undefined;
  #switching = false;
  #closing = false;
  #handing: Promise<unknown> | undefined;
  /** How often the relay has been handed over. */
  #generation = 0;
  /** How long the takeover took, as the VMM could notice it, and when it was over. */
  #pause: { pauseMs: number; startedAtMs: number } | undefined;
  #handedOver = (): void => {};
  /** Settles when the relay is no more because its successor is; rejects when it should have been one, and is not. */
  readonly ended: Promise<void>;

  /** Listens at once. @throws DEVSTATE_E_ADDRESS_IN_USE, DEVSTATE_E_SYSTEM */
  constructor(options: RelayOptions) {
    this.#options = options;
    this.#log = limitRepeats(options.log);
    this.#serverPath = options.serverPath;
    const status = (): HandoffStatus => this.#status;
    this.#control = new ControlServer({
      switchTo: ({ server, state, ...more }) => this.switchTo(server, state === 'with', more),
      handOver: (request) => this.#handOver(request),
      get status() {
        return status();
      },
      configReads: ({ since, vmm }) => this.#session?.configReadsOf(vmm)?.report(since),
      deserted: () => this.#takeover?.giveUp('the manager has left'),
    });
    const handedOver = new Promise<void>((resolve) => {
      this.#handedOver = resolve;
    });
    if (options.takeover === undefined) {
      this.ended = handedOver;
      this.#listeners = this.#listen();
      return;
    }
    this.#takeover = this.#beSuccessor(options.takeover);
    this.ended = this.#takeover.done.then(() => handedOver);
    this.ended.catch(() => {});
  }

  #listen(): RelayListeners {
    const listening: Listener[] = [];
    const listen = (path: string, onConnection: (fd: Fd) => void): Listener => {
      const listener = Listener.listen(path, onConnection);
      listening.push(listener);
      return listener;
    };
    const { listenPath, migrationSocketPath, controlPath } = this.#options;
    try {
      return {
        vmm: listen(listenPath, this.#acceptVmm),
        manager:
          migrationSocketPath === undefined ? undefined : listen(migrationSocketPath, this.#acceptManager),
        control: controlPath === undefined ? undefined : listen(controlPath, this.#acceptControl),
      };
    } catch (error) {
      for (const listener of listening) listener.close();
      throw error;
    }
  }

  #beSuccessor(directory: string): Takeover {
    const host: SuccessorHost = {
      paths: this.#paths,
      acceptVmm: this.#acceptVmm,
      acceptManager: this.#acceptManager,
      acceptControl: this.#acceptControl,
      newSession: (fd, from) => this.#newSession(fd, from),
      installed: (parts) => this.#install(parts),
    };
    const receiver = (): RelayReceiver => new RelayReceiver(host);
    return new Takeover(directory, { acceptManager: this.#acceptControl, receiver }, this.#log);
  }

  #install(parts: AdoptedParts): void {
    this.#listeners = parts.listeners;
    this.#session = parts.session;
    this.#waiting = parts.waiting;
    this.#generation = parts.generation;
    this.#pause = { pauseMs: parts.pauseMs, startedAtMs: parts.startedAtMs };
    if (this.#session === undefined) this.#serveNext();
  }

  /** As clients of the relay, and its successor, know it. */
  get #paths(): Omit<RelayOffer, 'what' | 'generation'> {
    const { listenPath, migrationSocketPath, controlPath } = this.#options;
    return {
      listenPath: absolutePath(listenPath),
      serverPath: absolutePath(this.#serverPath),
      migrationSocketPath: migrationSocketPath === undefined ? null : absolutePath(migrationSocketPath),
      controlPath: controlPath === undefined ? null : absolutePath(controlPath),
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

  get #status(): HandoffStatus {
    return { generation: this.#generation, serving: this.#listeners !== undefined, ...this.#pause };
  }

  readonly #acceptVmm = (fd: Fd): void => {
    if (this.#session === undefined) this.#serveVmm(fd);
    else if (this.#session.next.accept(fd)) return;
    else if (this.#waiting.length < MAX_WAITING) this.#waiting.push(fd);
    else fd.close();
  };

  #serveVmm(fd: Fd): void {
    this.#log('info', 'a VMM has connected');
    this.#session = this.#newSession(fd);
  }

  #serveNext(): void {
    const next = this.#waiting.shift();
    if (next !== undefined) this.#serveVmm(next);
  }

  #newSession(fd: Fd, from?: ConstructorParameters<typeof Session>[2]): Session {
    const options = {
      serverPath: () => this.#serverPath,
      holdMs: this.#options.holdMs ?? DEFAULT_HOLD_MS,
      mapping: this.#options.mapping ?? false,
      log: this.#logOf('VMM'),
      lost: () => this.#sendManagersAway(),
      closed: () => {
        this.#log('info', 'the VMM has left');
        this.#session = undefined;
        this.#sendManagersAway();
        this.#serveNext();
        this.#settleIdle();
      },
    };
    return new Session(fd, options, from);
  }

  #logOf(role: string): Log {
    const peer = `${role} ${++this.#connections}`;
    return (level, message) => this.#log(level, message, peer);
  }

  /** What they were doing has come to nothing, and that is how they notice. */
  #sendManagersAway(): void {
    for (const manager of this.#managers) manager.close();
  }

  readonly #acceptManager = (fd: Fd): void => {
    const session = this.#session;
    if (this.#managers.size >= MAX_MANAGERS || session === undefined) {
      if (session === undefined) this.#log('warn', 'a manager was sent away: no VMM is connected');
      fd.close();
      return;
    }
    const manager = new ManagerConnection(fd, {
      managed: managedBy(session, () => currentServer(session)),
      trap: this.#options.trap ?? false,
      noPreCopy: this.#options.noPreCopy ?? false,
      log: this.#logOf('manager'),
      closed: () => {
        this.#managers.delete(manager);
        this.#settleIdle();
      },
    });
    this.#managers.add(manager);
  };

  readonly #acceptControl = (fd: Fd): void => {
    this.#control.accept(fd);
  };

  /**
   * Replaces the device server by the one at `path`, for the VMM that is connected and those that come.
   * @throws DEVSTATE_E_RELAY when it cannot be done now; when it fails, the old one goes on
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
      const options = { path, withState, holdMs, trap, imageUnchecked, log: this.#log };
      const report = await switchBackEnd(session, options);
      this.#serverPath = path;
      // What they know of the device is of the old server.
      this.#sendManagersAway();
      this.#log('info', `the device server is ${path} now; the VMM waited ${report.heldMs.toFixed(1)} ms`);
      return report;
    } finally {
      this.#switching = false;
    }
  }

  /** @throws DEVSTATE_E_RELAY when something is being replaced already */
  #requireQuiet(): void {
    if (!this.#switching && this.#handing === undefined) return;
    const what = this.#switching ? 'the device server' : 'the relay itself';
    throw new DevstateError('DEVSTATE_E_RELAY', `${what} is being replaced already; wait for that`);
  }

  /** Hands over to the relay that waits at `request.socket`. @throws HandoffError when this one goes on */
  async #handOver(request: HandOverRequest): Promise<HandoffReport> {
    this.#requireQuiet();
    if (this.#closing || this.#listeners === undefined)
      throw new DevstateError('DEVSTATE_E_HANDOFF', 'the relay ends, or has not taken over yet');
    this.#session?.requireSteady();
    const handing = giveRelay(this.#parts(this.#listeners), request);
    this.#handing = handing.catch(() => {});
    try {
      const report = await handing;
      this.#letGo();
      this.#log('info', `handed over to process ${report.pid}`);
      return report;
    } finally {
      this.#handing = undefined;
    }
  }

  #parts(listeners: RelayListeners): HandedOver {
    const session = (): Session | undefined => this.#session;
    return {
      offer: { what: 'relay', generation: this.#generation + 1, ...this.#paths },
      listeners,
      get session() {
        return session();
      },
      managers: this.#managers,
      waiting: this.#waiting,
    };
  }

  /** Everything is the successor's now. */
  #letGo(): void {
    this.#closing = true;
    for (const listener of this.#open) listener.close({ keepPath: true });
    this.#session?.letGo();
    this.#session = undefined;
    closeAll(this.#waiting.splice(0));
    this.#sendManagersAway();
    // The manager that asked for it is told first.
    void this.#control.idle().then(this.#handedOver);
  }

  get #open(): Listener[] {
    return Object.values(this.#listeners ?? {}).filter((listener) => listener !== undefined);
  }

  #settleIdle(): void {
    if (!this.#closing || this.#session !== undefined || this.#managers.size > 0) return;
    for (const resolve of this.#idleWaiters.splice(0)) resolve();
  }

  /** Stops listening, ends every connection, and settles when nothing is left. A handoff under way ends first. */
  async close(): Promise<void> {
    await this.#handing;
    await this.#takeover?.stop();
    this.#closing = true;
    for (const listener of this.#open) listener.close();
    closeAll(this.#waiting.splice(0));
    this.#control.close();
    this.#sendManagersAway();
    this.#session?.close();
    await new Promise<void>((resolve) => {
      this.#idleWaiters.push(resolve);
      this.#settleIdle();
    });
  }
}
