// SPDX-License-Identifier: Apache-2.0
/**
 * A device of the SDK as it goes to its successor in another process: state as a sealed stream of a negotiated format,
 * the files behind the DMA ranges, eventfds, the device's own open files.
 *
 *     giver      begin ─▶ quiesce ─▶ capture ─┬▶ letGo        the successor has it
 *                                             └▶ resume       it goes on here
 *     receiver   rehearse ─▶ adopt ─┬▶ start
 *                                   └▶ letGo
 */

import { z } from 'zod';
import { parseUuid, uuidToBytes } from '../formats/index.js';
import { Bundle, type BundleEntry, FdKind, readSealed, sealedMemory } from '../handoff/index.js';
import { check, native } from '../native/index.js';
import type { CapturedDevice, DmaPeer, HandoffFormat, HandoffPort } from '../server/index.js';
import { closeAll, Fd } from '../transport/index.js';
import { DmaMapFlag, Errno, FormatFlag, IrqSetFlag, RequestError } from '../wire/index.js';
import { openBacking } from './backing.js';
import type { Device } from './device.js';
import { EventSignal } from './event-signal.js';
import { chooseFormat, type FormatChoice, type StateOffer } from './format-choice.js';
import type { GuestMemory } from './guest-memory.js';
import type { Interrupts } from './interrupts.js';
import type { MigrationEngine } from './migration-engine.js';
import type { SharedFiles } from './shared-files.js';
import { StateSessions } from './state-sessions.js';

/** Names of fds in the bundle. */
const STATE_NAME = 'device:state';
const dmaName = (file: number): string => `dma:${file}`;
const vectorName = (index: number, vector: number): string => `irq:${index}:${vector}`;

/** Most of a state, bytes: it is held as a whole. */
const MAX_STATE = 1024 ** 3;
/** Largest state that is handed over for practice, bytes. */
const MAX_REHEARSAL = 1024 * 1024;
/** The first time costs ten times the third. */
const REHEARSALS = 3;
const PAGE = 4096;
/** Read from the saving at a time, bytes. */
const CHUNK = 1024 * 1024;

const unsigned = z.number().int().nonnegative();
const vectors = z.object({
  enabled: z.boolean(),
  masked: z.array(unsigned),
  pending: z.array(unsigned),
  assigned: z.array(unsigned),
});
/** `FrozenInterrupts` as JSON. */
export const frozenInterrupts = z.object({ intxLevel: z.boolean(), kinds: z.array(vectors) });
const documentSchema = z.object({
  arrived: z.boolean(),
  interrupts: frozenInterrupts,
  dma: z.array(
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

/** The VMM of a rehearsal: asked for nothing, as all memory is mapped. */
const nobody: DmaPeer = {
  read: () => Promise.reject(new RequestError(Errno.ENOTCONN, 'no VMM is connected')),
  write: () => Promise.reject(new RequestError(Errno.ENOTCONN, 'no VMM is connected')),
};

export interface HandoffParts {
  readonly device: Device;
  readonly memory: GuestMemory;
  readonly interrupts: Interrupts;
  readonly engine: MigrationEngine;
  readonly offer: StateOffer;
  readonly files: SharedFiles;
}

export class DeviceHandoff implements HandoffPort {
  readonly #parts: HandoffParts;
  readonly #sessions: StateSessions;
  #choice: FormatChoice = {};
  #endHold: (() => Promise<void>) | undefined;
  /** Settles when the device has stopped, or will not. */
  #quiescing: Promise<void> | undefined;

  constructor(parts: HandoffParts) {
    this.#parts = parts;
    this.#sessions = new StateSessions(parts.device, parts.offer);
  }

  async begin(format: HandoffFormat): Promise<void> {
    const { device } = this.#parts;
    if (device.files === undefined && device.bars.some(({ memory }) => memory !== undefined))
      throw new RequestError(
        Errno.ENOTSUP,
        'the VMM maps memory of this device, which does not hand it over',
      );
    this.#choose(format, FormatFlag.SAVE);
    this.#endHold = await this.#parts.engine.hold();
  }

  #choose({ uuid, major, minor }: HandoffFormat, flags: number): void {
    const selection = { uuid: uuidToBytes(parseUuid(uuid)), major, minor, flags, features: 0 };
    this.#choice = {};
    chooseFormat(this.#parts.offer, this.#choice, selection);
  }

  async quiesce(): Promise<void> {
    const { device, interrupts } = this.#parts;
    this.#quiescing = Promise.resolve(device.quiesce());
    await this.#quiescing;
    interrupts.hold();
  }

  async capture(): Promise<CapturedDevice> {
    const entries: BundleEntry[] = [];
    try {
      const state = sealedMemory('devstate-state', await this.#save());
      entries.push({ kind: FdKind.SEALED, name: STATE_NAME, fd: state });
      const interrupts = this.#captureInterrupts(entries);
      const dma = this.#captureMemory(entries);
      const own = this.#parts.device.files?.handOver();
      entries.push(...(own?.files ?? []));
      const { arrived } = this.#parts.engine;
      const document: DeviceDocument = { arrived, interrupts, dma, files: own?.data ?? null };
      return { entries, document };
    } catch (error) {
      closeAll(entries.map(({ fd }) => fd));
      throw error;
    }
  }

  async #save(): Promise<Uint8Array[]> {
    const sessions = this.#sessions;
    try {
      sessions.startSave(this.#choice);
      await sessions.finishSave();
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
      return parts;
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

  #captureMemory(entries: BundleEntry[]): DeviceDocument['dma'] {
    const names = new Map<Fd, string>();
    return this.#parts.memory.regions.map(({ address, length, backing }) => {
      if (backing.origin === undefined)
        throw new RequestError(
          Errno.ENOTSUP,
          `nobody knows where DMA range 0x${address.toString(16)} is from`,
        );
      const { file, offset, flags } = backing.origin;
      let name = file === undefined ? null : (names.get(file) ?? null);
      if (file !== undefined && name === null) {
        name = dmaName(names.size);
        names.set(file, name);
        entries.push({ kind: FdKind.MEMORY, name, fd: file.duplicate() });
      }
      return { address, size: length, offset, flags, file: name };
    });
  }

  async resume(): Promise<void> {
    const quiescing = this.#quiescing;
    this.#quiescing = undefined;
    // A device that did not stop runs still.
    const stopped = await quiescing?.then(
      () => true,
      () => false,
    );
    if (stopped === true) await this.#run();
    await this.#release();
  }

  async #run(): Promise<void> {
    const { device, interrupts } = this.#parts;
    await device.resume();
    interrupts.release();
  }

  async #release(): Promise<void> {
    const endHold = this.#endHold;
    this.#endHold = undefined;
    await endHold?.();
  }

  /**
   * The device hands itself over to itself: what it cannot do shows now, and the code has been compiled when a guest
   * waits for it. Left out where the state is large.
   */
  async rehearse(format: HandoffFormat): Promise<void> {
    this.#choose(format, FormatFlag.LOAD);
    this.#endHold = await this.#parts.engine.hold();
    await this.quiesce();
    if (this.#sessions.pending > MAX_REHEARSAL) return;
    // The others too: one day this server hands over in one of them.
    const others = this.#parts.offer.formats.map(({ uuid, version }) => ({ uuid, ...version }));
    for (const one of [...others, format]) {
      this.#choose(one, FormatFlag.SAVE | FormatFlag.LOAD);
      for (let round = 0; round < REHEARSALS; round++) await this.#rehearseOnce();
    }
  }

  async #rehearseOnce(): Promise<void> {
    const { memory, interrupts } = this.#parts;
    this.#connectNobody();
    const { entries, document } = await this.capture();
    const bundle = new Bundle();
    const fds = entries.map(({ fd }) => fd);
    try {
      await memory.clear();
      bundle.add(entries, fds);
      await this.adopt(bundle, JSON.parse(JSON.stringify(document)), nobody);
    } finally {
      interrupts.disconnect();
      await memory.clear();
      closeAll(fds);
      bundle.close();
    }
    await this.#run();
    await this.quiesce();
  }

  /** Something of all that a VMM has: memory, and an eventfd of each kind of interrupt. */
  #connectNobody(): void {
    const { memory, interrupts, files } = this.#parts;
    const fd = new Fd(check(native.memfdCreate('devstate-rehearsal'), 'make a memory file'));
    try {
      const request = { address: 0, size: PAGE, offset: 0, flags: DmaMapFlag.READ | DmaMapFlag.WRITE };
      check(native.truncate(fd.number, PAGE), 'size a memory file');
      memory.add({
        address: 0,
        length: PAGE,
        readable: true,
        writable: true,
        backing: openBacking(request, fd, nobody, files),
      });
    } finally {
      fd.close();
    }
    const flags = IrqSetFlag.DATA_EVENTFD | IrqSetFlag.ACTION_TRIGGER;
    for (const [index, count] of interrupts.counts.entries()) {
      if (count === 0) continue;
      const signal = new EventSignal(new Fd(check(native.eventfdCreate(0), 'make an eventfd')));
      interrupts.set({ flags, index, start: 0, count: 1 }, new Uint8Array(0), [signal]);
    }
  }

  async adopt(bundle: Bundle, document: unknown, vmm: DmaPeer | undefined): Promise<void> {
    const { device, engine } = this.#parts;
    const parsed = documentSchema.parse(document);
    try {
      device.files?.adopt((name, kind) => bundle.take(name, kind), parsed.files);
      this.#adoptMemory(bundle, parsed.dma, vmm);
      await this.#load(bundle.take(STATE_NAME, FdKind.SEALED));
      this.#adoptInterrupts(bundle, parsed.interrupts);
      engine.arrived = parsed.arrived;
    } catch (error) {
      await this.letGo();
      throw error;
    }
  }

  #adoptMemory(bundle: Bundle, ranges: DeviceDocument['dma'], vmm: DmaPeer | undefined): void {
    const { memory, files } = this.#parts;
    const taken = new Map<string, Fd>();
    try {
      for (const { file, ...request } of ranges) {
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
      }
    } finally {
      // The ranges have their own.
      closeAll(taken.values());
    }
  }

  async #load(state: Fd): Promise<void> {
    try {
      this.#sessions.startLoad(this.#choice);
      for (const chunk of readSealed(state, MAX_STATE)) this.#sessions.write(chunk);
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

  async start(): Promise<void> {
    await this.#run();
    await this.#release();
  }

  async letGo(): Promise<void> {
    const { device, memory, interrupts } = this.#parts;
    interrupts.disconnect();
    device.files?.letGo();
    await memory.clear();
  }
}
