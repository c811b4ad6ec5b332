// SPDX-License-Identifier: Apache-2.0
/**
 * A process that gives its work to its successor: the sockets of its desk, and what it does there. No other connection is accepted
 * from the freeze on; when it fails those are served first who wait.
 */

import {
  type BundleEntry,
  FdKind,
  type GiveReport,
  type Giver,
  give,
  type Outgoing,
  type PhaseTimeouts,
  rehearseHandoff,
} from '../handoff/index.js';
import { closeAll, connect } from '../transport/index.js';
import { SocketName } from './adopted-sockets.js';
import { type Desk, eachSocket, type PerSocket } from './desk.js';

/** Name of each listening socket in the bundle. */
export const LISTENER_NAMES: PerSocket<string> & { readonly manager: string; readonly control: string } = {
  vmm: SocketName.listener,
  manager: SocketName.migrationListener,
  control: SocketName.controlListener,
};

/** What stands still, to go over. */
export interface FrozenWork {
  readonly entries: readonly BundleEntry[];
  /** See `packDocument`; with `waiting` and `heldAtMs` beside it. */
  readonly document: object;
  /** When the last that came from the VMM had been carried out or passed on, in milliseconds of CLOCK_MONOTONIC. */
  readonly heldAtMs: number;
}

/** What a process does that a successor is to continue. */
export interface GivenWork {
  /** What the successor receives first; becomes JSON. */
  readonly offer: object;
  /** What the process is called in errors. */
  readonly name: string;
  /** While it works. */
  rehearse?(): Promise<void>;
  /** Stops. Must do nothing more once `signal` aborts. @throws to continue, by `thaw` and `resume` */
  freeze(signal: AbortSignal): Promise<FrozenWork>;
  /** Continues, from wherever `freeze` has come to: what a VMM waits for. Must not fail. */
  thaw(): void;
  /** The rest of that, when new clients are accepted again. */
  resume(): void | Promise<void>;
  /** Closes what was made for the bundle. */
  close(): void;
}

class WorkGiver implements Giver {
  readonly offer: object;
  readonly #desk: Desk;
  readonly #work: GivenWork;
  readonly #copies: BundleEntry[] = [];

  constructor(desk: Desk, work: GivenWork) {
    this.offer = { ...work.offer, generation: desk.nextGeneration };
    this.#desk = desk;
    this.#work = work;
  }

  /** A process that has run for weeks does all this for the first time, or as if it were. */
  async prepare(): Promise<void> {
    await this.#work.rehearse?.();
    await rehearseHandoff();
  }

  async freeze(_answer: unknown, signal: AbortSignal): Promise<Outgoing> {
    this.#desk.pause();
    const { entries, document, heldAtMs } = await this.#freezeWork(signal);
    const { listeners, waiting } = this.#desk.sockets;
    eachSocket(listeners, (listener, role) =>
      this.#copies.push({ kind: FdKind.LISTENER, name: LISTENER_NAMES[role], fd: listener.duplicate() }),
    );
    for (const [index, fd] of waiting.entries())
      this.#copies.push({ kind: FdKind.SOCKET, name: SocketName.waiting(index), fd: fd.duplicate() });
    return {
      entries: [...entries, ...this.#copies],
      document: { ...document, waiting: waiting.length, heldAtMs },
    };
  }

  /** One that ends after it was given up, and `close` was called, closes what it has made since. */
  async #freezeWork(signal: AbortSignal): Promise<FrozenWork> {
    try {
      const frozen = await this.#work.freeze(signal);
      signal.throwIfAborted();
      return frozen;
    } catch (error) {
      this.#work.close();
      throw error;
    }
  }

  async thaw(): Promise<void> {
    this.close();
    this.#work.thaw();
    this.#desk.resume();
    await this.#work.resume();
  }

  close(): void {
    closeAll(this.#copies.splice(0).map(({ fd }) => fd));
    this.#work.close();
  }
}

/** What a manager asks for: hand over to the process that listens at `socket`. */
export interface GiveRequest {
  readonly socket: string;
  readonly timeouts?: Partial<PhaseTimeouts>;
}

/**
 * Hands a process's work over. Afterwards the caller releases what went over.
 * @throws HandoffError when the process continues, DEVSTATE_E_CONNECT
 */
export async function giveWork(
  desk: Desk,
  work: GivenWork,
  { socket, timeouts = {} }: GiveRequest,
): Promise<GiveReport> {
  const giver = new WorkGiver(desk, work);
  try {
    const generation = desk.nextGeneration;
    return await give(await connect(socket), giver, { timeouts, generation, name: work.name });
  } finally {
    giver.close();
  }
}
