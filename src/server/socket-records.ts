// SPDX-License-Identifier: Apache-2.0
/** The sockets of a server with a crash journal: which kept fd is which, and what was agreed on with the VMM. */

import { journalError } from '../journal/index.js';
import type { Fd, Listener } from '../transport/index.js';
import { capabilitiesSchema, defaultCapabilities } from '../wire/index.js';
import * as z from '../zod.js';
import type { FrozenConnection } from './connection.js';
import { type CrashJournal, ServerSlot } from './crash-journal.js';

const number = z.number().int().positive().nullable();
const socketsSchema = z.object({ listener: number, migrationListener: number, vmm: number });
type Sockets = z.infer<typeof socketsSchema>;

export interface RecoveredSockets {
  readonly listener: Fd;
  readonly migrationListener: Fd | undefined;
  readonly vmm: { readonly fd: Fd; readonly frozen: FrozenConnection } | undefined;
}

export class SocketRecords {
  readonly #crash: CrashJournal;
  readonly #socketsSlot: number;
  readonly #connectionSlot: number;
  #sockets: Sockets = { listener: null, migrationListener: null, vmm: null };

  constructor(crash: CrashJournal) {
    this.#crash = crash;
    this.#socketsSlot = crash.journal.slot(ServerSlot.sockets.name);
    this.#connectionSlot = crash.journal.slot(ServerSlot.connection.name);
  }

  /** A predecessor's. @throws DEVSTATE_E_JOURNAL when they are not there */
  recover(): RecoveredSockets {
    const { store } = this.#crash;
    const sockets = socketsSchema.parse(this.#read(this.#socketsSlot));
    if (sockets.listener === null) throw journalError('the listening socket was not kept');
    this.#sockets = sockets;
    const { listener, migrationListener, vmm } = sockets;
    return {
      listener: store.take(listener),
      migrationListener: migrationListener === null ? undefined : store.take(migrationListener),
      // A service manager drops a connection whose other end has left.
      vmm: vmm === null || !store.has(vmm) ? undefined : { fd: store.take(vmm), frozen: this.#frozen() },
    };
  }

  #frozen(): FrozenConnection {
    const peer = capabilitiesSchema.nullable().parse(this.#read(this.#connectionSlot));
    return {
      negotiated: peer !== null,
      peer: peer ?? defaultCapabilities,
      dma: undefined,
      backlog: [],
    };
  }

  #read(slot: number): unknown {
    const bytes = this.#crash.journal.get(slot);
    return bytes === undefined ? null : JSON.parse(Buffer.from(bytes).toString());
  }

  /** The server listens. */
  listening(listener: Listener, migrationListener: Listener | undefined): void {
    this.#crash.transactions.run(() => {
      this.#sockets.listener = this.#keep(listener);
      if (migrationListener !== undefined) this.#sockets.migrationListener = this.#keep(migrationListener);
      this.#put();
    });
  }

  #keep(listener: Listener): number {
    const copy = listener.duplicate();
    try {
      return this.#crash.store.put(copy);
    } finally {
      copy.close();
    }
  }

  /** A VMM has connected: before anything is received from it. */
  vmmConnected(fd: Fd): void {
    // First of all: the bytes of the connection before are not to be taken for this one's.
    this.#crash.journal.exchange.reset();
    this.#crash.transactions.run(() => {
      this.#sockets.vmm = this.#crash.store.put(fd);
      this.#put();
      this.#crash.journal.put(this.#connectionSlot, Buffer.from('null'));
    });
  }

  /** It has left, and the device has been told. */
  vmmLeft(): void {
    const { vmm } = this.#sockets;
    if (vmm === null) return;
    this.#sockets.vmm = null;
    this.#crash.transactions.run(() => {
      this.#put();
      this.#crash.store.drop(vmm);
    });
  }

  #put(): void {
    this.#crash.journal.put(this.#socketsSlot, Buffer.from(JSON.stringify(this.#sockets)));
  }
}
