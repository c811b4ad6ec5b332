// SPDX-License-Identifier: Apache-2.0
/** A controller on a bench: guest memory, interrupts that are counted, and a small driver with queues in that memory. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import type { Device, GuestMemory, HostJournal, StateRecord } from '../../../src/device/index.js';
import { createAlderNvme } from '../../../src/devices/nvme/alder/index.js';
import { createBirchNvme } from '../../../src/devices/nvme/birch/index.js';
import { ImageFile } from '../../../src/devices/nvme/image-file.js';
import { type Backing, DmaTable } from '../../../src/runtime/dma-table.js';
import { journalOfNothing } from '../../../src/runtime/host-journal.js';
import { InterruptTable } from '../../../src/runtime/interrupt-table.js';
import { IrqSetFlag, PciIrq } from '../../../src/wire/index.js';
import { MemoryPeer } from '../../support/memory.js';

export type MemoryKind = 'mapped' | 'remote';

/** The implementations of the model, which must not differ for a guest. */
const makers = { alder: createAlderNvme, birch: createBirchNvme } as const;
export type Vendor = keyof typeof makers;
export const VENDORS = Object.keys(makers) as Vendor[];

export const MEMORY_BASE = 0x10_0000;
export const MEMORY_SIZE = 16 * 1024 * 1024;
export const PAGE = 4096;

/** Where the driver keeps things; the rest of memory from `DATA` on is the test's. */
const ADMIN_SQ = MEMORY_BASE;
const ADMIN_CQ = MEMORY_BASE + 0x4000;
const IO_QUEUES = MEMORY_BASE + 0x1_0000;
export const DATA = MEMORY_BASE + 0x10_0000;

export interface Completion {
  readonly cid: number;
  readonly sqid: number;
  readonly sqHead: number;
  /** Status code type and status code, without Do Not Retry, More and phase. */
  readonly status: number;
  /** The whole field. */
  readonly field: number;
  readonly result: number;
}

export interface CommandFields {
  opcode: number;
  cid?: number;
  nsid?: number;
  prp1?: number;
  prp2?: number;
  cdw10?: number;
  cdw11?: number;
  cdw12?: number;
  cdw13?: number;
  /** FUSE and PSDT. */
  flags?: number;
}

interface Ring {
  sq: number;
  cq: number;
  sqSize: number;
  cqSize: number;
  tail: number;
  head: number;
  phase: number;
}

/** Guest memory that outlives a controller, as a VM's does when it moves. */
export class Guest {
  readonly bytes = new Uint8Array(MEMORY_SIZE);
  readonly view = new DataView(this.bytes.buffer);
  readonly rings = new Map<number, Ring>();
  nextCid = 0;

  slice(address: number, length: number): Uint8Array {
    return this.bytes.subarray(address - MEMORY_BASE, address - MEMORY_BASE + length);
  }

  backing(kind: MemoryKind): Backing {
    if (kind === 'mapped') return { kind, window: () => this.bytes, unmap: () => {} };
    return {
      kind,
      byVmm: true,
      read: async (offset, target) => {
        await turn();
        target.set(this.bytes.subarray(offset, offset + target.length));
      },
      write: async (offset, source) => {
        const copy = source.slice();
        await turn();
        this.bytes.set(copy, offset);
      },
      unmap: () => {},
    };
  }
}

export class Rig {
  readonly memory = new DmaTable();
  readonly interrupts = new InterruptTable([1, 0, 64, 1, 1]);
  /** How often each MSI-X vector was signalled. */
  readonly vectors: number[] = [];
  /** How often INTx was signalled. */
  intx = 0;
  readonly logs: string[] = [];

  constructor(
    readonly device: Device,
    readonly guest: Guest,
    readonly kind: MemoryKind,
    readonly image: ImageFile,
    readonly vendor: Vendor,
    journal: (memory: GuestMemory) => HostJournal = journalOfNothing,
  ) {
    device.attach({
      memory: this.memory,
      messages: new MemoryPeer(),
      interrupts: this.interrupts,
      journal: journal(this.memory),
      log: (level, message) => this.logs.push(`${level}: ${message}`),
    });
    this.memory.add({
      address: MEMORY_BASE,
      length: MEMORY_SIZE,
      readable: true,
      writable: true,
      backing: guest.backing(kind),
    });
  }

  useMsix(count: number): void {
    this.#assign(
      PciIrq.MSIX,
      Array.from({ length: count }, (_, vector) => () => {
        this.vectors[vector] = (this.vectors[vector] ?? 0) + 1;
      }),
    );
  }

  useIntx(): void {
    this.#assign(PciIrq.INTX, [() => this.intx++]);
  }

  #assign(index: number, signals: (() => void)[]): void {
    this.interrupts.set(
      {
        flags: IrqSetFlag.DATA_EVENTFD | IrqSetFlag.ACTION_TRIGGER,
        index,
        start: 0,
        count: signals.length,
      },
      new Uint8Array(0),
      signals.map((signal) => ({ signal, close: () => {} })),
    );
  }

  read(offset: number, width = 4, region = 0): number {
    const bytes = new Uint8Array(width);
    this.device.readRegion(region, offset, bytes);
    return bytes.reduceRight((value, byte) => value * 256 + byte, 0);
  }

  write(offset: number, value: number, width = 4, region = 0): void {
    const bytes = new Uint8Array(width);
    for (let i = 0; i < width; i++) bytes[i] = Math.floor(value / 256 ** i) % 256;
    const written = this.device.writeRegion(region, offset, bytes);
    if (written !== undefined) throw new Error('a region write was not synchronous');
  }

  /** Waits for a condition; the deadline only ends a test that would hang. */
  async until(what: string, condition: () => boolean): Promise<void> {
    const deadline = Date.now() + 20_000;
    while (!condition()) {
      if (Date.now() > deadline) throw new Error(`timed out waiting for ${what}: ${this.logs.join('; ')}`);
      await turn();
    }
  }

  /** Enables the controller with admin queues of `entries`. */
  async enable(entries = 32): Promise<void> {
    this.guest.rings.clear();
    this.guest.slice(ADMIN_CQ, 0x4000).fill(0);
    this.write(0x24, ((entries - 1) << 16) | (entries - 1));
    this.write(0x28, ADMIN_SQ, 8);
    this.write(0x30, ADMIN_CQ, 8);
    this.guest.rings.set(0, {
      sq: ADMIN_SQ,
      cq: ADMIN_CQ,
      sqSize: entries,
      cqSize: entries,
      tail: 0,
      head: 0,
      phase: 1,
    });
    this.write(0x14, 0x460001);
    await this.until('CSTS.RDY', () => (this.read(0x1c) & 3) !== 0);
  }

  async disable(): Promise<void> {
    this.write(0x14, 0x460000);
    await this.until('CSTS.RDY to clear', () => (this.read(0x1c) & 1) === 0);
  }

  ring(qid: number): Ring {
    const ring = this.guest.rings.get(qid);
    if (ring === undefined) throw new Error(`no queue ${qid}`);
    return ring;
  }

  /** Puts a command into a queue without telling the controller. @returns its identifier */
  queue(qid: number, fields: CommandFields): number {
    const ring = this.ring(qid);
    const cid = fields.cid ?? this.guest.nextCid++ % 0xfff0;
    const at = ring.sq - MEMORY_BASE + 64 * ring.tail;
    const { view } = this.guest;
    this.guest.bytes.fill(0, at, at + 64);
    view.setUint32(at, fields.opcode | (fields.flags ?? 0) | (cid << 16), true);
    view.setUint32(at + 4, fields.nsid ?? 0, true);
    view.setBigUint64(at + 24, BigInt(fields.prp1 ?? 0), true);
    view.setBigUint64(at + 32, BigInt(fields.prp2 ?? 0), true);
    [fields.cdw10, fields.cdw11, fields.cdw12, fields.cdw13].forEach((value, index) => {
      view.setUint32(at + 40 + 4 * index, (value ?? 0) >>> 0, true);
    });
    ring.tail = (ring.tail + 1) % ring.sqSize;
    return cid;
  }

  /** Rings a submission doorbell. */
  submit(qid: number): void {
    this.write(0x1000 + 8 * qid, this.ring(qid).tail);
  }

  /** As `submit`, until `count` entries are fetched: on a slow machine a ring takes only as many as its time allows, but eight. */
  submitAll(qid: number, count: number): void {
    for (let taken = 0; taken < count; taken += 8) this.submit(qid);
  }

  /** The next completion, if it is there; the head doorbell is rung unless told otherwise. */
  poll(qid: number, ringDoorbell = true): Completion | undefined {
    const ring = this.ring(qid);
    const at = ring.cq - MEMORY_BASE + 16 * ring.head;
    const { view } = this.guest;
    const last = view.getUint32(at + 12, true);
    if (((last >>> 16) & 1) !== ring.phase) return undefined;
    ring.head = (ring.head + 1) % ring.cqSize;
    if (ring.head === 0) ring.phase ^= 1;
    const completion = {
      cid: last & 0xffff,
      field: last >>> 17,
      status: (last >>> 17) & 0x7ff,
      result: view.getUint32(at, true),
      sqHead: view.getUint16(at + 8, true),
      sqid: view.getUint16(at + 10, true),
    };
    if (ringDoorbell) this.write(0x1004 + 8 * qid, ring.head);
    return completion;
  }

  async completion(qid: number): Promise<Completion> {
    let found: Completion | undefined;
    await this.until(`a completion in queue ${qid}`, () => {
      found = this.poll(qid);
      return found !== undefined;
    });
    return found!;
  }

  /** Queues, submits and awaits one command. Only while nothing else is outstanding in the queue. */
  async run(qid: number, fields: CommandFields): Promise<Completion> {
    const cid = this.queue(qid, fields);
    this.submit(qid);
    const completion = await this.completion(qid);
    if (completion.cid !== cid) throw new Error(`completion of ${completion.cid}, not of ${cid}`);
    return completion;
  }

  admin(fields: CommandFields): Promise<Completion> {
    return this.run(0, fields);
  }

  /** Creates I/O queue pair `qid`. */
  async createPair(
    qid: number,
    entries = 64,
    options: { vector?: number; cqEntries?: number } = {},
  ): Promise<void> {
    const cqEntries = options.cqEntries ?? entries;
    const sq = IO_QUEUES + (qid - 1) * 0x8000;
    const cq = sq + 0x4000;
    this.guest.slice(cq, cqEntries * 16).fill(0);
    const vector = options.vector ?? qid;
    const cdw11 = 3 | (vector << 16);
    const first = await this.admin({ opcode: 5, prp1: cq, cdw10: ((cqEntries - 1) << 16) | qid, cdw11 });
    const second = await this.admin({
      opcode: 1,
      prp1: sq,
      cdw10: ((entries - 1) << 16) | qid,
      cdw11: 1 | (qid << 16),
    });
    if (first.status !== 0 || second.status !== 0) {
      throw new Error(
        `queue pair ${qid}: status ${first.status.toString(16)}, ${second.status.toString(16)}`,
      );
    }
    this.guest.rings.set(qid, { sq, cq, sqSize: entries, cqSize: cqEntries, tail: 0, head: 0, phase: 1 });
  }

  /** The final state, of a quiesced device. */
  async save(): Promise<StateRecord[]> {
    const records: StateRecord[] = [];
    for await (const record of this.device.formats[0]!.save('final')) {
      records.push({ ...record, payload: record.payload.slice() });
    }
    return records;
  }

  async load(records: readonly StateRecord[]): Promise<void> {
    const loader = this.device.formats[0]!.load({ major: 1, minor: 0 });
    for (const record of records) await loader.record(record);
    await loader.commit();
  }
}

/** A folder for images that goes with the test. */
export function imageFolder(test: { teardown(work: () => void): unknown }): string {
  const folder = mkdtempSync(join(tmpdir(), 'devstate-nvme-'));
  test.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

export interface RigOptions {
  vendor?: Vendor;
  kind?: MemoryKind;
  guest?: Guest;
  path: string;
  size?: number;
  lock?: boolean;
  parameters?: Record<string, string | number>;
  /** None, unless it is given. */
  journal?: (memory: GuestMemory) => HostJournal;
}

export function createRig(options: RigOptions): Rig {
  const image = ImageFile.open({
    path: options.path,
    size: options.size ?? 8 * 1024 * 1024,
    lock: options.lock ?? true,
  });
  const vendor = options.vendor ?? 'alder';
  const device = makers[vendor]({ image, parameters: options.parameters ?? {} });
  const { guest = new Guest(), kind = 'mapped', journal } = options;
  return new Rig(device, guest, kind, image, vendor, journal);
}
