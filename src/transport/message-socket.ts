// SPDX-License-Identifier: Apache-2.0
/**
 * Messages with file descriptors over a connected UNIX stream socket. Knows where a message ends, not what it means.
 *
 * ```
 *   socket ──recvmsg──▶ header + its fds ──recvmsg──▶ body ──▶ handler.message(frame)     one buffer, reused
 *   send(parts, fds) ──sendmsg──▶ socket;  what it does not take ──▶ queue ──when writable──▶ socket
 * ```
 *
 * The header is read exactly, never more: the kernel ends a read behind the bytes that fds came with but not before them,
 * so a longer read could not tell which message they belong to. fds must come with the header.
 */

import { asDevstateError, DevstateError } from '../errors.js';
import { Errno, MAX_MESSAGE_FDS, native, type Parts, PollEvent } from '../native/index.js';
import { CloseGate } from './close-gate.js';
import { closeAll, type Fd, receivedFds } from './fd.js';
import {
  type Framing,
  type MessageHandler,
  type MessageLimits,
  ReusedFrame,
  type SendOptions,
} from './message.js';
import { peerCredentialsOf } from './peer-credentials.js';
import { lengthOf, SendQueue, sendNow } from './send-queue.js';
import { SocketWatcher } from './socket-watcher.js';

/** One wake-up serves at most this many messages and about this many bytes, then other sockets have their turn. */
const BURST_MESSAGES = 64;
const BURST_BYTES = 4 << 20;
/** Or when they have taken so long, ms: how much work a message is, the peer decides. */
export const BURST_MS = 5;

const INITIAL_BUFFER = 4096;
/** Linux gives a socket at least this much to send from, unless its administrator changed that. */
const DEFAULT_SEND_BUFFER = 208 << 10;
const NO_FDS: readonly Fd[] = [];
const NO_OPTIONS: SendOptions = {};

/** Filled by each receiveMessage and read before the next: [count, lost, fds...]. */
const received = new Int32Array(2 + MAX_MESSAGE_FDS);

interface Waiter {
  resolve(): void;
  reject(error: DevstateError): void;
}

export class MessageSocket {
  readonly #fd: Fd;
  readonly #group: number;
  readonly #gate: CloseGate;
  /** Number of {@link #fd}, only used while it is open. */
  readonly #socket: number;
  readonly #framing: Framing;
  readonly #limits: MessageLimits;
  readonly #handler: MessageHandler;
  readonly #watcher: SocketWatcher;
  readonly #frame: ReusedFrame;
  readonly #queue = new SendQueue();
  readonly #drainWaiters: Waiter[] = [];
  /** Bytes of the current message that are here, and that the next step needs: the header's or the message's. */
  #have = 0;
  #want: number;
  /** Within `handler.message`. */
  #delivering = false;
  /** A buffer that was returned. */
  #spare: Uint8Array | undefined;
  #paused = false;
  /** Waits for the end of the message that is half received, to pause there. */
  #atBoundary: Waiter | undefined;
  #closed = false;
  #ending = false;
  /** Sending failed; what the peer sent before may still be read. */
  #deaf: DevstateError | undefined;

  /**
   * Becomes the owner of a connected socket and starts to receive with the next turn of the event loop.
   * @throws DEVSTATE_E_SYSTEM when the fd cannot be watched; it is closed then.
   */
  constructor(fd: Fd, framing: Framing, limits: MessageLimits, handler: MessageHandler) {
    ({ fd: this.#fd, group: this.#group } = fd.takeConnection());
    this.#gate = new CloseGate(
      this.#group,
      () => this.#watch(),
      (error) => this.close(error),
    );
    this.#socket = this.#fd.number;
    this.#framing = framing;
    this.#limits = limits;
    this.#handler = handler;
    this.#want = framing.headerLength;
    this.#frame = new ReusedFrame(Math.min(INITIAL_BUFFER, limits.maxMessageLength));
    this.#watcher = new SocketWatcher(this.#fd, this.#onReady);
    // A message that fits the kernel's buffer whole is sent by one call, without waiting for the peer in between.
    // Without privilege less may be granted; that costs some throughput, nothing else.
    if (limits.maxMessageLength > DEFAULT_SEND_BUFFER)
      native.setSendBuffer(this.#socket, limits.maxMessageLength);
    this.#watch();
  }

  get isClosed(): boolean {
    return this.#closed;
  }

  /** Bytes that wait for the peer to read. */
  get queuedBytes(): number {
    return this.#queue.bytes;
  }

  /** Whether no message is half received or waits to be sent. */
  get isIdle(): boolean {
    return this.#have === 0 && this.#queue.isEmpty;
  }

  /** Pid, uid and gid of the peer when it connected. */
  get peerCredentials(): { pid: number; uid: number; gid: number } {
    return peerCredentialsOf(this.#fd);
  }

  /**
   * Sends one message, or a run of whole messages. Nothing is sent on a closed connection; a peer that stopped reading
   * is noticed as the end of what it sends.
   * @returns true when all was handed to the kernel, false when it waits in the queue or is dropped.
   */
  send(parts: Parts, options: SendOptions = NO_OPTIONS): boolean {
    if (this.#closed || this.#deaf !== undefined) return false;
    const length = options.length ?? lengthOf(parts);
    const fds = options.fds ?? NO_FDS;
    let sent = 0;
    if (this.#queue.isEmpty) {
      const result = sendNow(this.#socket, parts, 0, length, fds);
      if (result === length) return true;
      if (result < 0 && result !== -Errno.EAGAIN) {
        this.#onSendError(-result);
        return false;
      }
      sent = Math.max(result, 0);
    }
    this.#enqueue(parts, sent, length, sent === 0 ? fds : NO_FDS, options.owned === true);
    return false;
  }

  /** Resolves when the queue is empty; rejects when the connection closes before. */
  drained(): Promise<void> {
    if (this.#closed || this.#deaf !== undefined) return Promise.reject(this.#deaf ?? closedError());
    if (this.#queue.isEmpty) return Promise.resolve();
    return new Promise((resolve, reject) => this.#drainWaiters.push({ resolve, reject }));
  }

  /**
   * Called within `handler.message`: leaves the buffer of this message to the handler, and receives later messages
   * elsewhere. `view` and `bytes` must be read from the frame before, as they are those of the new buffer afterwards;
   * fds are still closed unless taken. Outside `handler.message` there is nothing to keep, and nothing happens.
   */
  keepFrame(): void {
    if (!this.#delivering) return;
    const capacity = Math.min(INITIAL_BUFFER, this.#limits.maxMessageLength);
    this.#frame.moveTo(this.#takeSpare(capacity) ?? new Uint8Array(capacity), 0);
  }

  /** The handler is done with a buffer that was left to it: later messages may come there, which is cheaper than in new memory. */
  returnBuffer(bytes: Uint8Array): void {
    if (bytes.length > (this.#spare?.length ?? 0)) this.#spare = bytes;
  }

  #takeSpare(capacity: number): Uint8Array | undefined {
    const spare = this.#spare;
    if (spare === undefined || spare.length < capacity) return undefined;
    this.#spare = undefined;
    return spare;
  }

  /** Stops receiving after the current message. Whether the peer goes away is not noticed until {@link resume}. */
  pause(): void {
    this.#paused = true;
    this.#watch();
  }

  resume(): void {
    this.#paused = false;
    this.#atBoundary?.reject(new DevstateError('DEVSTATE_E_CANCELLED', 'the connection continues'));
    this.#atBoundary = undefined;
    this.#watch();
  }

  /**
   * Pauses between two messages and waits until all that was sent has left: then the connection can be handed over, or
   * gone on with by {@link resume}. What the peer sends meanwhile stays in the socket.
   * @throws DEVSTATE_E_CONNECTION_CLOSED when it closes before
   */
  async freeze(): Promise<void> {
    if (this.#closed) throw closedError();
    if (this.#have === 0) this.pause();
    else await new Promise<void>((resolve, reject) => (this.#atBoundary = { resolve, reject }));
    await this.drained();
  }

  /** A second owner of the connected socket, to hand over. */
  duplicate(): Fd {
    return this.#fd.duplicate();
  }

  /** Lets the process end although the connection is open, and back. */
  unref(): void {
    this.#watcher.unref();
  }

  ref(): void {
    this.#watcher.ref();
  }

  /** Closes when the queue is sent. */
  end(): void {
    this.#ending = true;
    if (this.#queue.isEmpty) this.close();
  }

  /** Closes at once; the queue is dropped. `error` goes to `handler.closed`. May be called again. */
  close(error?: DevstateError): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#watcher.close();
    this.#fd.close();
    this.#release(error);
    queueMicrotask(() => this.#handler.closed(error));
  }

  /**
   * Gives the connected socket away, between two messages: nothing more is received, `handler.closed` is not called.
   * @throws DEVSTATE_E_CONNECTION_BUSY unless {@link isIdle}, DEVSTATE_E_CONNECTION_CLOSED when closed.
   */
  detach(): Fd {
    if (this.#closed) throw closedError();
    if (!this.isIdle) {
      throw new DevstateError(
        'DEVSTATE_E_CONNECTION_BUSY',
        'a message is half received or half sent; wait for drained() and for the message to be complete',
      );
    }
    this.#closed = true;
    this.#watcher.close();
    this.#release(undefined);
    return this.#fd.take();
  }

  #release(error: DevstateError | undefined): void {
    this.#gate.close();
    this.#queue.clear();
    closeAll(this.#frame.fds);
    this.#atBoundary?.reject(error ?? closedError());
    this.#atBoundary = undefined;
    this.#settleDrained(error ?? closedError());
  }

  /** Watches for what there is reason to wait for. */
  #watch(): void {
    if (this.#closed) return;
    const holdsBack = this.#paused || this.#gate.isShut;
    const events = (holdsBack ? 0 : PollEvent.readable) | (this.#queue.isEmpty ? 0 : PollEvent.writable);
    this.#watcher.watch(events);
  }

  readonly #onReady = (events: number): void => {
    if (!this.#queue.isEmpty && (events & PollEvent.writable) !== 0) this.#flush();
    if ((events & PollEvent.readable) !== 0) this.#receive();
    this.#watch();
  };

  #receive(): void {
    let messages = 0;
    let bytes = 0;
    let end = 0;
    while (
      !this.#closed &&
      !this.#paused &&
      !this.#gate.isShut &&
      messages < BURST_MESSAGES &&
      bytes < BURST_BYTES
    ) {
      const want = this.#want - this.#have;
      const got = native.receiveMessage(this.#socket, this.#frame.bytes, this.#have, want, received);
      if (got <= 0) {
        if (got === -Errno.EINTR) continue;
        if (got !== -Errno.EAGAIN) this.#onReceiveEnd(-got);
        return;
      }
      if ((received[0] !== 0 || received[1] !== 0) && !this.#takeFds()) return;
      this.#have += got;
      bytes += got;
      if (got < want) continue;
      if (this.#have === this.#framing.headerLength && !this.#beginBody()) return;
      if (this.#have === this.#want) {
        messages++;
        this.#deliver();
        // Most often there is only one, and the clock is not looked at.
        if (messages === 1) continue;
        const now = performance.now();
        if (end === 0) end = now + BURST_MS;
        else if (now > end) return;
      }
    }
  }

  /** Adds the fds that came with bytes after the first {@link #have}; false when the stream is at fault. */
  #takeFds(): boolean {
    const fds = this.#frame.fds;
    fds.push(...receivedFds(received, this.#group));
    let wrong: string | undefined;
    if (received[1] !== 0) wrong = 'file descriptors of a message were lost; raise the limit of open files';
    else if (this.#have >= this.#framing.headerLength)
      wrong = 'file descriptors came behind the header of a message';
    else if (fds.length > this.#limits.maxFds) {
      wrong = `a message carried ${fds.length} file descriptors, at most ${this.#limits.maxFds} are accepted`;
    }
    if (wrong !== undefined) this.close(new DevstateError('DEVSTATE_E_MESSAGE_FDS', wrong));
    return wrong === undefined;
  }

  /** Reads the length from the complete header and makes room; false when it is out of bounds. */
  #beginBody(): boolean {
    const { headerLength } = this.#framing;
    const { maxMessageLength } = this.#limits;
    const length = this.#framing.messageLength(this.#frame.view, 0);
    if (!(length >= headerLength && length <= maxMessageLength)) {
      const message = `a message claims ${length} bytes; ${headerLength} to ${maxMessageLength} are accepted`;
      this.close(new DevstateError('DEVSTATE_E_MESSAGE_LENGTH', message));
      return false;
    }
    const capacity = this.#frame.bytes.length;
    if (length > capacity) {
      const larger = Math.min(Math.max(length, 2 * capacity), maxMessageLength);
      this.#frame.moveTo(this.#takeSpare(length) ?? new Uint8Array(larger), this.#have);
    }
    this.#want = length;
    return true;
  }

  #deliver(): void {
    const frame = this.#frame;
    frame.length = this.#want;
    this.#have = 0;
    this.#want = this.#framing.headerLength;
    this.#delivering = true;
    try {
      this.#handler.message(frame);
    } catch (error) {
      this.close(asDevstateError(error));
    }
    this.#delivering = false;
    if (frame.fds.length > 0) {
      closeAll(frame.fds);
      frame.fds.length = 0;
      if (!this.#closed) this.#gate.check();
    }
    if (this.#atBoundary !== undefined && !this.#closed) {
      this.pause();
      this.#atBoundary.resolve();
      this.#atBoundary = undefined;
    }
  }

  /** The stream ended (`errno` 0) or broke. */
  #onReceiveEnd(errno: number): void {
    if (this.#have > 0) {
      const message = `the peer closed the connection after ${this.#have} of ${this.#want} bytes of a message`;
      this.close(new DevstateError('DEVSTATE_E_MESSAGE_TRUNCATED', message));
    } else if (errno === 0) {
      this.close();
    } else {
      this.close(
        new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', 'the connection was lost; is the peer alive?', {
          errno,
        }),
      );
    }
  }

  #enqueue(parts: Parts, start: number, end: number, fds: readonly Fd[], owned: boolean): void {
    const { maxQueuedBytes } = this.#limits;
    if (this.#queue.bytes + end - start > maxQueuedBytes) {
      const message = `the peer does not read: more than ${maxQueuedBytes} bytes wait for it`;
      this.close(new DevstateError('DEVSTATE_E_SEND_QUEUE_FULL', message));
      return;
    }
    try {
      this.#queue.push(parts, start, end, fds, owned);
    } catch (error) {
      this.close(asDevstateError(error));
    }
    this.#watch();
  }

  #flush(): void {
    const result = this.#queue.flush(this.#socket);
    if (result < 0) {
      if (result !== -Errno.EAGAIN) this.#onSendError(-result);
      return;
    }
    this.#settleDrained(undefined);
    if (this.#ending) this.close();
  }

  /** The peer no longer reads. Its last messages are still worth reading, and their end closes the connection. */
  #onSendError(errno: number): void {
    const error = new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', 'the peer closed the connection', {
      errno,
    });
    if (errno !== Errno.EPIPE && errno !== Errno.ECONNRESET) {
      this.close(new DevstateError('DEVSTATE_E_SYSTEM', 'sending to the peer failed', { errno }));
      return;
    }
    this.#deaf = error;
    this.#queue.clear();
    this.#settleDrained(error);
    if (this.#ending) this.close();
  }

  #settleDrained(error: DevstateError | undefined): void {
    for (const waiter of this.#drainWaiters.splice(0)) {
      if (error === undefined) waiter.resolve();
      else waiter.reject(error);
    }
  }
}

function closedError(): DevstateError {
  return new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', 'the connection is closed');
}
