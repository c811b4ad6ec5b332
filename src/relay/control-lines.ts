// SPDX-License-Identifier: Apache-2.0
/** Lines of text from a socket, one after the other, of a bounded length. */

import type { Socket } from 'node:net';
import { DevstateError } from '../errors.js';

/** Longest line, characters. */
const MAX_LINE = 64 * 1024;
/** Lines that may wait. */
const MAX_LINES = 64;

interface Waiter {
  resolve(line: string | undefined): void;
  reject(error: DevstateError): void;
}

export class LineReader {
  #text = '';
  readonly #lines: string[] = [];
  #waiter: Waiter | undefined;
  #error: DevstateError | undefined;
  #ended = false;

  constructor(socket: Socket) {
    socket.setEncoding('utf8');
    socket.on('data', (part: string) => {
      this.#text += part;
      const lines = this.#text.split('\n');
      this.#text = lines.pop() ?? '';
      this.#lines.push(...lines);
      if (this.#text.length > MAX_LINE || this.#lines.length > MAX_LINES) {
        const message = `more than ${MAX_LINES} lines, or one of more than ${MAX_LINE} characters`;
        this.#error = new DevstateError('DEVSTATE_E_PROTOCOL', message);
        socket.destroy();
      }
      this.#settle();
    });
    socket.on('error', ({ message }) => {
      this.#error ??= new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', `the control connection: ${message}`);
    });
    socket.on('end', () => this.#end());
    socket.on('close', () => this.#end());
  }

  /** The next line; undefined when there is none any more. @throws DEVSTATE_E_PROTOCOL, DEVSTATE_E_CONNECTION_CLOSED */
  next(): Promise<string | undefined> {
    return new Promise((resolve, reject) => {
      this.#waiter = { resolve, reject };
      this.#settle();
    });
  }

  #end(): void {
    this.#ended = true;
    this.#settle();
  }

  #settle(): void {
    const waiter = this.#waiter;
    if (waiter === undefined) return;
    if (this.#lines.length > 0) waiter.resolve(this.#lines.shift());
    else if (this.#error !== undefined) waiter.reject(this.#error);
    else if (this.#ended) waiter.resolve(undefined);
    else return;
    this.#waiter = undefined;
  }
}
