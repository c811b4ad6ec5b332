// SPDX-License-Identifier: Apache-2.0
/**
 * One end of a handoff's socket: messages one after the other, with the fds they brought. While one waits to be taken,
 * nothing more is received: what a peer sends ahead stays in its own memory and fds.
 */

import { DevstateError } from '../errors.js';
import { MAX_MESSAGE_FDS } from '../native/index.js';
import { closeAll, type Fd, type Frame, MessageSocket } from '../transport/index.js';
import {
  decodeHeader,
  decodeJson,
  encodeMessage,
  HANDOFF_HEADER_LENGTH,
  HANDOFF_VERSION,
  HandoffMessage,
  handoffFraming,
  handoffMessageName,
  MAX_HANDOFF_MESSAGE,
  malformed,
} from './protocol.js';

/** A message; whoever gets it owns the fds. */
export interface ReceivedMessage {
  readonly type: number;
  readonly payload: Uint8Array;
  readonly fds: Fd[];
}

/** Longest request or answer: what comes before anything is handed over. */
export const MAX_REQUEST_MESSAGE = 64 * 1024;

/** What a channel takes. */
export interface ChannelOptions {
  /** Users whose processes may be at the other end, besides this one's. */
  readonly peers?: readonly number[] | 'any';
  /** Most bytes of a message until {@link Channel.expectHandoff}. Default: those of a handoff. */
  readonly maxMessageLength?: number;
}

interface Waiter {
  resolve(message: ReceivedMessage): void;
  reject(error: Error): void;
}

/** What ROLLBACK and REFUSED say. */
export interface Refusal {
  readonly code: string;
  readonly message: string;
}

export class Channel {
  /** Pid of the other process when it connected or listened. */
  readonly peerPid: number;
  /** Its user. */
  readonly peerUid: number;
  readonly #limits: { maxMessageLength: number; readonly maxFds: number; readonly maxQueuedBytes: number };
  readonly #socket: MessageSocket;
  readonly #arrived: ReceivedMessage[] = [];
  #waiter: Waiter | undefined;
  #end: Error | undefined;

  /**
   * Takes a connected socket. @throws DEVSTATE_E_HANDOFF_PEER, and closes it, when the process at its other end is
   * another user's than this one and `peers`: what is handed over is control of a VM's device
   */
  constructor(fd: Fd, { peers = [], maxMessageLength = MAX_HANDOFF_MESSAGE }: ChannelOptions = {}) {
    this.#limits = {
      maxMessageLength,
      maxFds: MAX_MESSAGE_FDS,
      maxQueuedBytes: 2 * MAX_HANDOFF_MESSAGE,
    };
    this.#socket = new MessageSocket(fd, handoffFraming, this.#limits, {
      message: (frame) => this.#message(frame),
      closed: (error) => this.#closed(error),
    });
    const { uid, pid } = this.#socket.peerCredentials;
    this.peerPid = pid;
    this.peerUid = uid;
    if (uid === process.getuid?.() || peers === 'any' || peers.includes(uid)) return;
    this.#socket.close();
    const message = `the other process runs as user ${uid}, this one as ${process.getuid?.()}: run both as the same`;
    throw new DevstateError('DEVSTATE_E_HANDOFF_PEER', message);
  }

  #message(frame: Frame): void {
    const { version, type, fds: count } = decodeHeader(frame.view);
    if (frame.fds.length !== count)
      throw malformed(`${handoffMessageName(type)} says ${count} fds and carries ${frame.fds.length}`);
    if (version !== HANDOFF_VERSION) {
      throw malformed(
        `the other process speaks version ${version} of the handoff, this one ${HANDOFF_VERSION}`,
      );
    }
    const payload = frame.bytes.slice(HANDOFF_HEADER_LENGTH, frame.length);
    const message = { type, payload, fds: frame.fds.map((fd) => fd.take()) };
    const waiter = this.#waiter;
    this.#waiter = undefined;
    if (waiter === undefined) {
      this.#arrived.push(message);
      this.#socket.pause();
    } else waiter.resolve(message);
  }

  /** A handoff begins: its messages may be as long as they need to be. */
  expectHandoff(): void {
    this.#limits.maxMessageLength = MAX_HANDOFF_MESSAGE;
  }

  #closed(error: DevstateError | undefined): void {
    this.#end =
      error?.code === 'DEVSTATE_E_HANDOFF_BUNDLE'
        ? error
        : new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', 'the other process went away', { cause: error });
    this.#waiter?.reject(this.#end);
    this.#waiter = undefined;
  }

  /** Sends a message; settles when the kernel has it. @throws DEVSTATE_E_CONNECTION_CLOSED */
  async send(type: HandoffMessage, payload: Uint8Array, fds: readonly Fd[] = []): Promise<void> {
    this.#socket.send(encodeMessage(type, payload, fds.length), { fds, owned: true });
    await this.#socket.drained().catch((error: unknown) => {
      throw this.#end ?? error;
    });
  }

  /** Whatever comes next. @throws DEVSTATE_E_CONNECTION_CLOSED when nothing does */
  next(): Promise<ReceivedMessage> {
    const message = this.#arrived.shift();
    if (message !== undefined) {
      if (this.#arrived.length === 0) this.#socket.resume();
      return Promise.resolve(message);
    }
    if (this.#end !== undefined) return Promise.reject(this.#end);
    return new Promise((resolve, reject) => {
      this.#waiter = { resolve, reject };
    });
  }

  /** @throws what the connection has ended with, as far as that has been noticed */
  requireOpen(): void {
    if (this.#end !== undefined) throw this.#end;
  }

  /** Has {@link next} give a message once more. */
  putBack(message: ReceivedMessage): void {
    this.#arrived.unshift(message);
  }

  /**
   * The next message, which must be one of `types`. @throws what the other end says when it gives up,
   * DEVSTATE_E_HANDOFF_BUNDLE when it is anything else
   */
  async expect(...types: readonly HandoffMessage[]): Promise<ReceivedMessage> {
    const message = await this.next();
    if ((types as readonly number[]).includes(message.type)) return message;
    closeAll(message.fds);
    if (message.type === HandoffMessage.ROLLBACK || message.type === HandoffMessage.REFUSED) {
      const { message: words } = decodeJson(message.payload) as Refusal;
      throw new DevstateError('DEVSTATE_E_HANDOFF', String(words));
    }
    throw malformed(`${handoffMessageName(message.type)} came where ${types.map(handoffMessageName)} should`);
  }

  /** Closes when what was sent has left. */
  end(): void {
    for (const { fds } of this.#arrived.splice(0)) closeAll(fds);
    this.#socket.end();
  }

  /** Closes at once, whether or not the other end has read what was sent. */
  abort(): void {
    for (const { fds } of this.#arrived.splice(0)) closeAll(fds);
    this.#socket.close();
  }
}
