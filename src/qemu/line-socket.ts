// SPDX-License-Identifier: Apache-2.0
/** Lines over a UNIX socket, to which file descriptors can be attached. What QMP is spoken over. */
import { connect, type Fd, StreamSocket } from '../transport/index.js';
import { LineSplitter } from './line-splitter.js';

/** What may wait to be sent: commands are short. */
const QUEUE = { maxQueuedBytes: 8 << 20 };

export class LineSocket {
  /** Lines, without their end. */
  onLine: (line: string) => void = () => {};
  /** A line longer than the bound came; nothing more is read. */
  onOverflow: () => void = () => {};
  readonly #socket: StreamSocket;
  #onEnd: (why: string, cause?: unknown) => void = () => {};
  #ended: { readonly why: string; readonly cause?: unknown } | undefined;

  /** Becomes the owner of a connected socket. */
  constructor(fd: Fd, maxLineBytes: number) {
    const lines = new LineSplitter(maxLineBytes);
    lines.onLine = (line) => this.onLine(line);
    lines.onOverflow = () => this.onOverflow();
    const handler = {
      // No one here expects descriptors: they are closed.
      data: (bytes: Uint8Array) => lines.push(Buffer.from(bytes)),
      ended: () => this.#end('it closed the connection'),
      lost: (error: unknown) => this.#end(error instanceof Error ? error.message : String(error), error),
    };
    this.#socket = new StreamSocket(fd, handler, QUEUE);
  }

  /** @throws DEVSTATE_E_CONNECT, or the signal's reason */
  static async connect(
    path: string,
    maxLineBytes: number,
    { timeoutMs, signal }: { timeoutMs: number; signal: AbortSignal },
  ): Promise<LineSocket> {
    const fd = await connect(path, timeoutMs);
    if (signal.aborted) fd.close();
    signal.throwIfAborted();
    return new LineSocket(fd, maxLineBytes);
  }

  /** The process that listened when this connected; 0 if it is in a namespace that we do not see. */
  get peerPid(): number {
    return this.#socket.peerCredentials.pid;
  }

  /** Called when the peer ends it, also if it already has: why. */
  set onEnd(listener: (why: string, cause?: unknown) => void) {
    this.#onEnd = listener;
    if (this.#ended !== undefined) listener(this.#ended.why, this.#ended.cause);
  }

  #end(why: string, cause?: unknown): void {
    this.#ended = { why, cause };
    this.#onEnd(why, cause);
  }

  /** Sends a line; `fds`, which stay the caller's, travel with its first byte. */
  write(line: string, fds?: readonly Fd[]): void {
    this.#socket.send(Buffer.from(`${line}\n`), fds);
  }

  close(): void {
    this.#socket.close();
  }
}
