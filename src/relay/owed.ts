// SPDX-License-Identifier: Apache-2.0
/**
 * What the VMM was told is done, and servers that are there have yet to be told: commands that came while the device was
 * stopped, or that could wait no longer for a server.
 */

import { closeAll, type Fd } from '../transport/index.js';
import type { BackEnd } from './back-end.js';
import { type Message, type OwnMessage, ownCopy } from './messages.js';

export class Owed {
  readonly #lists = new Map<BackEnd, OwnMessage[]>();

  /** Begins to collect for a server. What it is replayed from then on must not have been noted later. */
  expect(back: BackEnd): void {
    if (!this.#lists.has(back)) this.#lists.set(back, []);
  }

  /** Adds a command for every server; `fds` stay the caller's. */
  add(message: Message, fds: readonly Fd[]): void {
    for (const list of this.#lists.values())
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

  forget(back: BackEnd): void {
    for (const { fds } of this.take(back)) closeAll(fds);
    this.#lists.delete(back);
  }

  get servers(): readonly BackEnd[] {
    return [...this.#lists.keys()];
  }
}
