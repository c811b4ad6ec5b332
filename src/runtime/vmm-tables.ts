// SPDX-License-Identifier: Apache-2.0
/** What a VMM has given: guest memory, eventfds, and itself to be asked for memory by messages. */

import type { CrashJournal, DmaPeer } from '../server/index.js';
import type { Fd } from '../transport/index.js';
import {
  DEFAULT_MAX_DMA_MAPS,
  DmaMapFlag,
  type DmaMapRequest,
  DmaUnmapFlag,
  type DmaUnmapRequest,
  Errno,
  IrqSetFlag,
  RequestError,
  type SetIrqs,
} from '../wire/index.js';
import { openBacking } from './backing.js';
import { DmaTable } from './dma-table.js';
import { EventSignal } from './event-signal.js';
import type { InterruptTable, Signal } from './interrupt-table.js';
import { KeptSignal } from './kept-signal.js';
import type { SharedFiles } from './shared-files.js';

/** Most DMA ranges with a crash journal, which has room for so many. */
export const MAX_KEPT_RANGES = 4096;

export class VmmTables {
  readonly memory = new DmaTable();
  /** Undefined while no VMM has agreed on a version. */
  peer: DmaPeer | undefined;
  readonly #files: SharedFiles;
  readonly #crash: CrashJournal | undefined;

  /** @param crash keeps what the VMM gives */
  constructor(
    readonly interrupts: InterruptTable,
    files: SharedFiles,
    crash?: CrashJournal,
  ) {
    this.#files = files;
    this.#crash = crash;
  }

  /** @throws RequestError ENOTCONN */
  requirePeer(): DmaPeer {
    if (this.peer === undefined) throw new RequestError(Errno.ENOTCONN, 'no VMM is connected');
    return this.peer;
  }

  /** Takes `fd` if it does not throw. */
  dmaMap(request: DmaMapRequest, fd: Fd | undefined): void {
    const peer = this.requirePeer();
    const limit = this.#crash === undefined ? DEFAULT_MAX_DMA_MAPS : MAX_KEPT_RANGES;
    if (this.memory.regions.length >= limit)
      throw new RequestError(Errno.ENOSPC, `more than ${limit} DMA ranges`);
    const backing = openBacking(request, fd, peer, this.#files);
    try {
      this.memory.add({
        address: request.address,
        length: request.size,
        readable: (request.flags & DmaMapFlag.READ) !== 0,
        writable: (request.flags & DmaMapFlag.WRITE) !== 0,
        backing,
      });
    } catch (error) {
      backing.unmap();
      throw error;
    }
  }

  dmaUnmap(request: DmaUnmapRequest): void | Promise<void> {
    if ((request.flags & DmaUnmapFlag.ALL) !== 0) return this.memory.clear();
    return this.memory.remove(request.address, request.size);
  }

  /** Takes the fds if it does not throw. */
  setIrqs(request: SetIrqs, data: Uint8Array, fds: readonly Fd[]): void {
    if ((request.flags & IrqSetFlag.DATA_EVENTFD) === 0 && fds.length > 0) {
      throw new RequestError(Errno.EINVAL, 'SET_IRQS carries fds but does not say eventfd');
    }
    const signals: Signal[] = [];
    try {
      for (const fd of fds) signals.push(this.#signalOf(fd));
      this.interrupts.set(request, data, signals);
    } catch (error) {
      for (const signal of signals) signal.close();
      throw error;
    }
  }

  #signalOf(fd: Fd): Signal {
    const crash = this.#crash;
    return crash === undefined
      ? new EventSignal(fd)
      : new KeptSignal(crash.store.keep(fd), crash.transactions);
  }

  /**
   * What the one has been given, the other has now, and the reverse. The device behind one of them stands still.
   * @throws RequestError EBUSY when it holds memory, and nothing has changed
   */
  exchange(other: VmmTables): void {
    this.memory.exchange(other.memory);
    this.interrupts.exchange(other.interrupts);
    [this.peer, other.peer] = [other.peer, this.peer];
  }

  /** The VMM has gone: its eventfds and memory are released. */
  async clear(): Promise<void> {
    this.interrupts.disconnect();
    await this.memory.clear();
  }
}
