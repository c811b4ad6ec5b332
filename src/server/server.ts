// SPDX-License-Identifier: Apache-2.0
/** Serves one device on its sockets: the VMM's, and beside it the migration socket for managers. */

import { type Fd, Listener } from '../transport/index.js';
import { Connection, VERSION_TIMEOUT_MS } from './connection.js';
import type { ServedDevice } from './served-device.js';

/** Managers that may look at once. One of them drives a migration; the others are answered too. */
const MAX_MANAGERS = 16;
/** Clients that may wait while the VMM's place is taken. */
const MAX_WAITING = 16;

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
  readonly log?: (level: 'info' | 'warn' | 'error', message: string) => void;
  /** A VMM has left, and the device has been told. */
  readonly vmmLeft?: () => void;
}

export class Server {
  readonly #options: ServerOptions;
  readonly #listeners: Listener[] = [];
  readonly #managers = new Set<Connection>();
  readonly #waiting: Fd[] = [];
  #vmm: Connection | undefined;
  #closing = false;
  readonly #idleWaiters: (() => void)[] = [];

  /** Listens at once. @throws DEVSTATE_E_ADDRESS_IN_USE, DEVSTATE_E_SYSTEM */
  constructor(options: ServerOptions) {
    this.#options = options;
    try {
      this.#listeners.push(Listener.listen(options.socketPath, (fd) => this.#acceptVmm(fd)));
      if (options.migrationSocketPath !== undefined) {
        this.#listeners.push(Listener.listen(options.migrationSocketPath, (fd) => this.#acceptManager(fd)));
      }
    } catch (error) {
      for (const listener of this.#listeners) listener.close();
      throw error;
    }
  }

  #log(level: 'info' | 'warn' | 'error', message: string): void {
    this.#options.log?.(level, message);
  }

  #acceptVmm(fd: Fd): void {
    if (this.#vmm === undefined) this.#serveVmm(fd);
    else if (this.#waiting.length < MAX_WAITING) this.#waiting.push(fd);
    else fd.close();
  }

  #serveVmm(fd: Fd): void {
    this.#log('info', 'a VMM has connected');
    this.#vmm = new Connection(fd, {
      role: 'vmm',
      device: this.#options.device,
      twinSocket: this.#options.twinSocket ?? true,
      versionTimeoutMs: this.#options.versionTimeoutMs ?? VERSION_TIMEOUT_MS,
      log: (level, message) => this.#log(level, message),
      closed: () => {
        this.#log('info', 'the VMM has left');
        this.#vmm = undefined;
        this.#options.vmmLeft?.();
        const next = this.#waiting.shift();
        if (next !== undefined) this.#serveVmm(next);
        this.#settleIdle();
      },
    });
  }

  #acceptManager(fd: Fd): void {
    if (this.#managers.size >= MAX_MANAGERS) {
      fd.close();
      return;
    }
    const connection = new Connection(fd, {
      role: 'manager',
      device: this.#options.device,
      twinSocket: false,
      versionTimeoutMs: this.#options.versionTimeoutMs ?? VERSION_TIMEOUT_MS,
      log: (level, message) => this.#log(level, message),
      closed: () => {
        this.#managers.delete(connection);
        this.#settleIdle();
      },
    });
    this.#managers.add(connection);
  }

  #settleIdle(): void {
    if (!this.#closing || this.#vmm !== undefined || this.#managers.size > 0) return;
    for (const resolve of this.#idleWaiters.splice(0)) resolve();
  }

  /** Stops listening, ends every connection, and settles when the device has been told. */
  close(): Promise<void> {
    this.#closing = true;
    for (const listener of this.#listeners) listener.close();
    for (const fd of this.#waiting.splice(0)) fd.close();
    this.#vmm?.close();
    for (const manager of this.#managers) manager.close();
    return new Promise((resolve) => {
      this.#idleWaiters.push(resolve);
      this.#settleIdle();
    });
  }
}
