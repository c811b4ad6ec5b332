// SPDX-License-Identifier: Apache-2.0
/**
 * What goes over of a device: its state as a sealed stream of a negotiated format, the files behind the DMA ranges, the
 * eventfds, the device's own open files. All of it can be taken out, and put in, any number of times.
 */

import { setImmediate as turn } from 'node:timers/promises';
import type { Device } from '../device/index.js';
import { parseUuid, uuidToBytes } from '../formats/index.js';
import {
  type Bundle,
  type BundleEntry,
  FdKind,
  packRanges,
  type RangeEntry,
  rangeTable,
  readSealed,
  sealedMemory,
  unpackRanges,
} from '../handoff/index.js';
import type { CapturedDevice, DmaPeer, HandoffFormat } from '../server/index.js';
import { closeAll, type Fd } from '../transport/index.js';
import { eachInTurns } from '../turns.js';
import { DmaMapFlag, Errno, RequestError } from '../wire/index.js';
import * as z from '../zod.js';
import { openBacking } from './backing.js';
import { bundleEntry, bundleKind } from './device-files.js';
import type { DmaRange, DmaTable } from './dma-table.js';
import { EventSignal } from './event-signal.js';
import { chooseFormat, type FormatChoice, type StateOffer } from './format-choice.js';
import type { InterruptTable } from './interrupt-table.js';
import type { MigrationEngine } from './migration-engine.js';
import type { SharedFiles } from './shared-files.js';
import { type SaveSource, StateSessions } from './state-sessions.js';

/** Names of fds in the bundle. */
const STATE_NAME = 'device:state';
const dmaName = (file: number): string => `dma:${file}`;
const vectorName = (index: number, vector: number): string => `irq:${index}:${vector}`;

/** Most of a state, bytes: it is held as a whole. */
const MAX_STATE = 1024 ** 3;
/** Read from the saving at a time, bytes. */
const CHUNK = 1024 * 1024;

const unsigned = z.number().int().nonnegative();
const vectors = z.object({
  enabled: z.boolean(),
  masked: z.array(unsigned),
  pending: z.array(unsigned),
  assigned: z.array(unsigned),
});
/** `FrozenInterrupts` in a document. */
export const frozenInterrupts = z.object({ intxLevel: z.boolean(), kinds: z.array(vectors) });
const documentSchema = z.object({
  arrived: z.boolean(),
  interrupts: frozenInterrupts,
  dma: rangeTable(
    z.object({
      address: unsigned,
      size: unsigned,
      offset: unsigned,
      flags: unsigned,
      file: z.string().nullable(),
    }),
  ),
  files: z.unknown(),
});
type DeviceDocument = z.infer<typeof documentSchema>;

function withFileName({ file, ...range }: RangeEntry) {
  return { ...range, file: file === null ? null : dmaName(file) };
}

export interface HandoffParts {
  readonly device: Device;
  readonly memory: DmaTable;
  readonly interrupts: InterruptTable;
  readonly engine: MigrationEngine;
  readonly offer: StateOffer;
  readonly files: SharedFiles;
}

export class DeviceBundle {
  readonly #parts: HandoffParts;
  readonly #sessions: StateSessions;
  #choice: FormatChoice = {};

  constructor(parts: HandoffParts) {
    this.#parts = parts;
    this.#sessions = new StateSessions(parts.device, parts.offer);
  }

  /** @param flags what for, of `FormatFlag` @throws RequestError ENOTSUP when the device does not offer it */
  choose({ uuid, major, minor }: HandoffFormat, flags: number): void {
    const selection = { uuid: uuidToBytes(parseUuid(uuid)), major, minor, flags, features: 0 };
    this.#choice = {};
    chooseFormat(this.#parts.offer, this.#choice, selection);
  }

  /** Bytes of the state, about. */
  get pending(): number {
    return this.#sessions.pending;
  }

  /** All of it; the device is quiesced, and stays what it is. */
  async capture(): Promise<CapturedDevice> {
    const entries: BundleEntry[] = [];
    try {
      entries.push({ kind: FdKind.SEALED, name: STATE_NAME, fd: await this.#save() });
      const interrupts = this.#captureInterrupts(entries);
      const dma = await this.#captureMemory(entries);
      const own = this.#parts.device.files?.exportFiles();
      entries.push(...(own?.files ?? []).map(bundleEntry));
      const { arrived } = this.#parts.engine;
      const document: DeviceDocument = { arrived, interrupts, dma, files: own?.data ?? null };
      return { entries, document };
    } catch (error) {
      closeAll(entries.map(({ fd }) => fd));
      throw error;
    }
  }

  /** The state as a sealed file. @param source `practice`: an imagined one, see `StateFormat` */
  async #save(source: SaveSource = 'device'): Promise<Fd> {
    const sessions = this.#sessions;
    try {
      sessions.startSave(this.#choice, source);
      await sessions.finishSave(source);
      const parts: Uint8Array[] = [];
      let length = 0;
      while (sessions.unread) {
        for (const part of (await sessions.read(CHUNK)) ?? []) {
          parts.push(part);
          length += part.length;
        }
        if (length > MAX_STATE)
          throw new RequestError(Errno.E2BIG, `a state of more than ${MAX_STATE} bytes`);
      }
      return sealedMemory('devstate-state', parts);
    } finally {
      await sessions.end();
    }
  }

  #captureInterrupts(entries: BundleEntry[]): DeviceDocument['interrupts'] {
    const { state, eventfds } = this.#parts.interrupts.freeze();
    for (const [index, { assigned }] of state.kinds.entries()) {
      for (const [i, vector] of assigned.entries()) {
        const fd = eventfds[index]![i]!;
        entries.push({ kind: FdKind.EVENTFD, name: vectorName(index, vector), fd });
      }
    }
    // zod's arrays are mutable, ours are not: the same on the wire.
    return state as DeviceDocument['interrupts'];
  }

  #captureMemory(entries: BundleEntry[]): Promise<DeviceDocument['dma']> {
    const indexes = new Map<Fd, number>();
    const entryOf = ({ address, length, backing }: DmaRange): RangeEntry => {
      if (backing.origin === undefined)
        throw new RequestError(
          Errno.ENOTSUP,
          `the origin of the DMA range 0x${address.toString(16)} is not known`,
        );
      const { file, offset, flags } = backing.origin;
      let index = file === undefined ? null : (indexes.get(file) ?? null);
      if (file !== undefined && index === null) {
        index = indexes.size;
        indexes.set(file, index);
        entries.push({ kind: FdKind.MEMORY, name: dmaName(index), fd: file.duplicate() });
      }
      return { address, size: length, offset, flags, file: index };
    };
    return packRanges(this.#parts.memory.regions.slice(), {
      entryOf,
      plainOf: withFileName,
      add: (kind, name, fd) => entries.push({ kind, name, fd }),
    });
  }

  /** Becomes what comes out of the bundle. @throws when it cannot: the caller releases what is there by then */
  async adopt(bundle: Bundle, document: unknown, vmm: DmaPeer | undefined): Promise<void> {
    const { device, engine } = this.#parts;
    const parsed = documentSchema.parse(document);
    device.files?.importFiles((name, kind) => bundle.take(name, bundleKind(kind)), parsed.files);
    await this.#adoptMemory(bundle, parsed.dma, vmm);
    await this.#load(bundle.take(STATE_NAME, FdKind.SEALED));
    this.#adoptInterrupts(bundle, parsed.interrupts);
    engine.arrived = parsed.arrived;
  }

  /** Saves what the format imagines, to nowhere. */
  async practiseSave(): Promise<void> {
    (await this.#save('practice')).close();
  }

  /** Becomes what the format imagines. @returns false when it imagines nothing */
  async practise(): Promise<boolean> {
    if (this.#choice.load?.practice === undefined) return false;
    const state = await this.#save('practice');
    await turn();
    await this.#load(state);
    return true;
  }

  async #adoptMemory(bundle: Bundle, dma: DeviceDocument['dma'], vmm: DmaPeer | undefined): Promise<void> {
    const { memory, files } = this.#parts;
    const taken = new Map<string, Fd>();
    try {
      const ranges = await unpackRanges(dma, withFileName, (kind, name) => bundle.take(name, kind));
      await eachInTurns(ranges, ({ file, ...request }) => {
        if (vmm === undefined) throw new RequestError(Errno.EINVAL, 'DMA ranges without a VMM');
        if (file !== null && !taken.has(file)) taken.set(file, bundle.take(file, FdKind.MEMORY));
        const { address, size, flags } = request;
        memory.add({
          address,
          length: size,
          readable: (flags & DmaMapFlag.READ) !== 0,
          writable: (flags & DmaMapFlag.WRITE) !== 0,
          backing: openBacking(request, file === null ? undefined : taken.get(file), vmm, files),
        });
      });
    } finally {
      // The ranges have their own.
      closeAll(taken.values());
    }
  }

  async #load(state: Fd): Promise<void> {
    try {
      this.#sessions.startLoad(this.#choice);
      for (const chunk of readSealed(state, MAX_STATE)) await this.#sessions.write(chunk);
      await this.#sessions.commitLoad();
    } finally {
      state.close();
      await this.#sessions.end();
    }
  }

  /** After the load: what is pending goes beyond what formats know. */
  #adoptInterrupts(bundle: Bundle, state: DeviceDocument['interrupts']): void {
    const signals: EventSignal[][] = [];
    try {
      for (const [index, { assigned }] of state.kinds.entries()) {
        const ofKind: EventSignal[] = [];
        signals.push(ofKind);
        for (const vector of assigned)
          ofKind.push(new EventSignal(bundle.take(vectorName(index, vector), FdKind.EVENTFD)));
      }
      this.#parts.interrupts.thaw(state, signals);
    } catch (error) {
      for (const signal of signals.flat()) signal.close();
      throw error;
    }
  }
}
