// SPDX-License-Identifier: Apache-2.0
/** Commands of servers (DMA_READ, DMA_WRITE) that the VMM has not answered yet, by ids that no two of them share. */

import type { Frame } from '../transport/index.js';
import { messageId } from '../wire/index.js';
import type { BackEnd } from './back-end.js';
import type { Message } from './messages.js';

const IDS = 0x10000;

export interface CapturedCommands {
  readonly nextId: number;
  /** The id at the VMM, and the server's own. */
  readonly waiting: readonly (readonly [number, number])[];
}

export class ServerCommands {
  readonly #waiting = new Map<number, { readonly back: BackEnd; readonly id: number }>();
  #nextId = 0;

  /** Gives a command the id under which it goes to the VMM. @returns false when there is none left */
  enter(back: BackEnd, { view }: Frame): boolean {
    if (this.#waiting.size >= IDS) return false;
    let id = this.#nextId;
    while (this.#waiting.has(id)) id = (id + 1) % IDS;
    this.#nextId = (id + 1) % IDS;
    this.#waiting.set(id, { back, id: messageId(view) });
    view.setUint16(0, id, true);
    return true;
  }

  /** Passes the VMM's reply on. What a server that is gone had asked for is of no use any more. */
  answer(message: Message): void {
    const id = messageId(message.view);
    const waiting = this.#waiting.get(id);
    if (waiting === undefined) return;
    this.#waiting.delete(id);
    message.view.setUint16(0, waiting.id, true);
    waiting.back.answer(message);
  }

  /** Those of one server, for another relay. */
  capture(back: BackEnd): CapturedCommands {
    const waiting = [...this.#waiting].filter(([, command]) => command.back === back);
    return { nextId: this.#nextId, waiting: waiting.map(([id, command]) => [id, command.id]) };
  }

  restore(back: BackEnd, { nextId, waiting }: CapturedCommands): void {
    this.#nextId = nextId;
    for (const [id, theirs] of waiting) this.#waiting.set(id, { back, id: theirs });
  }

  forget(back: BackEnd): void {
    for (const [id, waiting] of this.#waiting) if (waiting.back === back) this.#waiting.delete(id);
  }
}
