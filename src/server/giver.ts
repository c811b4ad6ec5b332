// SPDX-License-Identifier: Apache-2.0
/**
 * A server that hands over to its successor. In this order, so that nothing that the VMM sends is lost or done twice:
 *
 *     commands are held ─▶ the device stops (its DMA by messages is answered still) ─▶ the connection is frozen between
 *     two messages ─▶ the state is captured
 */

import { setTimeout as delay } from 'node:timers/promises';
import {
  type BundleEntry,
  FdKind,
  type GiveReport,
  type Giver,
  give,
  monotonicMs,
  type Outgoing,
  rehearseHandoff,
} from '../handoff/index.js';
import { closeAll, connect, type Fd, type Listener } from '../transport/index.js';
import type { Connection } from './connection.js';
import { packConnection } from './connection-bundle.js';
import { FdName, type HandoffOffer, type HandoffRequest, type ServerDocument } from './handoff-messages.js';
import type { HandoffPort } from './handoff-port.js';

/** Longest that the end of a failed handoff is kept from its manager, ms. */
const RESUME_MS = 500;

/** What of a server goes over. Nothing of it changes while it is handed over. */
export interface HandedOver {
  readonly device: HandoffPort;
  readonly vmm: Connection | undefined;
  readonly listener: Listener;
  readonly migrationListener: Listener | undefined;
  readonly socketPath: string;
  readonly migrationSocketPath: string | undefined;
  readonly waiting: readonly Fd[];
  readonly note: Uint8Array;
  /** Of the successor: 1 for the first. */
  readonly generation: number;
}

class ServerGiver implements Giver {
  readonly offer: HandoffOffer;
  readonly #server: HandedOver;
  readonly #request: HandoffRequest;
  /** Duplicates, closed when the handoff has ended. */
  readonly #entries: BundleEntry[] = [];
  #begun = false;

  constructor(server: HandedOver, request: HandoffRequest) {
    this.#server = server;
    this.#request = request;
    this.offer = {
      what: 'device-server',
      generation: server.generation,
      format: request.format,
      socketPath: server.socketPath,
      migrationSocketPath: server.migrationSocketPath ?? null,
    };
  }

  /** A server that has run for weeks does all this for the first time, or as if it were. */
  async prepare(): Promise<void> {
    await this.#server.device.practise(this.#request.format);
    await rehearseHandoff();
  }

  async freeze(_answer: unknown, signal: AbortSignal): Promise<Outgoing> {
    try {
      return await this.#freeze(signal);
    } catch (error) {
      this.closeCopies();
      throw error;
    }
  }

  async #freeze(signal: AbortSignal): Promise<Outgoing> {
    const { device, listener, migrationListener } = this.#server;
    // Nobody else is to come from here on.
    listener.pause();
    migrationListener?.pause();
    const { vmm } = this.#server;
    await device.begin(this.#request.format);
    this.#begun = true;
    // It took too long, and the server went on without it.
    if (signal.aborted) await device.resume();
    signal.throwIfAborted();
    await vmm?.hold();
    const heldAtMs = monotonicMs();
    signal.throwIfAborted();
    await device.quiesce();
    signal.throwIfAborted();
    const frozen = await vmm?.freeze();
    const connection =
      frozen === undefined ? null : packConnection(frozen, (kind, name, fd) => this.#add(kind, name, fd));
    signal.throwIfAborted();
    const captured = await device.capture();
    this.#entries.push(...captured.entries);
    signal.throwIfAborted();
    const document: ServerDocument = {
      vmm: connection,
      waiting: this.#server.waiting.length,
      note: Buffer.from(this.#server.note).toString('base64'),
      heldAtMs,
      device: captured.document,
    };
    this.#captureSockets(vmm);
    return { entries: this.#entries, document };
  }

  #add(kind: FdKind, name: string, fd: Fd): void {
    this.#entries.push({ kind, name, fd });
  }

  #captureSockets(vmm: Connection | undefined): void {
    const { listener, migrationListener, waiting } = this.#server;
    if (vmm !== undefined) this.#add(FdKind.SOCKET, FdName.vmm, vmm.duplicate());
    this.#add(FdKind.LISTENER, FdName.listener, listener.duplicate());
    if (migrationListener !== undefined)
      this.#add(FdKind.LISTENER, FdName.migrationListener, migrationListener.duplicate());
    for (const [index, fd] of waiting.entries())
      this.#add(FdKind.SOCKET, FdName.waiting(index), fd.duplicate());
  }

  async thaw(): Promise<void> {
    const { device, vmm, listener, migrationListener } = this.#server;
    this.closeCopies();
    // First those who wait.
    vmm?.thaw();
    listener.resume();
    migrationListener?.resume();
    if (!this.#begun) return;
    // A device that has not come to a stop yet runs again when it has; nobody is to wait for that.
    await Promise.race([device.resume(), delay(RESUME_MS, undefined, { ref: false })]);
  }

  closeCopies(): void {
    closeAll(this.#entries.splice(0).map(({ fd }) => fd));
  }
}

/**
 * Hands a server over, as asked. Afterwards the caller lets go of what went over.
 * @throws HandoffError when the server goes on
 */
export async function giveServer(server: HandedOver, request: HandoffRequest): Promise<GiveReport> {
  const giver = new ServerGiver(server, request);
  try {
    const socket = await connect(request.socket);
    const { timeouts = {} } = request;
    return await give(socket, giver, {
      timeouts,
      generation: server.generation,
      name: 'the old server',
    });
  } finally {
    giver.closeCopies();
  }
}
