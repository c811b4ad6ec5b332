// SPDX-License-Identifier: Apache-2.0
/**
 * A relay that hands over to another one. Nothing of the VMM's or the server's is waited for: their connections are
 * frozen between two messages, and what is under way goes along.
 */

import {
  FdKind,
  type GiveReport,
  type Giver,
  give,
  monotonicMs,
  type Outgoing,
  rehearseHandoff,
} from '../handoff/index.js';
import { connect, type Fd, type Listener } from '../transport/index.js';
import { FdName, type HandOverRequest, type RelayDocument, type RelayOffer } from './handoff-document.js';
import type { ManagerConnection } from './manager-connection.js';
import { Packer } from './packing.js';
import type { Session } from './session.js';

/** Where a relay listens; undefined where it does not. */
export interface RelayListeners {
  readonly vmm: Listener;
  readonly manager: Listener | undefined;
  readonly control: Listener | undefined;
}

/** What of a relay goes over. Seen as it is at each moment: a VMM or a manager may come or go until the freeze. */
export interface HandedOver {
  readonly offer: RelayOffer;
  readonly listeners: RelayListeners;
  readonly session: Session | undefined;
  readonly managers: Iterable<ManagerConnection>;
  readonly waiting: readonly Fd[];
}

class RelayGiver implements Giver {
  readonly offer: RelayOffer;
  readonly #relay: HandedOver;
  readonly #packer = new Packer();
  #session: Session | undefined;
  #paused: ManagerConnection[] = [];

  constructor(relay: HandedOver) {
    this.#relay = relay;
    this.offer = relay.offer;
  }

  prepare(): Promise<void> {
    return rehearseHandoff();
  }

  async freeze(_answer: unknown, signal: AbortSignal): Promise<Outgoing> {
    const { listeners, managers, session, waiting } = this.#relay;
    // Nobody else is to come from here on, and managers ask for nothing more.
    for (const listener of Object.values(listeners)) listener?.pause();
    this.#paused = [...managers];
    for (const manager of this.#paused) manager.pause();
    this.#session = session;
    await session?.freeze(signal);
    const heldAtMs = monotonicMs();
    const packer = this.#packer;
    const { vmm, manager, control } = listeners;
    packer.addOwn(FdKind.LISTENER, FdName.listener, vmm.duplicate());
    if (manager !== undefined) packer.addOwn(FdKind.LISTENER, FdName.migrationListener, manager.duplicate());
    if (control !== undefined) packer.addOwn(FdKind.LISTENER, FdName.controlListener, control.duplicate());
    for (const [index, fd] of waiting.entries()) packer.add(FdKind.SOCKET, FdName.waiting(index), fd);
    const document: RelayDocument = {
      session: session?.capture(packer) ?? null,
      waiting: waiting.length,
      heldAtMs,
    };
    packer.seal();
    return { entries: packer.entries, document };
  }

  async thaw(): Promise<void> {
    this.close();
    // First those who wait.
    this.#session?.thaw();
    for (const listener of Object.values(this.#relay.listeners)) listener?.resume();
    for (const manager of this.#paused) manager.resume();
  }

  close(): void {
    this.#packer.close();
  }
}

/**
 * Hands a relay over, as asked. Afterwards the caller lets go of what went over.
 * @throws HandoffError when the relay goes on, DEVSTATE_E_CONNECT
 */
export async function giveRelay(
  relay: HandedOver,
  { socket, timeouts = {} }: HandOverRequest,
): Promise<GiveReport> {
  const giver = new RelayGiver(relay);
  try {
    const { generation } = relay.offer;
    return await give(await connect(socket), giver, { timeouts, generation, name: 'the old relay' });
  } finally {
    giver.close();
  }
}
