// SPDX-License-Identifier: Apache-2.0
/** What a service is given by its manager: where to send notifications, and the fds that were kept (sd_listen_fds(3)). */

import { check, Errno, native, PosixPoll } from '../native/index.js';
import { Fd } from '../transport/index.js';
import { encodeNotification, type Notification } from './notify.js';

/** First number that fds are passed at. */
const FIRST_FD = 3;
/** Longest that the manager may take to make room for a message, ms. */
const SEND_TIMEOUT_MS = 5000;

export interface ServiceEnvironment {
  /** Undefined when no process listens. */
  readonly notifySocket: string | undefined;
  /** Most fds that are kept; 0 when none are. */
  readonly capacity: number;
  /** By name, in order. */
  readonly fds: readonly { readonly name: string; readonly fd: Fd }[];
}

/**
 * Reads the environment, takes the fds, and clears what a child of ours must not take for its own.
 * @param force the manager keeps fds although it does not say so: systemd before 254
 */
export function takeServiceEnvironment(
  { force }: { force: boolean },
  env: NodeJS.ProcessEnv = process.env,
): ServiceEnvironment {
  const { NOTIFY_SOCKET, FDSTORE, LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES = '' } = env;
  for (const name of ['NOTIFY_SOCKET', 'FDSTORE', 'LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES'])
    delete env[name];
  const count = LISTEN_PID === String(process.pid) ? Number(LISTEN_FDS) || 0 : 0;
  const names = LISTEN_FDNAMES.split(':');
  const fds = Array.from({ length: count }, (_, index) => ({
    name: names[index] ?? '',
    fd: takeInherited(FIRST_FD + index),
  }));
  return {
    notifySocket: NOTIFY_SOCKET,
    capacity: Number(FDSTORE) || (force ? Number.MAX_SAFE_INTEGER : 0),
    fds,
  };
}

/** Under another number, closed when a program is executed; inherited ones are not. */
function takeInherited(number: number): Fd {
  const fd = new Fd(check(native.duplicate(number), 'take over an inherited file descriptor'));
  native.close(number);
  return fd;
}

/** The way to the service manager. */
export class Notifier {
  readonly #socket: Fd;

  /** @throws DEVSTATE_E_SYSTEM when no process listens there */
  constructor(path: string) {
    this.#socket = new Fd(check(native.datagramConnect(path), `reach the service manager at ${path}`));
  }

  /**
   * Sends a message. When it returns, the manager has it, even if we end now. BLOCKS while the manager's queue is full.
   * @throws DEVSTATE_E_SYSTEM when the manager is gone or does not read
   */
  send(notification: Notification, fd?: Fd): void {
    const bytes = encodeNotification(notification);
    const fds = fd === undefined ? null : Int32Array.of(fd.number);
    const deadline = Date.now() + SEND_TIMEOUT_MS;
    for (;;) {
      const sent = native.sendMessage(this.#socket.number, bytes, 0, bytes.length, fds, fds?.length ?? 0);
      if (sent !== -Errno.EAGAIN && sent !== -Errno.EINTR) {
        check(sent, 'send to the service manager');
        return;
      }
      const left = deadline - Date.now();
      if (left <= 0 || native.poll(this.#socket.number, PosixPoll.out, left) === 0)
        check(-Errno.ETIMEDOUT, 'send to the service manager');
    }
  }

  close(): void {
    this.#socket.close();
  }
}
