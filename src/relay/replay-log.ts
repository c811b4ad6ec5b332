// SPDX-License-Identifier: Apache-2.0
/**
 * What a server has been told by the VMM that another one must be told to be the same: DMA ranges with their fds,
 * interrupts with their eventfds, the config space. VERSION is kept where it is negotiated.
 */

import type { RangeTable } from '../handoff/index.js';
import { closeAll, type Fd } from '../transport/index.js';
import {
  Command,
  DEFAULT_MAX_DMA_MAPS,
  DMA_MAP_LENGTH,
  decodeDmaMap,
  decodeDmaUnmap,
  decodeRegionAccess,
  decodeSetIrqs,
  decodeWriteMultiCount,
  decodeWriteMultiEntry,
  encodeDmaMap,
  encodeRegionAccess,
  encodeSetIrqs,
  HEADER_LENGTH,
  messageCommand,
  PciRegion,
  REGION_ACCESS_LENGTH,
  type RegionAccess,
  RequestError,
  SET_IRQS_LENGTH,
} from '../wire/index.js';
import type { BackEnd } from './back-end.js';
import { type CapturedConfig, ConfigLog } from './config-log.js';
import { type CapturedRange, DmaMaps, type DmaRangeOfVmm } from './dma-maps.js';
import { type CapturedIndex, InterruptLog } from './interrupt-log.js';
import type { Message } from './messages.js';
import type { Packer, Unpacker } from './packing.js';

const access: RegionAccess = { offset: 0, region: 0, count: 0 };
const ignore = (): void => {};
/** Requests that are sent to a new server before its answers are waited for: about 2 ms of work. */
const REPLAYED_AT_ONCE = 256;

/** Commands that a server need not be asked about: the relay can take them and see to it later that it is done. */
export function canBeOwed(command: number): boolean {
  return command === Command.DMA_MAP || command === Command.DMA_UNMAP || command === Command.DEVICE_SET_IRQS;
}

/**
 * Whether a command that no server has looked at can be noted: what is in it bounds what is kept.
 * @param irqs interrupts by index
 */
export function isPlausible(
  message: Message,
  fds: readonly Fd[],
  log: ReplayLog,
  irqs: readonly number[],
): boolean {
  const { view, length } = message;
  try {
    if (messageCommand(view) === Command.DMA_MAP) {
      const { size, flags } = decodeDmaMap(view, HEADER_LENGTH, length);
      const isOneMore = size > 0 && fds.length <= 1 && log.dma.size < DEFAULT_MAX_DMA_MAPS;
      return isOneMore && log.dma.canHold(fds[0], flags);
    }
    if (messageCommand(view) === Command.DMA_UNMAP)
      return decodeDmaUnmap(view, HEADER_LENGTH, length).size >= 0;
    const { index, start, count } = decodeSetIrqs(view, HEADER_LENGTH, length);
    return start + count <= (irqs[index] ?? 0) && (fds.length === 0 || fds.length === count);
  } catch (error) {
    if (error instanceof RequestError) return false;
    throw error;
  }
}

/** Whether a region access is one of the config space. */
export function isConfigAccess(view: DataView): boolean {
  return view.getUint32(HEADER_LENGTH + 8, true) === PciRegion.CONFIG;
}

export interface CapturedLog {
  readonly dma: RangeTable<CapturedRange>;
  readonly interrupts: readonly CapturedIndex[];
  readonly config: CapturedConfig;
  readonly resets: number;
}

export class ReplayLog {
  readonly config = new ConfigLog();
  /** How often the device was reset, by DEVICE_RESET or by its function level reset. */
  resets = 0;
  #dma = new DmaMaps();
  #interrupts = new InterruptLog();

  get dma(): DmaMaps {
    return this.#dma;
  }

  get interrupts(): InterruptLog {
    return this.#interrupts;
  }

  /** Memory and interrupts are a VMM's, and change hands with it; the config space is the device's. */
  exchangeWith(other: ReplayLog): void {
    [this.#dma, other.#dma] = [other.#dma, this.#dma];
    [this.#interrupts, other.#interrupts] = [other.#interrupts, this.#interrupts];
  }

  /** Notes a request that was carried out, or will be. Takes the fds that it needs. */
  note({ view, bytes, length }: Message, fds: readonly Fd[]): void {
    const at = HEADER_LENGTH;
    switch (messageCommand(view)) {
      case Command.DMA_MAP:
        this.dma.add(decodeDmaMap(view, at, length), fds[0]);
        return;
      case Command.DMA_UNMAP:
        this.dma.remove(decodeDmaUnmap(view, at, length));
        return;
      case Command.DEVICE_SET_IRQS: {
        const request = decodeSetIrqs(view, at, length);
        this.interrupts.set(request, bytes.subarray(at + SET_IRQS_LENGTH, length), fds);
        return;
      }
      case Command.REGION_WRITE:
        decodeRegionAccess(view, at, length, access);
        this.#noteWrite(bytes, at + REGION_ACCESS_LENGTH, length);
        return;
      case Command.REGION_WRITE_MULTI:
        for (let i = 0; i < decodeWriteMultiCount(view, at, length); i++) {
          const start = decodeWriteMultiEntry(view, at, i, access) + REGION_ACCESS_LENGTH;
          this.#noteWrite(bytes, start, start + access.count);
        }
        return;
      case Command.DEVICE_RESET:
        this.resets++;
        this.config.clear();
    }
  }

  /** The write that `access` says, if it is one of the config space. */
  #noteWrite(bytes: Uint8Array, start: number, end: number): void {
    if (access.region !== PciRegion.CONFIG) return;
    const data = bytes.subarray(start, end);
    if (this.config.resets(access.offset, data)) this.resets++;
    this.config.write(access.offset, data);
  }

  /**
   * Gives a new server the VMM's memory and interrupts, as they are when this is called. Some at a time: there may be tens
   * of thousands, and others are to have their turns. @throws DEVSTATE_E_REFUSED
   */
  async replay(back: BackEnd): Promise<void> {
    const memory = this.dma.snapshot();
    const interrupts = [...this.interrupts.messages(back.version.capabilities.maxMsgFds)].map(
      ({ request, fds }) => ({ request, fds: fds.map((fd) => fd.duplicate()) }),
    );
    try {
      for (let at = 0; at < memory.ranges.length; at += REPLAYED_AT_ONCE)
        await all(memory.ranges.slice(at, at + REPLAYED_AT_ONCE).map((range) => replayRange(back, range)));
      for (let at = 0; at < interrupts.length; at += REPLAYED_AT_ONCE)
        await all(
          interrupts.slice(at, at + REPLAYED_AT_ONCE).map(({ request, fds }) => {
            const payload = new Uint8Array(SET_IRQS_LENGTH);
            encodeSetIrqs(viewOf(payload), 0, request);
            return back.request(Command.DEVICE_SET_IRQS, [payload], ignore, { fds });
          }),
        );
    } finally {
      memory.release();
      closeAll(interrupts.flatMap(({ fds }) => fds));
    }
  }

  /** Writes the config space of a new server as the VMM has. @throws DEVSTATE_E_REFUSED */
  async replayConfig(back: BackEnd): Promise<void> {
    const sent: Promise<void>[] = [];
    for (const { offset, data } of this.config.writes()) {
      const payload = new Uint8Array(REGION_ACCESS_LENGTH + data.length);
      encodeRegionAccess(viewOf(payload), 0, offset, PciRegion.CONFIG, data.length);
      payload.set(data, REGION_ACCESS_LENGTH);
      sent.push(back.request(Command.REGION_WRITE, [payload], ignore));
    }
    await all(sent);
  }

  /** What another relay is to have; fds go along. */
  async capture(packer: Packer): Promise<CapturedLog> {
    return {
      dma: await this.dma.capture(packer),
      interrupts: this.interrupts.capture(packer),
      config: this.config.capture(),
      resets: this.resets,
    };
  }

  /** @param dma restored already, becomes the log's @throws DEVSTATE_E_HANDOFF_BUNDLE */
  restore({ interrupts, config, resets }: CapturedLog, dma: DmaMaps, unpacker: Unpacker): void {
    this.resets = resets;
    this.#dma = dma;
    this.interrupts.restore(interrupts, unpacker);
    this.config.restore(config);
  }

  close(): void {
    this.dma.close();
    this.interrupts.close();
    this.config.clear();
  }
}

function replayRange(back: BackEnd, { fd, ...request }: DmaRangeOfVmm): Promise<void> {
  const payload = new Uint8Array(DMA_MAP_LENGTH);
  encodeDmaMap(viewOf(payload), 0, request);
  return back.request(Command.DMA_MAP, [payload], ignore, fd === undefined ? {} : { fds: [fd] });
}

/** Settles when all have, so that nothing is under way any more; then throws the first error. */
async function all(sent: readonly Promise<void>[]): Promise<void> {
  await Promise.allSettled(sent);
  await Promise.all(sent);
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}
