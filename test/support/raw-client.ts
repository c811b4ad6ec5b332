// SPDX-License-Identifier: Apache-2.0
/** A client that knows bytes and fds only: for messages that no honest client sends, and to look at what comes back. */

import { native, Shutdown } from '../../src/native/index.js';
import { connect, type Fd, MessageSocket } from '../../src/transport/index.js';
import {
  type Capabilities,
  defaultCapabilities,
  encodeHeader,
  encodeVersion,
  HEADER_LENGTH,
  messageCommand,
  messageError,
  messageFlags,
  messageId,
  vfioUserFraming,
} from '../../src/wire/index.js';

/** A message from the server, its fds closed unless `keepFds`. */
export interface RawMessage {
  readonly id: number;
  readonly command: number;
  readonly flags: number;
  readonly error: number;
  readonly payload: Uint8Array;
  readonly fds: readonly Fd[];
}

const LIMITS = { maxMessageLength: 64 * 2 ** 20, maxFds: 253, maxQueuedBytes: 256 * 2 ** 20 };

export class RawClient {
  readonly #socket: MessageSocket;
  readonly #messages: RawMessage[] = [];
  readonly #waiters: (() => void)[] = [];
  /** Take the fds of what comes; the test closes them. */
  keepFds = false;
  isClosed = false;
  #nextId = 1;

  readonly #fd: Fd;

  constructor(fd: Fd) {
    this.#fd = fd.duplicate();
    this.#socket = new MessageSocket(fd, vfioUserFraming, LIMITS, {
      message: (frame) => {
        this.#messages.push({
          id: messageId(frame.view),
          command: messageCommand(frame.view),
          flags: messageFlags(frame.view),
          error: messageError(frame.view),
          payload: frame.bytes.slice(HEADER_LENGTH, frame.length),
          fds: this.keepFds ? frame.fds.map((fd) => fd.take()) : [],
        });
        this.#wake();
      },
      closed: () => {
        this.isClosed = true;
        this.#fd.close();
        this.#wake();
      },
    });
  }

  static async connect(path: string): Promise<RawClient> {
    return new RawClient(await connect(path));
  }

  #wake(): void {
    for (const resolve of this.#waiters.splice(0)) resolve();
  }

  /** Reads nothing any more. */
  pause(): void {
    this.#socket.pause();
  }

  /** Says that nothing more is sent; what has been sent is still answered. */
  finish(): void {
    native.shutdown(this.#fd.number, Shutdown.send);
  }

  close(): void {
    this.#fd.close();
    this.#socket.close();
  }

  /** Sends bytes as they are. */
  send(bytes: Uint8Array, fds: readonly Fd[] = []): void {
    this.#socket.send(bytes, { fds });
  }

  /** A whole message. */
  message(
    command: number,
    payload: Uint8Array,
    options: { id?: number; flags?: number; error?: number } = {},
  ): Uint8Array {
    const bytes = new Uint8Array(HEADER_LENGTH + payload.length);
    const { id = this.#nextId++ & 0xffff, flags = 0, error = 0 } = options;
    encodeHeader(new DataView(bytes.buffer), 0, id, command, bytes.length, flags, error);
    bytes.set(payload, HEADER_LENGTH);
    return bytes;
  }

  /** The next message from the server; undefined when it has closed the connection. */
  async receive(): Promise<RawMessage | undefined> {
    while (this.#messages.length === 0) {
      if (this.isClosed) return undefined;
      await new Promise<void>((resolve) => this.#waiters.push(resolve));
    }
    return this.#messages.shift();
  }

  /** Settles when the server has closed the connection. */
  async closed(): Promise<void> {
    while (!this.isClosed) await new Promise<void>((resolve) => this.#waiters.push(resolve));
  }

  /** Sends a command and gives the next message from the server, which is its reply if the server is right. */
  async call(
    command: number,
    payload: Uint8Array,
    options: { flags?: number; fds?: readonly Fd[] } = {},
  ): Promise<RawMessage> {
    this.send(this.message(command, payload, options), options.fds);
    const reply = await this.receive();
    if (reply === undefined) throw new Error('the server closed the connection');
    return reply;
  }

  /** VERSION, as an honest client says it. */
  version(capabilities: Partial<Capabilities> = {}, minor = 2): Promise<RawMessage> {
    return this.call(
      1,
      encodeVersion({ major: 0, minor, capabilities: { ...defaultCapabilities, ...capabilities } }),
    );
  }
}
