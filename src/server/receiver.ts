// SPDX-License-Identifier: Apache-2.0
/** A server that takes over from its predecessor: connection, listening sockets, device. */

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
import { closeAll, type Fd, type Listener } from '../transport/index.js';
import type { Connection, FrozenConnection } from './connection.js';
import { unpackConnection } from './connection-bundle.js';
import { FdName, handoffOffer, type ServerDocument, serverDocument } from './handoff-messages.js';
import type { HandoffPort } from './handoff-port.js';
import { rehearseConnection } from './rehearsal.js';

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
    requireKind('device-server', offered);
    const offer = parseHandoff(handoffOffer, offered, 'the offer');
    const { socketPath, migrationSocketPath, device } = this.#host;
    requireSameOption('server', '--socket', offer.socketPath, socketPath);
    requireSameOption('server', '--migration-socket', offer.migrationSocketPath, migrationSocketPath ?? null);
    this.#generation = offer.generation;
    await device.rehearse(offer.format);
    await rehearseHandoff();
    await rehearseConnection(this.#host.adoptVmm);
    collectYoungGarbage();
    return null;
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

/** One bundle as it becomes a server: everything is there, and nothing happens before `start`. */
class Adoption {
  readonly #host: SuccessorHost;
  readonly #bundle: Bundle;
  readonly #document: ServerDocument;
  readonly #generation: number;
  readonly #sockets: AdoptedSockets;
  #listeners: Pick<AdoptedParts, 'listener' | 'migrationListener'> | undefined;
  #vmm: Connection | undefined;

  constructor(host: SuccessorHost, bundle: Bundle, document: ServerDocument, generation: number) {
    this.#generation = generation;
    this.#host = host;
    this.#bundle = bundle;
    this.#document = document;
    this.#sockets = new AdoptedSockets(bundle);
  }

  async run(): Promise<void> {
    const { acceptVmm, acceptManager, socketPath, migrationSocketPath, device } = this.#host;
    const { vmm, waiting, device: state } = this.#document;
    const sockets = this.#sockets;
    this.#listeners = {
      listener: sockets.takeListener(FdName.listener, socketPath, acceptVmm),
      migrationListener:
        migrationSocketPath === undefined
          ? undefined
          : sockets.takeListener(FdName.migrationListener, migrationSocketPath, acceptManager),
    };
    sockets.takeWaiting(waiting);
    if (vmm !== null) {
      const frozen = unpackConnection(vmm, this.#bundle);
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

  /** The device first: then it is there when the next message is answered. */
  async start(): Promise<void> {
    if (this.#listeners === undefined) return;
    await this.#host.device.start();
    const startedAtMs = monotonicMs();
    this.#host.installed({
      ...this.#listeners,
      vmm: this.#vmm,
      waiting: this.#sockets.waiting,
      generation: this.#generation,
      note: new Uint8Array(Buffer.from(this.#document.note, 'base64')),
      pauseMs: startedAtMs - this.#document.heldAtMs,
      startedAtMs,
    });
    this.#vmm?.thaw();
    this.#sockets.resume();
  }

  /** The predecessor goes on. */
  close(): void {
    this.#vmm?.letGo();
    this.#sockets.close();
  }
}
