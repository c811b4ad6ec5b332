// SPDX-License-Identifier: Apache-2.0
/**
 * Copies pages of guest memory from one device's end to the other's, and measures how fast that is here and now.
 *
 *     both servers give their memory's files away   mapped in this process, copied from one to the other
 *     else                                          DMA_READ and DMA_WRITE, several under way
 */

import { setImmediate } from 'node:timers/promises';
import { MappedGuestMemory, MigrationClient } from '../../client/index.js';
import { DevstateError } from '../../errors.js';
import { type DmaMapEntry, DmaMapFlag, type DmaRange } from '../../wire/index.js';
import { unlessAborted } from '../waiting.js';
import { mergeOverGaps, splitRanges } from './dirty-pages.js';

/** Where pages go. */
export interface PageTarget {
  readonly memory: Pick<MigrationClient, 'dmaMaps' | 'readMemory' | 'writeMemory'>;
  /** The same memory as far as this process has it. */
  readonly mapped: Pick<MappedGuestMemory, 'refresh' | 'view' | 'faulted' | 'close'>;
  /** Bytes that one message may carry. */
  readonly maxTransfer: number;
}

/** Copies by messages under way at a time: one is read while another is written, and both sockets stay busy. */
const COPIES_IN_FLIGHT = 4;
/** What is copied between two looks at the event loop, bytes: a few milliseconds also where every page faults. */
const SLICE = 2 * 2 ** 20;
/** How long a measurement may keep the source's server from serving the guest, ms; and the least that it copies, bytes. */
const SAMPLE_MS = 10;
const SAMPLE_BYTES = 256 * 1024;
/** Pieces that are copied in a rehearsal: few enough for a slow link, enough for one in the middle. */
const REHEARSED = 9;
/** Samples that count: the latest, because the load of a machine changes. */
const SAMPLES = 4;

export class PageCopier {
  readonly #source: MigrationClient;
  readonly #destination: PageTarget['memory'];
  readonly #from: MappedGuestMemory;
  readonly #to: PageTarget['mapped'];
  readonly #pieceLength: number;
  readonly #samples: { readonly bytes: number; readonly ms: number }[] = [];
  #mapped = false;

  constructor(source: MigrationClient, destination: MigrationClient | PageTarget) {
    const target = destination instanceof MigrationClient ? targetOf(destination) : destination;
    this.#source = source;
    this.#destination = target.memory;
    this.#from = new MappedGuestMemory(source);
    this.#to = target.mapped;
    this.#pieceLength = Math.min(source.client.maxTransfer, target.maxTransfer);
  }

  /** How the last copy, or measurement, reached the memory. */
  get way(): 'mapped' | 'messages' {
    return this.#mapped ? 'mapped' : 'messages';
  }

  /** Bytes per ms that copying has lately reached; undefined before the first measurement. */
  get bytesPerMs(): number | undefined {
    const sum = (of: (sample: { bytes: number; ms: number }) => number): number =>
      this.#samples.reduce((all, sample) => all + of(sample), 0);
    const ms = sum((sample) => sample.ms);
    return ms > 0 ? sum(({ bytes }) => bytes) / ms : undefined;
  }

  /**
   * Measures without changing anything: memory of the source is read, and the destination's own written back to it.
   * Only while the destination's QEMU takes nothing in yet.
   */
  async rehearse(): Promise<void> {
    try {
      await this.#rehearse();
    } catch (error) {
      // Memory without a file is reached by way of QEMU, which refuses until the guest has enabled bus mastering.
      if (!(error instanceof DevstateError) || error.code !== 'DEVSTATE_E_REFUSED') throw error;
    }
  }

  async #rehearse(): Promise<void> {
    const range = await this.#commonRange();
    if (range === undefined) return;
    await this.#reach();
    const length = this.#pieceLength;
    const scratch = new Uint8Array(length);
    const times: number[] = [];
    // The first piece is for the code that runs for the first time.
    for (let at = 0; at + length <= range.length && times.length < REHEARSED; at += length) {
      const piece = { iova: range.iova + at, length: Math.min(length, range.length - at) };
      const own = new Uint8Array(piece.length);
      await this.#destination.readMemory(piece.iova, own);
      const started = performance.now();
      const [source, target] = this.#views(piece);
      if (source !== undefined && target !== undefined) {
        scratch.set(source);
        target.set(own.subarray(0, target.length));
      } else {
        await this.#source.readMemory(piece.iova, scratch.subarray(0, piece.length));
        await this.#destination.writeMemory(piece.iova, own);
      }
      if (at > 0) times.push(performance.now() - started);
    }
    // The one in the middle: another process's turn falls into one piece, and would be taken for a slow machine.
    const middle = times.sort((a, b) => a - b)[times.length >> 1];
    if (middle !== undefined) this.#measured(length, middle);
  }

  /**
   * Copies a part of `ranges` while the VM runs, to see how fast that is with these. What is copied must be copied again
   * when the VM stands: the device or QEMU may write it meanwhile.
   */
  async sample(ranges: readonly DmaRange[], signal: AbortSignal): Promise<void> {
    if (ranges.length === 0) return;
    await this.#reach();
    const started = performance.now();
    const pieces = splitRanges(ranges, Math.min(this.#pieceLength, SAMPLE_BYTES));
    let bytes = 0;
    for (const piece of pieces) {
      try {
        bytes += await this.#copyPiece(piece, new Uint8Array(piece.length));
      } catch (error) {
        // A guest that boots has its memory mapped anew: this page is not there now.
        if (!(error instanceof DevstateError) || error.code !== 'DEVSTATE_E_REFUSED') throw error;
        continue;
      }
      if (signal.aborted || (bytes >= SAMPLE_BYTES && performance.now() - started >= SAMPLE_MS)) break;
    }
    this.#measured(bytes, performance.now() - started);
  }

  /** Copies `ranges`; the VM stands at both ends. @returns bytes copied */
  async copy(ranges: readonly DmaRange[], signal?: AbortSignal): Promise<number> {
    await this.#reach();
    // A message costs more than the memory between two pages; what lies in the gap is the same at both ends.
    const joined = this.#mapped ? ranges : mergeOverGaps(ranges, await this.#source.dmaMaps());
    const started = performance.now();
    const pieces = splitRanges(joined, this.#pieceLength);
    let bytes = 0;
    let sinceLook = 0;
    const worker = async (): Promise<void> => {
      let buffer = new Uint8Array(0);
      for (let piece = pieces.next(); piece.done !== true; piece = pieces.next()) {
        if (signal?.aborted === true) return;
        if (!this.#mapped && buffer.length < piece.value.length) buffer = new Uint8Array(piece.value.length);
        const copied = this.#copyMapped(piece.value) ?? (await this.#copyByMessages(piece.value, buffer));
        bytes += copied;
        sinceLook += copied;
        if (sinceLook < SLICE) continue;
        sinceLook = 0;
        await setImmediate();
      }
    };
    const workers = this.#mapped ? 1 : COPIES_IN_FLIGHT;
    await unlessAborted(Promise.all(Array.from({ length: workers }, worker)), signal);
    this.#requireWhole();
    this.#measured(bytes, performance.now() - started);
    return bytes;
  }

  close(): void {
    this.#from.close();
    this.#to.close();
  }

  /** VMMs move ranges about, so they are asked for before each use. */
  async #reach(): Promise<void> {
    this.#mapped = (await this.#from.refresh()) && (await this.#to.refresh());
  }

  async #commonRange(): Promise<DmaRange | undefined> {
    const both = DmaMapFlag.READ | DmaMapFlag.WRITE;
    const there = new Map((await this.#destination.dmaMaps()).map((map) => [map.address, map]));
    const isCommon = ({ address, size, flags }: DmaMapEntry): boolean => {
      const other = there.get(address);
      return flags === both && other?.size === size && other.flags === both;
    };
    const common = (await this.#source.dmaMaps()).filter(isCommon).sort((a, b) => b.size - a.size)[0];
    return common === undefined ? undefined : { iova: common.address, length: common.size };
  }

  #views({ iova, length }: DmaRange): [Uint8Array | undefined, Uint8Array | undefined] {
    if (!this.#mapped) return [undefined, undefined];
    const source = this.#from.view(iova, length, 'read');
    const target = this.#to.view(iova, length, 'write');
    return [source, target];
  }

  /** Undefined when a part of it is not mapped here. */
  #copyMapped(piece: DmaRange): number | undefined {
    if (!this.#mapped) return undefined;
    for (let done = 0; done < piece.length; ) {
      const [source, target] = this.#views({ iova: piece.iova + done, length: piece.length - done });
      if (source === undefined || target === undefined) return undefined;
      const length = Math.min(source.length, target.length);
      target.set(source.subarray(0, length));
      done += length;
    }
    return piece.length;
  }

  async #copyByMessages({ iova, length }: DmaRange, buffer: Uint8Array): Promise<number> {
    const data = buffer.length < length ? new Uint8Array(length) : buffer.subarray(0, length);
    await this.#source.readMemory(iova, data);
    await this.#destination.writeMemory(iova, data);
    return length;
  }

  async #copyPiece(piece: DmaRange, buffer: Uint8Array): Promise<number> {
    return this.#copyMapped(piece) ?? (await this.#copyByMessages(piece, buffer));
  }

  /** @throws DEVSTATE_E_CONNECTION_CLOSED when zeros may have been copied in place of memory */
  #requireWhole(): void {
    if (!this.#from.faulted && !this.#to.faulted) return;
    const message =
      'the file of the guest memory was made shorter while it was copied; see whether both QEMUs still run';
    throw new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', message);
  }

  #measured(bytes: number, ms: number): void {
    if (bytes < SAMPLE_BYTES / 4 || ms <= 0) return;
    this.#samples.push({ bytes, ms });
    if (this.#samples.length > SAMPLES) this.#samples.shift();
  }
}

function targetOf(device: MigrationClient): PageTarget {
  return {
    memory: device,
    mapped: new MappedGuestMemory(device),
    maxTransfer: device.client.maxTransfer,
  };
}

/** How far into a range a rehearsal copies, bytes: its pieces, and the first one, which does not count. */
export function rehearsedLength(maxTransfer: number): number {
  return (REHEARSED + 1) * maxTransfer;
}
