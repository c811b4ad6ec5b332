// SPDX-License-Identifier: Apache-2.0
/** A relay that takes over from another one: listening sockets, the VMM's connection, the server's. */

import { DevstateError } from '../errors.js';
import {
  type Adopted,
  type Bundle,
  collectYoungGarbage,
  FdKind,
  monotonicMs,
  parseHandoff,
  type Receiver,
  rehearseHandoff,
} from '../handoff/index.js';
import { closeAll, type Fd, Listener } from '../transport/index.js';
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
  /** A session that goes on, after `thaw`, where the predecessor's stopped. Takes the fd. */
  readonly adoptVmm: (fd: Fd, from: { document: ReadSession; unpacker: Unpacker }) => Session;
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

/** The options that must be those of the relay that is replaced: clients know it by them. */
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
    const offer = parseHandoff(relayOffer, offered, 'the offer');
    for (const [option, key] of SAME) requireSame(option, offer[key], this.#host.paths[key]);
    this.#generation = offer.generation;
    rehearseSession(this.#host.adoptVmm);
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

function requireSame(option: string, theirs: string | null, ours: string | null): void {
  if (theirs === ours) return;
  const message = `the relay to be replaced has ${option} ${theirs ?? '(none)'}, its successor was started with ${ours ?? 'none'}: start it with the same`;
  throw new DevstateError('DEVSTATE_E_HANDOFF', message);
}

/** One bundle as it becomes a relay: everything is there, and nothing happens before `start`. */
class Adoption {
  readonly #host: SuccessorHost;
  readonly #bundle: Bundle;
  readonly #document: ReadRelay;
  readonly #generation: number;
  readonly #adopted: Listener[] = [];
  readonly #waiting: Fd[] = [];
  #listeners: RelayListeners | undefined;
  #session: Session | undefined;

  constructor(host: SuccessorHost, bundle: Bundle, document: ReadRelay, generation: number) {
    this.#host = host;
    this.#bundle = bundle;
    this.#document = document;
    this.#generation = generation;
  }

  run(): void {
    const { acceptVmm, acceptManager, acceptControl, paths, adoptVmm } = this.#host;
    const { session, waiting } = this.#document;
    const { migrationSocketPath, controlPath } = paths;
    this.#listeners = {
      vmm: this.#listener(FdName.listener, acceptVmm, paths.listenPath),
      manager:
        migrationSocketPath === null
          ? undefined
          : this.#listener(FdName.migrationListener, acceptManager, migrationSocketPath),
      control:
        controlPath === null ? undefined : this.#listener(FdName.controlListener, acceptControl, controlPath),
    };
    for (let index = 0; index < waiting; index++)
      this.#waiting.push(this.#bundle.take(FdName.waiting(index), FdKind.SOCKET));
    if (session === null) return;
    const unpacker = new Unpacker(this.#bundle);
    try {
      this.#session = adoptVmm(unpacker.take(FdKind.SOCKET, FdName.vmm), { document: session, unpacker });
    } finally {
      unpacker.close();
    }
  }

  #listener(name: string, onConnection: (fd: Fd) => void, path: string): Listener {
    const listener = Listener.adopt(this.#bundle.take(name, FdKind.LISTENER), onConnection, path);
    listener.pause();
    this.#adopted.push(listener);
    return listener;
  }

  start(): void {
    if (this.#listeners === undefined) return;
    const startedAtMs = monotonicMs();
    this.#host.installed({
      listeners: this.#listeners,
      session: this.#session,
      waiting: this.#waiting,
      generation: this.#generation,
      pauseMs: startedAtMs - this.#document.heldAtMs,
      startedAtMs,
    });
    this.#session?.thaw();
    for (const listener of this.#adopted) listener.resume();
  }

  /** The predecessor goes on: its paths stay. */
  close(): void {
    this.#session?.letGo();
    for (const listener of this.#adopted) listener.close({ keepPath: true });
    closeAll(this.#waiting);
  }
}
