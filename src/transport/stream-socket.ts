// SPDX-License-Identifier: Apache-2.0
/**
 * Bytes with file descriptors over a connected UNIX stream socket, where a `MessageSocket` does not fit: protocols of lines,
 * and streams whose elements carry no length.
 *
 * What sender and receiver do is apart, as in TCP: the peer may stop sending while it is still sent to.
 */

import { DevstateError } from '../errors.js';
import { Errno, MAX_MESSAGE_FDS, native, PollEvent, Shutdown } from '../native/index.js';
import { CloseGate } from './close-gate.js';
import { closeAll, type Fd, receivedFds } from './fd.js';
import { peerCredentialsOf } from './peer-credentials.js';
import { SendQueue, sendNow } from './send-queue.js';
import { SocketWatcher } from './socket-watcher.js';

const BUFFER_LENGTH = 64 << 10;
/** Most reads per wake-up, then other sockets have their turn. */
const BURST = 64;
const NO_FDS: readonly Fd[] = [];

/** Filled by each receiveMessage and read before the next: [count, lost, fds...]. */
const received = new Int32Array(2 + MAX_MESSAGE_FDS);

export interface StreamHandler {
  /** Most bytes of the next read, so that fds are distinguished from those that come later; any number unless given. */
  readonly wanted?: number;
  /**
   * Bytes arrived; they are valid during the call. Fds that came with one of them and that the handler does not `take()`
   * are closed when it returns. An exception closes the socket with it as the error.
   */
  data(bytes: Uint8Array, fds: readonly Fd[]): void;
  /** The peer sends nothing more, but may still read. */
  ended(): void;
  /** Called once: the connection was lost, or a handler threw. Not called after {@link StreamSocket.close}. */
  lost(error: unknown): void;
}

interface Waiter {
  resolve(): void;
  reject(error: unknown): void;
}

export class StreamSocket {
  readonly #fd: Fd;
  readonly #group: number;
  readonly #gate: CloseGate;
  readonly #handler: StreamHandler;
  readonly #watcher: SocketWatcher;
  readonly #queue = new SendQueue();
  readonly #maxQueuedBytes: number;
  readonly #buffer = new Uint8Array(BUFFER_LENGTH);
  readonly #waiters: Waiter[] = [];
  #reading = true;
  #closed = false;

  /**
   * Becomes the owner of a connected socket and starts to receive with the next turn of the event loop.
   * @throws DEVSTATE_E_SYSTEM when the fd cannot be watched; it is closed then.
   */
  constructor(fd: Fd, handler: StreamHandler, { maxQueuedBytes }: { readonly maxQueuedBytes: number }) {
    ({ fd: this.#fd, group: this.#group } = fd.takeConnection());
    this.#gate = new CloseGate(
      this.#group,
      () => this.#watch(),
      (error) => this.#lose(error),
    );
    this.#handler = handler;
    this.#maxQueuedBytes = maxQueuedBytes;
    this.#watcher = new SocketWatcher(this.#fd, this.#onReady);
    this.#watch();
  }

  /** Pid, uid and gid of the peer when it connected, or began to listen. */
  get peerCredentials(): { pid: number; uid: number; gid: number } {
    return peerCredentialsOf(this.#fd);
  }

  get isClosed(): boolean {
    return this.#closed;
  }

  /**
   * Sends bytes; `fds`, which stay the caller's, travel with the first. What the socket does not take at once is queued.
   * Nothing happens once it is closed.
   */
  send(bytes: Uint8Array, fds: readonly Fd[] = NO_FDS): void {
    if (this.#closed) return;
    let sent = 0;
    if (this.#queue.isEmpty) {
      sent = sendNow(this.#fd.number, bytes, 0, bytes.length, fds);
      if (sent === bytes.length) return;
      if (sent < 0 && sent !== -Errno.EAGAIN) {
        this.#lose(lostError(-sent));
        return;
      }
      sent = Math.max(sent, 0);
    }
    if (this.#queue.bytes + bytes.length - sent > this.#maxQueuedBytes) {
      const message = `the peer does not read: more than ${this.#maxQueuedBytes} bytes wait for it`;
      this.#lose(new DevstateError('DEVSTATE_E_SEND_QUEUE_FULL', message));
      return;
    }
    try {
      this.#queue.push(bytes, sent, bytes.length, sent === 0 ? fds : NO_FDS, false);
    } catch (error) {
      this.#lose(error);
    }
    this.#watch();
  }

  /** Resolves when everything was sent; rejects when the connection is lost or closed before. */
  drained(): Promise<void> {
    if (this.#closed) return Promise.reject(lostError(Errno.EPIPE));
    if (this.#queue.isEmpty) return Promise.resolve();
    return new Promise((resolve, reject) => this.#waiters.push({ resolve, reject }));
  }

  /** Tells the peer that nothing more is sent: call it when {@link drained}. Receiving continues. */
  endSending(): void {
    if (!this.#closed) native.shutdown(this.#fd.number, Shutdown.send);
  }

  /** Closes at once; what is queued is dropped. May be called again. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#gate.close();
    this.#watcher.close();
    this.#fd.close();
    this.#queue.clear();
    this.#settle(lostError(Errno.EPIPE));
  }

  #lose(error: unknown): void {
    if (this.#closed) return;
    this.#settle(error);
    this.close();
    queueMicrotask(() => this.#handler.lost(error));
  }

  #settle(error: unknown): void {
    for (const waiter of this.#waiters.splice(0)) {
      if (error === undefined) waiter.resolve();
      else waiter.reject(error);
    }
  }

  #watch(): void {
    if (this.#closed) return;
    const reads = this.#reading && !this.#gate.isShut;
    const events = (reads ? PollEvent.readable : 0) | (this.#queue.isEmpty ? 0 : PollEvent.writable);
    this.#watcher.watch(events);
  }

  readonly #onReady = (events: number): void => {
    if (!this.#queue.isEmpty && (events & PollEvent.writable) !== 0) this.#flush();
    if ((events & PollEvent.readable) !== 0) this.#receive();
    this.#watch();
  };

  #flush(): void {
    const result = this.#queue.flush(this.#fd.number);
    if (result === 0) this.#settle(undefined);
    else if (result !== -Errno.EAGAIN) this.#lose(lostError(-result));
  }

  #receive(): void {
    for (let reads = 0; reads < BURST && this.#reading && !this.#gate.isShut && !this.#closed; reads++) {
      const want = Math.min(this.#handler.wanted ?? BUFFER_LENGTH, BUFFER_LENGTH);
      const got = native.receiveMessage(this.#fd.number, this.#buffer, 0, want, received);
      if (got === -Errno.EINTR) continue;
      if (got === -Errno.EAGAIN) return;
      if (got < 0) {
        this.#lose(lostError(-got));
        return;
      }
      if (got === 0) this.#reading = false;
      this.#deliver(got);
    }
  }

  #deliver(length: number): void {
    const fds = receivedFds(received, this.#group);
    try {
      if (received[1] !== 0) {
        const message = 'file descriptors were lost on the way; raise the limit of open files';
        throw new DevstateError('DEVSTATE_E_MESSAGE_FDS', message);
      }
      if (length === 0) this.#handler.ended();
      else this.#handler.data(this.#buffer.subarray(0, length), fds);
    } catch (error) {
      this.#lose(error);
    } finally {
      closeAll(fds);
      if (fds.length > 0 && !this.#closed) this.#gate.check();
    }
  }
}

function lostError(errno: number): DevstateError {
  return new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', 'the connection was lost; is the peer alive?', {
    errno,
  });
}
