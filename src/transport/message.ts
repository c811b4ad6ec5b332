// SPDX-License-Identifier: Apache-2.0
/** What a MessageSocket must know about messages, and how it hands one over. */

import type { DevstateError } from '../errors.js';
import type { Fd } from './fd.js';

/** Where a message ends. */
export interface Framing {
  /** Bytes of the header that every message starts with. */
  readonly headerLength: number;
  /** Length of the whole message, header included, whose header is at `offset`. */
  messageLength(view: DataView, offset: number): number;
}

/** What a peer may make us hold. */
export interface MessageLimits {
  /** Longest message, header included. */
  readonly maxMessageLength: number;
  /** Most fds with one message, at most {@link MAX_MESSAGE_FDS}. */
  readonly maxFds: number;
  /** Most bytes kept for a peer that does not read. */
  readonly maxQueuedBytes: number;
}

/** One received message, from offset 0 of the buffer. The object and its buffer are reused: valid during the call only. */
export interface Frame {
  readonly view: DataView;
  readonly bytes: Uint8Array;
  /** Bytes of the message; the buffer behind it is longer. */
  readonly length: number;
  /** In the order they were sent. Those that the handler does not `take()` are closed when it returns. */
  readonly fds: readonly Fd[];
}

export interface MessageHandler {
  /** A message arrived. An exception closes the connection with it as the error. */
  message(frame: Frame): void;
  /**
   * Called once, never from within a call of the socket: undefined when the peer or we closed the connection between two
   * messages, else what was wrong with it.
   */
  closed(error: DevstateError | undefined): void;
}

export interface SendOptions {
  /** Send only this many bytes of the parts. */
  readonly length?: number;
  /** Travel with the first byte. They stay the caller's, who may close them when `send` returns. */
  readonly fds?: readonly Fd[];
  /** The parts will not be changed any more: they are kept, not copied, when they have to wait. */
  readonly owned?: boolean;
}

/** The frame that a socket fills again and again. */
export class ReusedFrame implements Frame {
  view: DataView;
  bytes: Uint8Array;
  length = 0;
  readonly fds: Fd[] = [];

  constructor(capacity: number) {
    this.bytes = new Uint8Array(capacity);
    this.view = new DataView(this.bytes.buffer);
  }

  /** Continues in `bytes`, a whole buffer, with the first `used` bytes of what is here. */
  moveTo(bytes: Uint8Array, used: number): void {
    bytes.set(this.bytes.subarray(0, used));
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer);
  }
}
