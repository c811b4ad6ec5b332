// SPDX-License-Identifier: Apache-2.0
/**
 * What a relay does that hands over to another one. Neither the VMM's nor the server's requests are waited for: their
 * connections are frozen between two messages, and what is under way goes along.
 */

import { DevstateError } from '../errors.js';
import { monotonicMs } from '../handoff/index.js';
import type { FrozenWork, GivenWork } from '../succession/index.js';
import type { RelayDocument, RelayOffer } from './handoff-document.js';
import type { ManagerConnection } from './manager-connection.js';
import { Packer } from './packing.js';
import type { Session } from './session.js';

/** What of a relay goes over beside its sockets. As it is at each moment: a VMM or a manager may come or leave until the freeze. */
export interface GivenRelay {
  readonly session: Session | undefined;
  readonly managers: Iterable<ManagerConnection>;
}

export class RelayWork implements GivenWork {
  readonly name = 'the old relay';
  readonly offer: Omit<RelayOffer, 'generation'>;
  readonly #relay: GivenRelay;
  readonly #packer = new Packer();
  #session: Session | undefined;
  #paused: ManagerConnection[] = [];

  constructor(relay: GivenRelay, paths: Omit<RelayOffer, 'what' | 'generation'>) {
    this.#relay = relay;
    this.offer = { what: 'relay', ...paths };
  }

  async freeze(signal: AbortSignal): Promise<FrozenWork> {
    const { managers, session } = this.#relay;
    this.#paused = [...managers];
    for (const manager of this.#paused) manager.pause();
    this.#session = session;
    await session?.freeze(signal);
    const back = session?.servers.back;
    const heldAtMs = monotonicMs();
    const packer = this.#packer;
    const document: Omit<RelayDocument, 'waiting' | 'heldAtMs'> = {
      session: (await session?.capture(packer, signal)) ?? null,
    };
    await packer.seal();
    // Its requests are read until then.
    if (session?.servers.back !== back)
      throw new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', 'the device server has left; try again');
    return { entries: packer.entries, document, heldAtMs };
  }

  thaw(): void {
    this.#session?.thaw();
  }

  resume(): void {
    for (const manager of this.#paused) manager.resume();
  }

  close(): void {
    this.#packer.close();
  }
}
