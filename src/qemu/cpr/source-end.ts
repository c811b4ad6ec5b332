// SPDX-License-Identifier: Apache-2.0
/** The end of a CPR channel that a source sends to: takes its list and keeps it, descriptors included, to be passed on. */
import { DevstateError } from '../../errors.js';
import {
  type CprDecoderOptions,
  type CprState,
  CprStateDecoder,
  type UnknownCprPart,
} from '../../formats/index.js';
import { closeAll, type Fd, type StreamHandler, StreamSocket } from '../../transport/index.js';

/** Bytes, with the descriptors that travel with the first of them. */
export interface CprPiece {
  readonly bytes: Uint8Array;
  readonly fds: readonly Fd[];
}

/** Nothing is sent to a source. */
const NO_QUEUE = { maxQueuedBytes: 0 };

export class CprSourceEnd implements StreamHandler {
  /** What came, in order. */
  readonly pieces: CprPiece[] = [];
  /**
   * Settles when the source has sent everything; rejects with DEVSTATE_E_CONTENT_… for what is no such list, or when the
   * connection is lost.
   */
  readonly complete: Promise<void>;
  readonly #decoder: CprStateDecoder;
  readonly #socket: StreamSocket;
  #settle: { resolve(): void; reject(error: unknown): void } | undefined;

  /** Becomes the owner of the connected socket. */
  constructor(fd: Fd, options: CprDecoderOptions) {
    this.#decoder = new CprStateDecoder(options);
    this.complete = new Promise<void>((resolve, reject) => (this.#settle = { resolve, reject }));
    this.complete.catch(() => {});
    this.#socket = new StreamSocket(fd, this, NO_QUEUE);
  }

  get wanted(): number {
    return this.#decoder.wanted;
  }

  data(bytes: Uint8Array, fds: readonly Fd[]): void {
    // Kept first: what the decoder makes of it is said of all that came.
    this.pieces.push({ bytes: bytes.slice(), fds: fds.map((fd) => fd.take()) });
    this.#decoder.push(bytes, fds.length);
  }

  ended(): void {
    this.#decoder.end();
    this.#settle?.resolve();
  }

  lost(error: unknown): void {
    this.#settle?.reject(error);
  }

  /** What was decoded so far. */
  get state(): CprState {
    return this.#decoder.state;
  }

  /** From where on nothing could be decoded. */
  get unknown(): UnknownCprPart | undefined {
    return this.#decoder.unknown;
  }

  /** All bytes. */
  get stream(): Uint8Array {
    return Buffer.concat(this.pieces.map(({ bytes }) => bytes));
  }

  /** All descriptors, in the order in which they came. They stay this object's. */
  get descriptors(): Fd[] {
    return this.pieces.flatMap(({ fds }) => fds);
  }

  /** Closes our descriptors; the source still waits. */
  releaseDescriptors(): void {
    for (const { fds } of this.pieces) closeAll(fds);
  }

  /** Ends it: the source continues, to its destination if that listens now, else as if nothing had been. */
  close(): void {
    this.#socket.close();
    this.releaseDescriptors();
    this.#settle?.reject(new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', 'the CPR channel is closed'));
  }
}
