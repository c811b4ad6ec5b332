// SPDX-License-Identifier: Apache-2.0
/** The relay: takes a VMM's place at a device server, and a device server's place at the VMM. */

import { DevstateError } from '../errors.js';
import { type Fd, Listener } from '../transport/index.js';
import { type ControlRequest, serveControl } from './control.js';
import { currentServer, managedBy } from './managed.js';
import { ManagerConnection } from './manager-connection.js';
import { Session } from './session.js';
import { type SwitchReport, switchBackEnd } from './switch.js';

export interface RelayOptions {
  /** Where the VMM connects. One at a time; the next is served when it has left. */
  readonly listenPath: string;
  /** Where the device server listens. */
  readonly serverPath: string;
  /** Where managers connect. */
  readonly migrationSocketPath?: string;
  /** Where `devstate relay-switch` connects. */
  readonly controlPath?: string;
  /** How long a request of the VMM waits for a server, ms. Default {@link DEFAULT_HOLD_MS}. */
  readonly holdMs?: number;
  /** Do not let managers map the data section of the migration region (v1). */
  readonly trap?: boolean;
  /** Do not tell managers that the device has pre-copy (v2), for one that does not take all that its like sends. */
  readonly noPreCopy?: boolean;
  /** Let the VMM map memory of the server; then no other server can take its place. */
  readonly mapping?: boolean;
  readonly log?: (level: 'info' | 'warn' | 'error', message: string) => void;
}

/** QEMU's time-out for a message is 5 s. */
export const DEFAULT_HOLD_MS = 4000;
/** Clients that may wait while the VMM's place is taken. */
const MAX_WAITING = 16;
const MAX_MANAGERS = 16;

export class Relay {
  readonly #options: RelayOptions;
  readonly #listeners: { close(): void }[] = [];
  readonly #managers = new Set<ManagerConnection>();
  readonly #waiting: Fd[] = [];
  readonly #idleWaiters: (() => void)[] = [];
  #serverPath: string;
  #session: Session | undefined;
  #switching = false;
  #closing = false;

  /** Listens at once. @throws DEVSTATE_E_ADDRESS_IN_USE, DEVSTATE_E_SYSTEM */
  constructor(options: RelayOptions) {
    this.#options = options;
    this.#serverPath = options.serverPath;
    try {
      this.#listeners.push(Listener.listen(options.listenPath, (fd) => this.#acceptVmm(fd)));
      if (options.migrationSocketPath !== undefined)
        this.#listeners.push(Listener.listen(options.migrationSocketPath, (fd) => this.#acceptManager(fd)));
      if (options.controlPath !== undefined) {
        const carryOut = ({ server, state }: ControlRequest) => this.switchTo(server, state === 'with');
        this.#listeners.push(serveControl(options.controlPath, carryOut));
      }
    } catch (error) {
      for (const listener of this.#listeners) listener.close();
      throw error;
    }
  }

  /** Where the device server of the next attachment listens. */
  get serverPath(): string {
    return this.#serverPath;
  }

  /** Whether a server serves the VMM now. */
  get isAttached(): boolean {
    return this.#session?.isOpen === true;
  }

  readonly #log = (level: 'info' | 'warn' | 'error', message: string): void => {
    this.#options.log?.(level, message);
  };

  #acceptVmm(fd: Fd): void {
    if (this.#session === undefined) this.#serveVmm(fd);
    else if (this.#waiting.length < MAX_WAITING) this.#waiting.push(fd);
    else fd.close();
  }

  #serveVmm(fd: Fd): void {
    this.#log('info', 'a VMM has connected');
    this.#session = new Session(fd, {
      serverPath: () => this.#serverPath,
      holdMs: this.#options.holdMs ?? DEFAULT_HOLD_MS,
      mapping: this.#options.mapping ?? false,
      log: this.#log,
      lost: () => this.#sendManagersAway(),
      closed: () => {
        this.#log('info', 'the VMM has left');
        this.#session = undefined;
        this.#sendManagersAway();
        const next = this.#waiting.shift();
        if (next !== undefined) this.#serveVmm(next);
        this.#settleIdle();
      },
    });
  }

  /** What they were doing has come to nothing, and that is how they notice. */
  #sendManagersAway(): void {
    for (const manager of this.#managers) manager.close();
  }

  #acceptManager(fd: Fd): void {
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
      log: this.#log,
      closed: () => {
        this.#managers.delete(manager);
        this.#settleIdle();
      },
    });
    this.#managers.add(manager);
  }

  /**
   * Replaces the device server by the one at `path`, for the VMM that is connected and those that come.
   * @throws DEVSTATE_E_RELAY when it cannot be done now; when it fails, the old one goes on
   */
  async switchTo(path: string, withState: boolean): Promise<SwitchReport> {
    const session = this.#session;
    if (session === undefined)
      throw new DevstateError('DEVSTATE_E_RELAY', 'no VMM is connected to the relay; start it first');
    if (this.#switching)
      throw new DevstateError(
        'DEVSTATE_E_RELAY',
        'the device server is being replaced already; wait for that',
      );
    this.#switching = true;
    const { holdMs = DEFAULT_HOLD_MS, trap = false } = this.#options;
    try {
      const report = await switchBackEnd(session, { path, withState, holdMs, trap, log: this.#log });
      this.#serverPath = path;
      // What they know of the device is of the old server.
      this.#sendManagersAway();
      this.#log('info', `the device server is ${path} now; the VMM waited ${report.heldMs.toFixed(1)} ms`);
      return report;
    } finally {
      this.#switching = false;
    }
  }

  #settleIdle(): void {
    if (!this.#closing || this.#session !== undefined || this.#managers.size > 0) return;
    for (const resolve of this.#idleWaiters.splice(0)) resolve();
  }

  /** Stops listening, ends every connection, and settles when nothing is left. */
  close(): Promise<void> {
    this.#closing = true;
    for (const listener of this.#listeners) listener.close();
    for (const fd of this.#waiting.splice(0)) fd.close();
    this.#sendManagersAway();
    this.#session?.close();
    return new Promise((resolve) => {
      this.#idleWaiters.push(resolve);
      this.#settleIdle();
    });
  }
}
