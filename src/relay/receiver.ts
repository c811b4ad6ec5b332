// SPDX-License-Identifier: Apache-2.0
/** A relay that takes over from another one: listening sockets, the VMM's connection, the server's. */

import {
  type Adopted,
  AdoptedSockets,
  type Bundle,
  collectYoungGarbage,
  FdKind,
  monotonicMs,
  parseHandoff,
  type Receiver,
  rehearseHandoff,
  requireKind,
  requireSameOption,
} from '../handoff/index.js';
import type { Fd } from '../transport/index.js';
import type { RelayListeners } from './giver.js';
import {
  FdName,
  type ReadRelay,
  type ReadSession,
  type RelayOffer,
  relayDocument,
  relayOffer,
} from './handoff-document.js';
import { Unpacker } from './packing.js';
import { rehearseSession } from './rehearsal.js';
import type { Session } from './session.js';

/** What the relay that is to be makes of what comes. */
export interface SuccessorHost {
  /** The relay's own paths, as it would offer them. */
  readonly paths: Omit<RelayOffer, 'what' | 'generation'>;
  readonly acceptVmm: (fd: Fd) => void;
  readonly acceptManager: (fd: Fd) => void;
  readonly acceptControl: (fd: Fd) => void;
  /** A VMM's session: the predecessor's, which continues after `thaw`, or without `from` a new one. Takes the fd. */
  readonly newSession: (fd: Fd, from?: { document: ReadSession; unpacker: Unpacker }) => Session;
  /** The relay is what these make it, from now on. */
  readonly installed: (parts: AdoptedParts) => void;
}

export interface AdoptedParts {
  readonly listeners: RelayListeners;
  readonly session: Session | undefined;
  readonly waiting: Fd[];
  readonly generation: number;
  /** From the last message that the old relay passed on to the first that this one may. */
  readonly pauseMs: number;
  /** When that was over, in milliseconds of CLOCK_MONOTONIC. */
  readonly startedAtMs: number;
}

/** The options that must be those of the relay that is replaced. */
const SAME = [
  ['--listen', 'listenPath'],
  ['--server', 'serverPath'],
  ['--migration-socket', 'migrationSocketPath'],
  ['--control', 'controlPath'],
] as const;

export class RelayReceiver implements Receiver {
  readonly #host: SuccessorHost;
  #generation = 0;

  constructor(host: SuccessorHost) {
    this.#host = host;
  }

  async prepare(offered: unknown): Promise<unknown> {
    requireKind('relay', offered);
    const offer = parseHandoff(relayOffer, offered, 'the offer');
    for (const [option, key] of SAME) requireSameOption('relay', option, offer[key], this.#host.paths[key]);
    this.#generation = offer.generation;
    rehearseSession(this.#host.newSession);
    await rehearseHandoff();
    collectYoungGarbage();
    return null;
  }

  async adopt(bundle: Bundle): Promise<Adopted> {
    const document = parseHandoff(relayDocument, bundle.document, 'the document');
    const adoption = new Adoption(this.#host, bundle, document, this.#generation);
    try {
      adoption.run();
    } catch (error) {
      adoption.close();
      throw error;
    }
    return { start: () => adoption.start(), abandon: () => adoption.close() };
  }
}

/** One bundle as it becomes a relay: everything is there, and nothing happens before `start`. */
class Adoption {
  readonly #host: SuccessorHost;
  readonly #bundle: Bundle;
  readonly #document: ReadRelay;
  readonly #generation: number;
  readonly #sockets: AdoptedSockets;
  #listeners: RelayListeners | undefined;
  #session: Session | undefined;

  constructor(host: SuccessorHost, bundle: Bundle, document: ReadRelay, generation: number) {
    this.#host = host;
    this.#bundle = bundle;
    this.#document = document;
    this.#generation = generation;
    this.#sockets = new AdoptedSockets(bundle);
  }

  run(): void {
    const { acceptVmm, acceptManager, acceptControl, paths, newSession } = this.#host;
    const { session, waiting } = this.#document;
    const { migrationSocketPath, controlPath } = paths;
    const sockets = this.#sockets;
    this.#listeners = {
      vmm: sockets.takeListener(FdName.listener, paths.listenPath, acceptVmm),
      manager:
        migrationSocketPath === null
          ? undefined
          : sockets.takeListener(FdName.migrationListener, migrationSocketPath, acceptManager),
      control:
        controlPath === null
          ? undefined
          : sockets.takeListener(FdName.controlListener, controlPath, acceptControl),
    };
    sockets.takeWaiting(waiting);
    if (session === null) return;
    const unpacker = new Unpacker(this.#bundle);
    try {
      this.#session = newSession(unpacker.take(FdKind.SOCKET, FdName.vmm), { document: session, unpacker });
    } finally {
      unpacker.close();
    }
  }

  start(): void {
    if (this.#listeners === undefined) return;
    const startedAtMs = monotonicMs();
    this.#host.installed({
      listeners: this.#listeners,
      session: this.#session,
      waiting: this.#sockets.waiting,
      generation: this.#generation,
      pauseMs: startedAtMs - this.#document.heldAtMs,
      startedAtMs,
    });
    this.#session?.thaw();
    this.#sockets.resume();
  }

  /** The predecessor goes on. */
  close(): void {
    this.#session?.letGo();
    this.#sockets.close();
  }
}
