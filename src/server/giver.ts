// SPDX-License-Identifier: Apache-2.0
/**
 * What a server does that hands over to its successor. In this order, so that nothing that the VMM sends is lost or done
 * twice:
 *
 *     commands are held ─▶ the device stops (its DMA by messages is answered still) ─▶ the connection is frozen between
 *     two messages ─▶ the state is captured
 */

import { setTimeout as delay } from 'node:timers/promises';
import { type BundleEntry, FdKind, monotonicMs } from '../handoff/index.js';
import type { FrozenWork, GivenWork } from '../succession/index.js';
import { closeAll } from '../transport/index.js';
import type { Connection } from './connection.js';
import { packConnection } from './connection-bundle.js';
import { FdName, type HandoffOffer, type HandoffRequest, type ServerDocument } from './handoff-messages.js';
import type { HandoffPort } from './handoff-port.js';

/** Longest that the end of a failed handoff is kept from its manager, ms. */
const RESUME_MS = 500;

/** What of a server goes over beside its sockets. As it is at each moment: a VMM may come or leave until the freeze. */
export interface GivenServer {
  readonly device: HandoffPort;
  readonly vmm: Connection | undefined;
  /** What a manager has left. */
  readonly note: Uint8Array;
}

export class ServerWork implements GivenWork {
  readonly name = 'the old server';
  readonly offer: Omit<HandoffOffer, 'generation'>;
  readonly #server: GivenServer;
  readonly #format: HandoffRequest['format'];
  /** Duplicates. */
  readonly #entries: BundleEntry[] = [];
  #vmm: Connection | undefined;
  #begun = false;

  constructor(
    server: GivenServer,
    { format }: HandoffRequest,
    paths: Pick<HandoffOffer, 'socketPath' | 'migrationSocketPath'>,
  ) {
    this.#server = server;
    this.#format = format;
    this.offer = { what: 'device-server', format, ...paths };
  }

  rehearse(): Promise<void> {
    return this.#server.device.practise(this.#format);
  }

  async freeze(signal: AbortSignal): Promise<FrozenWork> {
    const { device, vmm } = this.#server;
    this.#vmm = vmm;
    await device.begin(this.#format);
    this.#begun = true;
    // It took too long, and the server continues without it.
    if (signal.aborted) await device.resume();
    signal.throwIfAborted();
    await vmm?.hold();
    const heldAtMs = monotonicMs();
    signal.throwIfAborted();
    await device.quiesce();
    signal.throwIfAborted();
    const frozen = await vmm?.freeze();
    const connection =
      frozen === undefined
        ? null
        : await packConnection(frozen, (kind, name, fd) => this.#entries.push({ kind, name, fd }));
    signal.throwIfAborted();
    const captured = await device.capture();
    this.#entries.push(...captured.entries);
    signal.throwIfAborted();
    if (vmm !== undefined) this.#entries.push({ kind: FdKind.SOCKET, name: FdName.vmm, fd: vmm.duplicate() });
    const document: Omit<ServerDocument, 'waiting' | 'heldAtMs'> = {
      vmm: connection,
      note: this.#server.note,
      device: captured.document,
    };
    return { entries: this.#entries, document, heldAtMs };
  }

  thaw(): void {
    this.#vmm?.thaw();
  }

  async resume(): Promise<void> {
    if (!this.#begun) return;
    // A device that has not come to a stop yet runs again when it has; nothing waits for that.
    await Promise.race([this.#server.device.resume(), delay(RESUME_MS, undefined, { ref: false })]);
  }

  close(): void {
    closeAll(this.#entries.splice(0).map(({ fd }) => fd));
  }
}
