// SPDX-License-Identifier: Apache-2.0
/** Listening at and connecting to UNIX socket paths. */

import { lstatSync, statSync } from 'node:fs';
import { DevstateError } from '../errors.js';
import { check, checkObject, Errno, native, PollEvent, type Poller, systemError } from '../native/index.js';
import { MAX_CLOSING_OF_ALL } from './close-gate.js';
import { Fd, peerGroup } from './fd.js';
import { listenAt, removePath } from './socket-path.js';

export interface ListenOptions {
  /** Permissions of the path; 0600 unless given, since a process that connects controls the device. */
  readonly mode?: number;
  /** Connections that may wait to be accepted. */
  readonly backlog?: number;
}

/** How long to leave clients waiting when there are too many open files to accept them. */
const RETRY_ACCEPT_MS = 50;
/** How often to try again while a listener's backlog is full. */
const RETRY_CONNECT_MS = 10;
/** Most connections accepted per wake-up. */
const BURST = 16;

/** Accepts connections at a path, or at a listening socket that was handed over. */
export class Listener {
  readonly #fd: Fd;
  readonly #poller: Poller;
  readonly #onConnection: (fd: Fd) => void;
  /** The path, and the inode that we made there: somebody else's later one is not ours to remove. */
  #path: { name: string; device: number; inode: number } | undefined;
  #retry: NodeJS.Timeout | undefined;

  private constructor(fd: Fd, path: string | undefined, onConnection: (fd: Fd) => void) {
    this.#fd = fd;
    this.#onConnection = onConnection;
    try {
      if (path !== undefined) {
        const info = lstatSync(path);
        this.#path = { name: path, device: info.dev, inode: info.ino };
      }
      this.#poller = checkObject(
        native.createPoller(fd.number, this.#onReadable),
        'watch a listening socket',
      );
      this.#poller.start(PollEvent.readable);
    } catch (error) {
      fd.close();
      throw error;
    }
  }

  /**
   * Listens at `path`; a socket left there by a process that is gone is replaced.
   * @param onConnection becomes the owner of each connected socket.
   * @throws DEVSTATE_E_ADDRESS_IN_USE when somebody listens there or it is no socket, DEVSTATE_E_SYSTEM.
   */
  static listen(path: string, onConnection: (fd: Fd) => void, options: ListenOptions = {}): Listener {
    const fd = listenAt(path, options.mode ?? 0o600, options.backlog ?? 128);
    return new Listener(new Fd(fd), path, onConnection);
  }

  /** Continues with a listening socket that another process bound. `path`, if given, is removed by {@link close}. */
  static adopt(fd: Fd, onConnection: (fd: Fd) => void, path?: string): Listener {
    return new Listener(fd.take(), path, onConnection);
  }

  readonly #onReadable = (): void => {
    for (let i = 0; i < BURST && this.#fd.isOpen; i++) {
      if (native.closing() > MAX_CLOSING_OF_ALL) {
        this.#pauseAccepting();
        return;
      }
      const connected = native.accept(this.#fd.number);
      if (connected >= 0) this.#onConnection(new Fd(connected, peerGroup()));
      else if (connected === -Errno.EAGAIN) return;
      else if (connected !== -Errno.ECONNABORTED && connected !== -Errno.EINTR) {
        this.#pauseAccepting();
        return;
      }
    }
  };

  /** Too many open files, or being closed, or no memory: clients stay in the backlog until there is room, without a busy loop. */
  #pauseAccepting(): void {
    this.#poller.stop();
    this.#retry = setTimeout(() => this.#poller.start(PollEvent.readable), RETRY_ACCEPT_MS);
  }

  /** Leaves clients in the backlog until {@link resume}. */
  pause(): void {
    clearTimeout(this.#retry);
    this.#poller.stop();
  }

  resume(): void {
    if (this.#fd.isOpen) this.#poller.start(PollEvent.readable);
  }

  /** A second owner of the listening socket, to hand over. */
  duplicate(): Fd {
    return this.#fd.duplicate();
  }

  /** Stops accepting; connections stay. Removes the path unless `keepPath` (its successor listens there). */
  close(options: { keepPath?: boolean } = {}): void {
    if (!this.#fd.isOpen) return;
    clearTimeout(this.#retry);
    this.#poller.close();
    // Before the socket is closed: as long as it is live no one else takes the path.
    if (this.#path !== undefined && options.keepPath !== true) removePath(this.#path);
    this.#fd.close();
  }

  /** Lets the process end although it listens. */
  unref(): void {
    this.#poller.unref();
  }
}

/**
 * Connects to a listening UNIX socket. While the listener's backlog is full it is tried again, up to `timeoutMs`.
 * @throws DEVSTATE_E_CONNECT
 */
export async function connect(path: string, timeoutMs = 5000): Promise<Fd> {
  const deadline = Date.now() + timeoutMs;
  for (;;) {
    const fd = native.unixConnect(path);
    if (fd >= 0) return new Fd(fd, peerGroup());
    if (fd === -Errno.EAGAIN && Date.now() < deadline) {
      await new Promise((resolve) => setTimeout(resolve, RETRY_CONNECT_MS));
      continue;
    }
    throw connectError(path, -fd);
  }
}

function connectError(path: string, errno: number): DevstateError {
  const reasons: Record<number, string> = {
    [Errno.ENOENT]: 'it does not exist; start the process that listens there first',
    [Errno.ECONNREFUSED]: 'no process listens there any more; start the process again',
    [Errno.EAGAIN]: 'its process accepts no more connections; another client may hold it',
    [Errno.EACCES]: 'permission denied; run as the user that owns the socket',
    [Errno.ENAMETOOLONG]: 'the path is longer than 107 bytes; choose a shorter one',
  };
  const cause = systemError(`connect to ${path}`, errno);
  const reason =
    errno === Errno.ECONNREFUSED && isOther(path) ? 'it is no socket' : (reasons[errno] ?? cause.message);
  return new DevstateError('DEVSTATE_E_CONNECT', `cannot connect to ${path}: ${reason}`, { cause, errno });
}

/** Connecting to a file or a folder fails as it does to a socket that no one has open any more. */
function isOther(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isSocket() === false;
}

/** Two connected sockets. */
export function socketPair(): [Fd, Fd] {
  const out = new Int32Array(2);
  check(native.socketPair(out), 'make a socket pair');
  return [new Fd(out[0]!), new Fd(out[1]!)];
}
