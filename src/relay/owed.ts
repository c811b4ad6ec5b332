// SPDX-License-Identifier: Apache-2.0
/**
 * What the VMM believes to be done, and servers that are there have yet to do: commands that came while the device was
 * stopped, that could wait no longer for a server, or that another server has carried out.
 */

import { DevstateError } from '../errors.js';
import { closeAll, type Fd } from '../transport/index.js';
import { commandName, HeaderFlag, messageFlags } from '../wire/index.js';
import type { BackEnd } from './back-end.js';
import type { Origin } from './in-flight.js';
import { type Message, type OwnMessage, ownCopy } from './messages.js';

export class Owed {
  readonly #lists = new Map<BackEnd, OwnMessage[]>();

  /** Begins to collect for a server. What it is replayed from then on must not have been noted later. */
  expect(back: BackEnd): void {
    if (!this.#lists.has(back)) this.#lists.set(back, []);
  }

  /** Adds a command for every server but the one that has it; `fds` stay the caller's. */
  add(message: Message, fds: readonly Fd[], done?: BackEnd): void {
    for (const [back, list] of this.#lists)
      if (back !== done)
        list.push(
          ownCopy(
            message,
            fds.map((fd) => fd.duplicate()),
          ),
        );
  }

  /** All for one server, in order; the caller's. */
  take(back: BackEnd): OwnMessage[] {
    return this.#lists.get(back)?.splice(0) ?? [];
  }

  /** Has a server carry out all of it. @throws DEVSTATE_E_REFUSED when it does not */
  async carryOut(back: BackEnd): Promise<void> {
    const refused: number[] = [];
    const origin: Origin = {
      reply: ({ command }, { view }) => {
        if ((messageFlags(view) & HeaderFlag.ERROR) !== 0) refused.push(command);
      },
      lost: () => {},
    };
    for (const message of this.take(back)) back.forward(origin, message, message.fds, false);
    await back.fence();
    if (refused[0] === undefined) return;
    const what = `the device server at ${back.path} refuses ${commandName(refused[0])}`;
    throw new DevstateError('DEVSTATE_E_REFUSED', what);
  }

  forget(back: BackEnd): void {
    for (const { fds } of this.take(back)) closeAll(fds);
    this.#lists.delete(back);
  }

  get servers(): readonly BackEnd[] {
    return [...this.#lists.keys()];
  }
}
