// SPDX-License-Identifier: Apache-2.0
/**
 * A successor before it has taken over: it has two sockets of its own, in a directory that its manager has made, and
 * none of the predecessor's.
 *
 *     DIRECTORY/manager   what it is asked by: a server's migration socket, a relay's control socket
 *     DIRECTORY/handoff   where the predecessor connects
 */

import { rmdir } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { DevstateError } from '../errors.js';
import { type Fd, Listener } from '../transport/index.js';
import { type Receiver, receive } from './receive.js';

/** Names the directory to a process that is started as a successor. */
export const TAKEOVER_VARIABLE = 'DEVSTATE_TAKEOVER';

/** Where the sockets of a successor are. */
export function takeoverPaths(directory: string): { manager: string; handoff: string } {
  return { manager: join(directory, 'manager'), handoff: join(directory, 'handoff') };
}

/** Until what is not urgent is done. */
const TIDY_MS = 5;
/** A successor that no one hands anything over to ends after this time. */
const IDLE_TIMEOUT_MS = 60_000;

export interface TakeoverHost {
  /** Somebody asks what the successor can do. Becomes the owner of the socket. */
  readonly acceptManager: (fd: Fd) => void;
  /** What takes over. */
  readonly receiver: () => Receiver;
}

export class Takeover {
  readonly #directory: string;
  readonly #listeners: Listener[] = [];
  readonly #host: TakeoverHost;
  readonly #log: (level: 'info' | 'warn' | 'error', message: string) => void;
  readonly #timer: NodeJS.Timeout;
  #begun = false;
  #end: (error?: unknown) => void = () => {};
  /** Settles when the successor has taken over; rejects with a HandoffError when it will not. */
  readonly done: Promise<void>;

  /** Listens at once. @throws DEVSTATE_E_ADDRESS_IN_USE, DEVSTATE_E_SYSTEM */
  constructor(
    directory: string,
    host: TakeoverHost,
    log: (level: 'info' | 'warn' | 'error', message: string) => void,
  ) {
    this.#directory = directory;
    this.#host = host;
    this.#log = log;
    this.done = new Promise((resolve, reject) => {
      this.#end = (error) => {
        this.close();
        if (error === undefined) resolve();
        else reject(error);
      };
    });
    // A caller that waits for it gets the error.
    this.done.catch(() => {});
    const paths = takeoverPaths(directory);
    try {
      // Who sees the second one knows that the first one is there.
      this.#listeners.push(Listener.listen(paths.handoff, (fd) => void this.#receive(fd)));
      this.#listeners.push(Listener.listen(paths.manager, host.acceptManager));
    } catch (error) {
      this.close();
      throw error;
    }
    this.#timer = setTimeout(() => this.giveUp('no process handed anything over'), IDLE_TIMEOUT_MS);
    this.#timer.unref();
  }

  /** A manager has left: if nothing has begun, nothing will. */
  giveUp(why: string): void {
    if (!this.#begun) this.#end(new DevstateError('DEVSTATE_E_HANDOFF', `nothing was taken over: ${why}`));
  }

  async #receive(fd: Fd): Promise<void> {
    if (this.#begun) return fd.close();
    this.#begun = true;
    try {
      const { generation } = await receive(fd, this.#host.receiver());
      // First the VMM, which may have waited; a log and a folder take longer than its next access.
      await delay(TIDY_MS);
      this.#log('info', `took over, successor number ${generation}`);
      this.#end();
    } catch (error) {
      this.#end(error);
    }
  }

  /** Begins nothing any more; settles when what has begun has ended. */
  async stop(): Promise<void> {
    this.giveUp('the successor was asked to end');
    await this.done.catch(() => {});
  }

  close(): void {
    clearTimeout(this.#timer);
    for (const listener of this.#listeners.splice(0)) listener.close();
    // Its manager removes it, unless that was killed.
    rmdir(this.#directory, () => {});
  }
}
