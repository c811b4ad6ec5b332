// SPDX-License-Identifier: Apache-2.0
/** The end of a CPR channel that a destination reads from. */
import { type Fd, type StreamHandler, StreamSocket } from '../../transport/index.js';
import type { CprPiece } from './source-end.js';

/** More than a list can have. */
const QUEUE = { maxQueuedBytes: 8 << 20 };

export class CprDestinationEnd implements StreamHandler {
  /** Settles when the destination has closed the channel; rejects when it did before it had read everything. */
  readonly loaded: Promise<void>;
  readonly #socket: StreamSocket;
  #settle: { resolve(): void; reject(error: unknown): void } | undefined;

  /** Becomes the owner of the connected socket. */
  constructor(fd: Fd) {
    this.loaded = new Promise<void>((resolve, reject) => (this.#settle = { resolve, reject }));
    this.loaded.catch(() => {});
    this.#socket = new StreamSocket(fd, this, QUEUE);
  }

  /** Sends everything, as it came, and that this was all. The descriptors stay the caller's. */
  async send(pieces: readonly CprPiece[]): Promise<void> {
    let plain: Uint8Array[] = [];
    for (const { bytes, fds } of pieces) {
      if (fds.length > 0) {
        this.#socket.send(Buffer.concat(plain));
        plain = [];
        this.#socket.send(bytes, fds);
        // No more than one descriptor waits here at a time: each is open twice while it does.
        await this.#socket.drained();
      } else plain.push(bytes);
    }
    this.#socket.send(Buffer.concat(plain));
    await this.#socket.drained();
    this.#socket.endSending();
  }

  /** QEMU says nothing here. */
  data(): void {}

  ended(): void {
    this.#settle?.resolve();
  }

  lost(error: unknown): void {
    this.#settle?.reject(error);
  }

  /** Before {@link loaded}: the destination finds the list cut off, and ends. */
  close(): void {
    this.#socket.close();
  }
}
