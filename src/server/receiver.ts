// SPDX-License-Identifier: Apache-2.0
/** A server that takes over from its predecessor: connection, listening sockets, device. */

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
import { closeAll, type Fd, Listener, socketPair } from '../transport/index.js';
import { defaultCapabilities } from '../wire/index.js';
import type { Connection, FrozenConnection } from './connection.js';
import { FdName, handoffOffer, type ServerDocument, serverDocument } from './handoff-messages.js';
import type { HandoffPort } from './handoff-port.js';

/** What the server that is to be makes of what comes. */
export interface SuccessorHost {
  readonly device: HandoffPort;
  readonly socketPath: string;
  readonly migrationSocketPath: string | undefined;
  readonly acceptVmm: (fd: Fd) => void;
  readonly acceptManager: (fd: Fd) => void;
  /** A connection that goes on where the predecessor's stopped. */
  readonly adoptVmm: (fd: Fd, frozen: FrozenConnection) => Connection;
  /** The server is what these make it, from now on. */
  readonly installed: (parts: AdoptedParts) => void;
}

export interface AdoptedParts {
  readonly listener: Listener;
  readonly migrationListener: Listener | undefined;
  readonly vmm: Connection | undefined;
  readonly waiting: Fd[];
  readonly note: Uint8Array;
  readonly generation: number;
  /** From the last the old server did for its VMM to the first that this one does. */
  readonly pauseMs: number;
  /** When that was over, in milliseconds of CLOCK_MONOTONIC. */
  readonly startedAtMs: number;
}

export class ServerReceiver implements Receiver {
  readonly #host: SuccessorHost;
  #generation = 0;

  constructor(host: SuccessorHost) {
    this.#host = host;
  }

  async prepare(offered: unknown): Promise<unknown> {
    const offer = parseHandoff(handoffOffer, offered, 'the offer');
    const { socketPath, migrationSocketPath, device } = this.#host;
    requireSame('--socket', offer.socketPath, socketPath);
    requireSame('--migration-socket', offer.migrationSocketPath, migrationSocketPath ?? null);
    this.#generation = offer.generation;
    await device.rehearse(offer.format);
    await rehearseHandoff();
    this.#rehearseConnection();
    collectYoungGarbage();
    return null;
  }

  /** As the device does: a connection of nobody is adopted and let go of. */
  #rehearseConnection(): void {
    const [ours, theirs] = socketPair();
    theirs.close();
    const frozen = { negotiated: false, peer: defaultCapabilities, dma: undefined, backlog: [] };
    const dma = { maxTransfer: 1, width: 64, twin: false } as const;
    const document: ServerDocument = {
      vmm: { ...frozen, dma, backlog: [{ bytes: '', fds: 0 }] },
      waiting: 0,
      note: '',
      heldAtMs: 0,
      device: null,
    };
    parseHandoff(serverDocument, JSON.parse(JSON.stringify(document)), 'the rehearsal');
    this.#host.adoptVmm(ours, frozen).letGo();
  }

  async adopt(bundle: Bundle): Promise<Adopted> {
    const document = parseHandoff(serverDocument, bundle.document, 'the document');
    const adoption = new Adoption(this.#host, bundle, document, this.#generation);
    try {
      await adoption.run();
    } catch (error) {
      adoption.close();
      throw error;
    }
    return {
      start: () => adoption.start(),
      abandon: async () => {
        adoption.close();
        await this.#host.device.letGo();
      },
    };
  }
}

function requireSame(option: string, theirs: string | null, ours: string | null): void {
  if (theirs === ours) return;
  const message = `the server to be replaced has ${option} ${theirs ?? '(none)'}, its successor was started with ${ours ?? 'none'}: start it with the same`;
  throw new DevstateError('DEVSTATE_E_HANDOFF', message);
}

/** One bundle as it becomes a server: everything is there, and nothing happens before `start`. */
class Adoption {
  readonly #host: SuccessorHost;
  readonly #bundle: Bundle;
  readonly #document: ServerDocument;
  readonly #generation: number;
  readonly #listeners: Listener[] = [];
  readonly #waiting: Fd[] = [];
  #vmm: Connection | undefined;

  constructor(host: SuccessorHost, bundle: Bundle, document: ServerDocument, generation: number) {
    this.#generation = generation;
    this.#host = host;
    this.#bundle = bundle;
    this.#document = document;
  }

  async run(): Promise<void> {
    const { acceptVmm, acceptManager, socketPath, migrationSocketPath, device } = this.#host;
    const { vmm, waiting, device: state } = this.#document;
    this.#adoptListener(FdName.listener, acceptVmm, socketPath);
    if (migrationSocketPath !== undefined)
      this.#adoptListener(FdName.migrationListener, acceptManager, migrationSocketPath);
    for (let index = 0; index < waiting; index++)
      this.#waiting.push(this.#bundle.take(FdName.waiting(index), FdKind.SOCKET));
    if (vmm !== null) {
      const frozen = this.#takeConnection(vmm);
      try {
        this.#vmm = this.#host.adoptVmm(this.#bundle.take(FdName.vmm, FdKind.SOCKET), frozen);
      } catch (error) {
        closeAll([
          ...frozen.backlog.flatMap(({ fds }) => fds),
          ...(frozen.dma?.twin ? [frozen.dma.twin] : []),
        ]);
        throw error;
      }
    }
    await device.adopt(this.#bundle, state, this.#vmm?.dmaPeer);
  }

  #adoptListener(name: string, onConnection: (fd: Fd) => void, path: string): void {
    const listener = Listener.adopt(this.#bundle.take(name, FdKind.LISTENER), onConnection, path);
    listener.pause();
    this.#listeners.push(listener);
  }

  #takeConnection({ negotiated, peer, dma, backlog }: NonNullable<ServerDocument['vmm']>): FrozenConnection {
    let passengers = 0;
    const twin = dma?.twin === true ? this.#bundle.take(FdName.twin, FdKind.SOCKET) : undefined;
    return {
      negotiated,
      peer,
      dma:
        dma === null
          ? undefined
          : { terms: { maxTransfer: dma.maxTransfer, width: dma.width ?? undefined }, twin },
      backlog: backlog.map(({ bytes, fds }) => ({
        bytes: new Uint8Array(Buffer.from(bytes, 'base64')),
        fds: Array.from({ length: fds }, () =>
          this.#bundle.take(FdName.passenger(passengers++), FdKind.PASSENGER),
        ),
      })),
    };
  }

  /** The device first: then it is there when the next message is answered. */
  async start(): Promise<void> {
    const [listener, migrationListener] = this.#listeners;
    if (listener === undefined) return;
    await this.#host.device.start();
    const startedAtMs = monotonicMs();
    this.#host.installed({
      listener,
      migrationListener,
      vmm: this.#vmm,
      waiting: this.#waiting,
      generation: this.#generation,
      note: new Uint8Array(Buffer.from(this.#document.note, 'base64')),
      pauseMs: startedAtMs - this.#document.heldAtMs,
      startedAtMs,
    });
    this.#vmm?.thaw();
    for (const accepting of this.#listeners) accepting.resume();
  }

  /** The predecessor goes on: its paths stay. */
  close(): void {
    this.#vmm?.letGo();
    for (const listener of this.#listeners) listener.close({ keepPath: true });
    closeAll(this.#waiting);
  }
}
