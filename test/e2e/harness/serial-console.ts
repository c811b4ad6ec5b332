// SPDX-License-Identifier: Apache-2.0
/** The far end of a guest's serial console: what the guest printed, line by line, and a way to type. */
import { EventEmitter } from 'node:events';
import { createServer, type Server, type Socket } from 'node:net';
import { LineSplitter } from '../../../src/qemu/line-splitter.js';

const MAX_LINE_BYTES = 1 << 16;

/** A line that matched, and where the search may continue. */
export interface ConsoleMatch {
  readonly match: RegExpExecArray;
  /** Index of the line after it in {@link SerialConsole.lines}. */
  readonly next: number;
}

/** Listens for QEMU to connect, so that nothing the guest prints is lost. */
export class SerialConsole {
  /** All complete lines so far. */
  readonly lines: string[] = [];
  /** More about the machine, for the error of a wait in vain. */
  diagnose: (() => Promise<string>) | undefined;
  #lastLineAt = performance.now();
  readonly #server: Server;
  readonly #emitter = new EventEmitter<{ line: []; ended: [Error] }>();
  #socket: Socket | undefined;
  #ended: Error | undefined;

  constructor(path: string) {
    this.#emitter.setMaxListeners(0);
    this.#server = createServer((socket) => {
      this.#socket = socket;
      const lines = LineSplitter.of(socket, MAX_LINE_BYTES);
      lines.onLine = (line) => {
        this.lines.push(line);
        this.#lastLineAt = performance.now();
        this.#emitter.emit('line');
      };
      // A QEMU that is killed resets the connection; its exit is reported by end().
      socket.on('error', () => {});
    });
    this.#server.listen(path);
  }

  /** Types a line into the guest. */
  write(line: string): void {
    this.#socket?.write(`${line}\n`);
  }

  /**
   * The first line that matches, from index `from` on (default: the first line ever); lines to come included.
   * Rejects when QEMU ends, or after `timeoutMs`, with the console's last lines.
   */
  async waitFor(
    pattern: RegExp,
    { from = 0, timeoutMs = 60_000 }: { from?: number; timeoutMs?: number } = {},
  ): Promise<ConsoleMatch> {
    let index = from;
    return new Promise<ConsoleMatch>((resolve, reject) => {
      const finish = (error: Error | undefined, found?: ConsoleMatch) => {
        clearTimeout(timer);
        this.#emitter.off('line', search).off('ended', finish);
        if (found !== undefined) resolve(found);
        else void this.#describe(pattern, error).then(reject);
      };
      const search = () => {
        for (; index < this.lines.length; index++) {
          const match = pattern.exec(this.lines[index] ?? '');
          if (match !== null) return finish(undefined, { match, next: index + 1 });
        }
      };
      const timer = setTimeout(() => finish(new Error(`not within ${timeoutMs} ms`)), timeoutMs);
      this.#emitter.on('line', search).once('ended', finish);
      search();
      if (this.#ended !== undefined) finish(this.#ended);
    });
  }

  /** No more lines will come. */
  end(reason: Error): void {
    this.#ended = reason;
    this.#server.close();
    this.#socket?.destroy();
    this.#emitter.emit('ended', reason);
  }

  async #describe(pattern: RegExp, error: Error | undefined): Promise<Error> {
    const tail = this.lines.slice(-15).join('\n');
    const quiet = Math.round(performance.now() - this.#lastLineAt);
    const more = (this.#ended === undefined && (await this.diagnose?.())) || '';
    return new Error(
      `guest console: no line ${pattern}: ${error?.message}\n${tail}\n(the last one ${quiet} ms before)\n${more}`,
    );
  }
}
