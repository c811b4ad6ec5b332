// SPDX-License-Identifier: Apache-2.0
/**
 * One end of a socket between two processes of devstate: messages one after the other, with the fds they brought. While one
 * waits to be taken, nothing more is received: what a peer sends ahead stays in its own memory and fds.
 */

import { DevstateError } from '../errors.js';
import { MAX_MESSAGE_FDS } from '../native/index.js';
import { closeAll, type Fd, type Frame, MessageSocket } from '../transport/index.js';
import {
  decodeDocument,
  decodeHeader,
  encodeDocument,
  encodeMessage,
  HANDOFF_HEADER_LENGTH,
  HANDOFF_VERSION,
  HandoffMessage,
  handoffFraming,
  handoffMessageName,
  MAX_HANDOFF_MESSAGE,
  otherVersion,
} from './messages.js';
import { malformed } from './packed.js';

/** A message; its receiver owns the fds. */
export interface ReceivedMessage {
  readonly version: number;
  readonly type: number;
  readonly payload: Uint8Array;
  readonly fds: Fd[];
}

/** What a channel takes. */
export interface ChannelOptions {
  /** Users whose processes may be at the other end, besides this one's. */
  readonly peers?: readonly number[] | 'any';
  /** Most bytes of a message until {@link Channel.expectHandoff}. Default: those of a handoff. */
  readonly maxMessageLength?: number;
  /** Called once, when the connection has ended, whichever end closed it. */
  readonly closed?: () => void;
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
  /** What the other end is spoken to in. */
  #version: number = HANDOFF_VERSION;
  #waiter: Waiter | undefined;
  #end: Error | undefined;

  /**
   * Takes a connected socket. @throws DEVSTATE_E_HANDOFF_PEER, and closes it, when the process at its other end is
   * another user's than this one and `peers`: what is handed over is control of a VM's device
   */
  constructor(fd: Fd, { peers = [], maxMessageLength = MAX_HANDOFF_MESSAGE, closed }: ChannelOptions = {}) {
    this.#limits = {
      maxMessageLength,
      maxFds: MAX_MESSAGE_FDS,
      maxQueuedBytes: 2 * MAX_HANDOFF_MESSAGE,
    };
    this.#socket = new MessageSocket(fd, handoffFraming, this.#limits, {
      message: (frame) => this.#message(frame),
      closed: (error) => {
        this.#closed(error);
        closed?.();
      },
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
    const payload = frame.bytes.slice(HANDOFF_HEADER_LENGTH, frame.length);
    const message = { version, type, payload, fds: frame.fds.map((fd) => fd.take()) };
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

  /** Sends a message; settles when the kernel has it. The fds stay the caller's. @throws DEVSTATE_E_CONNECTION_CLOSED */
  async send(type: HandoffMessage, payload: Uint8Array, fds: readonly Fd[] = []): Promise<void> {
    await this.#sendBytes(encodeMessage(type, payload, fds.length), fds);
  }

  /** Sends a message that is a document, in the version of the other end. @throws DEVSTATE_E_CONNECTION_CLOSED */
  async sendDocument(type: number, document: unknown, version = this.#version): Promise<void> {
    await this.#sendBytes(encodeMessage(type, encodeDocument(document, version), 0, version), []);
  }

  async #sendBytes(bytes: Uint8Array, fds: readonly Fd[]): Promise<void> {
    this.#socket.send(bytes, { fds, owned: true });
    await this.#socket.drained().catch((error: unknown) => {
      throw this.#end ?? error;
    });
  }

  /** The other end speaks another version: from now on it is answered in that version. */
  speak(version: number): void {
    this.#version = version;
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
    const { version, type } = message;
    const isFitting = version === HANDOFF_VERSION || type === HandoffMessage.PREPARE;
    if (isFitting && (types as readonly number[]).includes(type)) return message;
    closeAll(message.fds);
    if (type === HandoffMessage.ROLLBACK || type === HandoffMessage.REFUSED) {
      const refusal = decodeDocument(message.payload, version) as Partial<Refusal> | null;
      throw new DevstateError('DEVSTATE_E_HANDOFF', String(refusal?.message));
    }
    if (!isFitting) {
      this.speak(version);
      throw otherVersion(version);
    }
    throw malformed(`${handoffMessageName(type)} came where ${types.map(handoffMessageName)} should`);
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
