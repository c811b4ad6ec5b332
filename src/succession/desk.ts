// SPDX-License-Identifier: Apache-2.0
/**
 * Where a server or a relay meets its clients: the sockets at which it listens, VMMs that wait until the device is free,
 * and the end, by `close` or because a successor has everything.
 */

import { resolve as absolutePath } from 'node:path';
import { DevstateError } from '../errors.js';
import { type HandoffReport, type HandoffStatus, type Receiver, Takeover } from '../handoff/index.js';
import type { Log } from '../logging/index.js';
import { closeAll, type Fd, Listener } from '../transport/index.js';

/** VMMs that may wait. */
const MAX_WAITING = 16;
/** Why nothing else can be begun. */
export const BUSY = 'the server is being handed over, or ends: try again when that is over, if it has to be';

/** By whom a socket is for: one for the VMM always, the others where they were asked for. */
export interface PerSocket<Value> {
  readonly vmm: Value;
  readonly manager: Value | undefined;
  readonly control: Value | undefined;
}

/** What a successor begins with. */
export interface DeskParts {
  readonly listeners: PerSocket<Listener>;
  readonly waiting: Fd[];
  readonly generation: number;
  /** From the last that the predecessor did for its VMM to the first that this one may. */
  readonly pauseMs: number;
  /** When that was over, in milliseconds of CLOCK_MONOTONIC. */
  readonly startedAtMs: number;
}

/** What this needs of the process that it belongs to. */
export interface DeskHost {
  /** A VMM has connected. @returns false when it has to wait; otherwise the fd was taken */
  acceptVmm(fd: Fd): boolean;
  /** Becomes the owner of the fd. */
  acceptManager(fd: Fd): void;
  /** Becomes the owner of the fd. */
  acceptControl(fd: Fd): void;
  /** No client is connected. */
  readonly isIdle: boolean;
  readonly log: Log;
}

export interface DeskPaths {
  readonly vmm: string;
  readonly manager: string | undefined;
  readonly control?: string | undefined;
}

export class Desk {
  /** Absolute: as clients and a successor know them. */
  readonly paths: PerSocket<string>;
  readonly #host: DeskHost;
  #listeners: PerSocket<Listener> | undefined;
  #waiting: Fd[] = [];
  #generation = 0;
  #pause: Pick<DeskParts, 'pauseMs' | 'startedAtMs'> | undefined;
  #closing = false;
  #handing: Promise<unknown> | undefined;
  #takeover: Takeover | undefined;
  readonly #idleWaiters: (() => void)[] = [];
  #end = (): void => {};
  /** Settles when a successor has everything, and the clients of this process have left. */
  readonly handedOver: Promise<void>;

  constructor({ vmm, manager, control }: DeskPaths, host: DeskHost) {
    const absolute = (path: string | undefined) => (path === undefined ? undefined : absolutePath(path));
    this.paths = { vmm: absolutePath(vmm), manager: absolute(manager), control: absolute(control) };
    this.#host = host;
    this.handedOver = new Promise((resolve) => {
      this.#end = resolve;
    });
  }

  /** By whom the connections of a socket are taken. */
  readonly accept = {
    vmm: (fd: Fd): void => {
      if (this.#host.acceptVmm(fd)) return;
      if (this.#waiting.length < MAX_WAITING) this.#waiting.push(fd);
      else fd.close();
    },
    manager: (fd: Fd): void => this.#host.acceptManager(fd),
    control: (fd: Fd): void => this.#host.acceptControl(fd),
  } satisfies PerSocket<(fd: Fd) => void>;

  /**
   * Listens at every path. @param keep is called with the sockets, before anything comes from one
   * @throws DEVSTATE_E_ADDRESS_IN_USE, DEVSTATE_E_SYSTEM, and what `keep` throws; it listens at none then
   */
  listen(keep?: (listeners: PerSocket<Listener>) => void): void {
    const open: Listener[] = [];
    try {
      const listeners = eachSocket(this.paths, (path, role) => {
        const listener = Listener.listen(path, this.accept[role]);
        open.push(listener);
        return listener;
      });
      keep?.(listeners);
      this.#listeners = listeners;
    } catch (error) {
      for (const listener of open) listener.close();
      throw error;
    }
  }

  /** Listens where a process did that has ended; accepts from `resume` on. Takes the fds. */
  relisten(sockets: PerSocket<Fd>): void {
    this.#listeners = eachSocket(sockets, (fd, role) => {
      const listener = Listener.adopt(fd, this.accept[role], this.paths[role]);
      listener.pause();
      return listener;
    });
  }

  /**
   * Waits for a predecessor in the directory that a manager has named. @param manager takes connections meanwhile
   * @returns what settles when this process has taken over
   * @throws DEVSTATE_E_ADDRESS_IN_USE, DEVSTATE_E_SYSTEM
   */
  awaitPredecessor(directory: string, receiver: () => Receiver, manager: (fd: Fd) => void): Promise<void> {
    const { log } = this.#host;
    this.#takeover = new Takeover(directory, { acceptManager: manager, receiver }, log);
    return this.#takeover.done;
  }

  /** Its manager has left: if nothing has been taken over yet, nothing will. */
  managerLeft(): void {
    this.#takeover?.giveUp('the manager has left');
  }

  /** Everything is there that a predecessor had. */
  install({ listeners, waiting, generation, pauseMs, startedAtMs }: DeskParts): void {
    this.#listeners = listeners;
    this.#waiting = waiting;
    this.#generation = generation;
    this.#pause = { pauseMs, startedAtMs };
  }

  /** The answer to a manager that asks whether this process can be handed over. */
  get status(): HandoffStatus {
    return { generation: this.#generation, serving: this.#listeners !== undefined, ...this.#pause };
  }

  /** It has taken over, or began by itself; it is not being handed over, and does not end. */
  get isSteady(): boolean {
    return this.#listeners !== undefined && this.#handing === undefined && !this.#closing;
  }

  get isClosing(): boolean {
    return this.#closing;
  }

  /** A handoff is under way. */
  get isHandingOver(): boolean {
    return this.#handing !== undefined;
  }

  /** Generation of the process that would be the next. */
  get nextGeneration(): number {
    return this.#generation + 1;
  }

  /** As they are now. */
  get sockets(): { readonly listeners: PerSocket<Listener>; readonly waiting: readonly Fd[] } {
    if (this.#listeners === undefined) throw new DevstateError('DEVSTATE_E_HANDOFF', BUSY);
    return { listeners: this.#listeners, waiting: this.#waiting };
  }

  /** Accepts no connection until `resume`. */
  pause(): void {
    for (const listener of this.#open) listener.pause();
  }

  resume(): void {
    for (const listener of this.#open) listener.resume();
  }

  /** The VMM that has waited the longest; undefined when none waits. */
  takeWaiting(): Fd | undefined {
    return this.#waiting.shift();
  }

  /**
   * Hands over. @param give settles when a successor has everything
   * @param relinquish closes what is this process's of it; settles when its clients have left
   * @throws DEVSTATE_E_HANDOFF, HandoffError when this process continues
   */
  async handOver(
    give: () => Promise<HandoffReport>,
    relinquish: () => { readonly left: Promise<void> } | Promise<{ readonly left: Promise<void> }>,
  ): Promise<HandoffReport> {
    if (!this.isSteady) throw new DevstateError('DEVSTATE_E_HANDOFF', BUSY);
    const handing = give();
    this.#handing = handing.catch(() => {});
    try {
      const report = await handing;
      this.#closeSockets({ keepPath: true });
      const { left } = await relinquish();
      void left.then(this.#end);
      this.#host.log('info', `handed over to process ${report.pid}`);
      return report;
    } finally {
      this.#handing = undefined;
    }
  }

  get #open(): Listener[] {
    return Object.values(this.#listeners ?? {}).filter((listener) => listener !== undefined);
  }

  #closeSockets(options?: { keepPath: true }): void {
    this.#closing = true;
    for (const listener of this.#open) listener.close(options);
    closeAll(this.#waiting.splice(0));
  }

  /** Stops listening, when a handoff that is under way has ended. Then the caller ends its connections. */
  async close(): Promise<void> {
    await this.#handing;
    await this.#takeover?.stop();
    this.#closeSockets();
  }

  /** Settles when no client is connected, while the desk is closing. */
  untilIdle(): Promise<void> {
    return new Promise((resolve) => {
      this.#idleWaiters.push(resolve);
      this.clientLeft();
    });
  }

  /** To be called whenever a client has left. */
  clientLeft(): void {
    if (!this.#closing || !this.#host.isIdle) return;
    for (const resolve of this.#idleWaiters.splice(0)) resolve();
  }
}

/** `of` each value that is there. */
export function eachSocket<From, To>(
  { vmm, manager, control }: PerSocket<From>,
  of: (value: From, role: keyof PerSocket<From>) => To,
): PerSocket<To> {
  return {
    vmm: of(vmm, 'vmm'),
    manager: manager === undefined ? undefined : of(manager, 'manager'),
    control: control === undefined ? undefined : of(control, 'control'),
  };
}
