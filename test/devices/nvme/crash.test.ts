// SPDX-License-Identifier: Apache-2.0
/**
 * A controller with a crash journal, stopped at a store to the journal that chance picks, and followed by one that has the
 * journal and guest memory as they were at that store. A guest that knows each of its commands works it all the time: it
 * reads completions without ringing the doorbell, so that completions find no room, and deletes and creates queues.
 *
 * `DEVSTATE_TEST_SEED` repeats a run, `DEVSTATE_TEST_CRASHES` makes it longer.
 */

import { randomInt } from 'node:crypto';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import t from 'tap';
import type { DeviceJournal, GuestMemory, HostJournal } from '../../../src/device/index.js';
import { AdminOpcode, IoOpcode } from '../../../src/devices/nvme/spec/index.js';
import { EFFECTS_SLOT, Journal, type SlotSpec, Transactions } from '../../../src/journal/index.js';
import { writeOrdered } from '../../../src/runtime/host-journal.js';
import {
  type CommandFields,
  type Completion,
  createRig,
  DATA,
  Guest,
  imageFolder,
  PAGE,
  type Rig,
} from './rig.js';

const CRASHES = Number(process.env.DEVSTATE_TEST_CRASHES ?? 100);
const SEED = Number(process.env.DEVSTATE_TEST_SEED ?? randomInt(2 ** 31));

/** Which region write was the last that was carried out. */
const WRITTEN: SlotSpec = { name: 'written', capacity: 8 };
/** Entries of a submission queue; so many less one can be outstanding. */
const ENTRIES = 16;
const BLOCKS_A_QUEUE = 64;

/** Pseudo-random numbers that a seed repeats (mulberry32). */
class Chance {
  #state: number;

  constructor(seed: number) {
    this.#state = seed;
  }

  /** An integer from 0 to below `bound`. */
  below(bound: number): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return Math.floor(((mixed ^ (mixed >>> 14)) >>> 0) / (2 ** 32 / bound));
  }
}

/** What is left of a process that ended at a store. */
interface Remains {
  readonly journal: Uint8Array;
  readonly guest: Guest;
}

function copyOf(guest: Guest): Guest {
  const copy = new Guest();
  copy.bytes.set(guest.bytes);
  for (const [qid, ring] of guest.rings) copy.rings.set(qid, { ...ring });
  copy.nextCid = guest.nextCid;
  return copy;
}

/** One process after the other: each ends at the store with the number that it was given. */
class Crashing {
  rig!: Rig;
  crashes = 0;
  readonly #chance: Chance;
  readonly #path: string;
  #journal!: Journal;
  #transactions!: Transactions;
  #written = 0;
  #memory!: Uint8Array;
  #remains: Remains | undefined;
  /** Infinity until the guest has its queues. */
  #storesLeft = Number.POSITIVE_INFINITY;

  constructor(path: string, chance: Chance) {
    this.#path = path;
    this.#chance = chance;
    this.#begin(new Guest(), undefined);
  }

  /** From now on the process ends at a store. */
  arm(): void {
    this.#storesLeft = this.#chance.below(4) === 0 ? this.#chance.below(2000) : this.#chance.below(150);
  }

  get #deviceJournal(): DeviceJournal {
    const { journal } = this.rig.device;
    if (journal === undefined) throw new Error('the device has no journal');
    return journal;
  }

  #begin(guest: Guest, kept: Uint8Array | undefined): void {
    this.#remains = undefined;
    if (kept !== undefined) this.arm();
    let memory!: GuestMemory;
    this.rig = createRig({
      path: this.#path,
      guest,
      lock: kept === undefined,
      journal: (of) => {
        memory = of;
        return this.#hostJournal();
      },
    });
    const { records } = this.#deviceJournal;
    const slots = [EFFECTS_SLOT, WRITTEN, ...records];
    const options = { messageLength: 4096, onStore: () => this.#stored(guest) };
    this.#memory = kept ?? new Uint8Array(Journal.lengthOf(slots, options));
    this.#journal =
      kept === undefined
        ? Journal.create(this.#memory, slots, options)
        : Journal.open(this.#memory, slots, options);
    this.#transactions = new Transactions(this.#journal);
    this.#transactions.effector = {
      signal: () => {},
      write: (address, bytes) => writeOrdered(memory, address, bytes),
    };
    const numbers = records.map(({ name }) => this.#journal.slot(name));
    const put = (record: number, bytes: Uint8Array): void => this.#journal.put(numbers[record]!, bytes);
    if (kept !== undefined) {
      this.#deviceJournal.restore((record) => this.#journal.get(numbers[record]!)?.slice());
      this.#transactions.redo();
    }
    this.#transactions.keep(() => this.#deviceJournal.save(put));
  }

  #hostJournal(): HostJournal {
    return {
      keeps: true,
      begin: () => this.#transactions.begin(),
      end: () => this.#transactions.end(),
      transaction: (work) => this.#transactions.run(work),
      write: (address, bytes) => this.#transactions.write(address, bytes),
    };
  }

  #stored(guest: Guest): void {
    if (this.#remains === undefined && --this.#storesLeft < 0)
      this.#remains = { journal: this.#memory.slice(), guest: copyOf(guest) };
  }

  /** Whether the process has ended: what happens in it from then on has not happened. */
  get ended(): boolean {
    return this.#remains !== undefined;
  }

  /** The next process, where this one has ended. */
  async follow(): Promise<void> {
    while (this.#remains !== undefined) {
      const { journal, guest } = this.#remains;
      this.crashes++;
      const { rig } = this;
      // What was under way takes its course in the kernel; the image is free for the next one after that.
      await rig.device.quiesce();
      await rig.image.close();
      this.#begin(guest, journal);
      await this.rig.device.resume();
    }
  }

  /** What the guest does by itself, in its memory, while a process is there. */
  async step<T>(work: (rig: Rig) => T): Promise<T> {
    do await this.follow();
    while (this.ended);
    return work(this.rig);
  }

  /** A region access of the guest: carried out by the process that it finds, or by the next. */
  async access(work: (rig: Rig) => void): Promise<void> {
    const number = ++this.#written;
    const bytes = new Uint8Array(Uint32Array.of(number, 0).buffer);
    for (;;) {
      await this.step((rig) =>
        this.#transactions.run(() => {
          work(rig);
          this.#journal.put(this.#journal.slot(WRITTEN.name), bytes);
        }),
      );
      if (!this.ended) return;
      await this.follow();
      const last = this.#journal.get(this.#journal.slot(WRITTEN.name));
      if (last !== undefined && new DataView(last.buffer, last.byteOffset).getUint32(0, true) === number)
        return;
    }
  }

  /** Issues an admin command, and takes its completion. Only one at a time. */
  async admin(fields: CommandFields): Promise<void> {
    const cid = await this.step((rig) => rig.queue(0, fields));
    await this.access((rig) => rig.submit(0));
    for (;;) {
      const completion = await this.step((rig) => rig.poll(0, false));
      if (completion === undefined) {
        await turn();
        continue;
      }
      if (completion.cid !== cid || completion.status !== 0)
        throw new Error(`admin command ${cid}: ${JSON.stringify(completion)}`);
      await this.access((rig) => rig.write(0x1004, rig.ring(0).head));
      return;
    }
  }

  /** Deletes a pair of I/O queues in which nothing is under way, and creates it again. */
  async recreate(qid: number): Promise<void> {
    const { sq, cq, sqSize, cqSize } = this.rig.ring(qid);
    await this.admin({ opcode: AdminOpcode.DELETE_IO_SQ, cdw10: qid });
    await this.admin({ opcode: AdminOpcode.DELETE_IO_CQ, cdw10: qid });
    await this.step(({ guest }) => guest.slice(cq, cqSize * 16).fill(0));
    const completions = { prp1: cq, cdw10: ((cqSize - 1) << 16) | qid, cdw11: 3 | (qid << 16) };
    await this.admin({ opcode: AdminOpcode.CREATE_IO_CQ, ...completions });
    const submissions = { prp1: sq, cdw10: ((sqSize - 1) << 16) | qid, cdw11: 1 | (qid << 16) };
    await this.admin({ opcode: AdminOpcode.CREATE_IO_SQ, ...submissions });
    await this.step((rig) => Object.assign(rig.ring(qid), { tail: 0, head: 0, phase: 1 }));
  }
}

interface Issued {
  readonly cid: number;
  readonly block: number | undefined;
  /** What a write has written there. */
  readonly number: number | undefined;
}

/** A guest with queues of its own, which knows what it has issued. */
class Worker {
  completed = 0;
  readonly #crashing: Crashing;
  readonly #chance: Chance;
  readonly qid: number;
  readonly #outstanding = new Map<number, Issued>();
  readonly #free = Array.from({ length: ENTRIES - 1 }, (_, cid) => cid);
  readonly #disk = new Map<number, number>();
  readonly #busy = new Set<number>();
  #number = 0;

  constructor(crashing: Crashing, chance: Chance, qid: number) {
    this.#crashing = crashing;
    this.#chance = chance;
    this.qid = qid;
  }

  async submit(): Promise<void> {
    const count = Math.min(1 + this.#chance.below(6), this.#free.length);
    await this.#crashing.step((rig) => {
      for (let left = count; left > 0; left--) this.#queue(rig);
    });
    await this.#crashing.access((rig) => rig.submit(this.qid));
  }

  #queue(rig: Rig): void {
    const cid = this.#free.pop()!;
    const block = this.#chance.below(BLOCKS_A_QUEUE);
    if (this.#chance.below(8) === 0 || this.#busy.has(block)) {
      this.#outstanding.set(cid, { cid, block: undefined, number: undefined });
      rig.queue(this.qid, { opcode: IoOpcode.FLUSH, cid, nsid: 1 });
      return;
    }
    const write = this.#chance.below(2) === 0;
    const prp1 = this.#buffer(cid);
    const number = write ? ++this.#number : undefined;
    const buffer = rig.guest.slice(prp1, PAGE);
    buffer.fill(0);
    if (number !== undefined) new DataView(buffer.buffer, buffer.byteOffset).setUint32(0, number, true);
    this.#busy.add(block);
    this.#outstanding.set(cid, { cid, block, number });
    const cdw10 = 8 * (this.qid * BLOCKS_A_QUEUE + block);
    // Force unit access: such a write is never over within the access that submits it.
    const cdw12 = 7 | (this.#chance.below(3) === 0 ? 0x40000000 : 0);
    rig.queue(this.qid, {
      opcode: write ? IoOpcode.WRITE : IoOpcode.READ,
      cid,
      nsid: 1,
      prp1,
      cdw10,
      cdw12: cdw12 | 0,
    });
  }

  #buffer(cid: number): number {
    return DATA + (this.qid * ENTRIES + cid) * PAGE;
  }

  /** Takes completions that are there. */
  async collect(ringing: boolean): Promise<void> {
    await this.#crashing.step((rig) => {
      for (let got = rig.poll(this.qid, false); got !== undefined; got = rig.poll(this.qid, false))
        this.#complete(rig, got);
    });
    if (ringing)
      await this.#crashing.access((rig) => rig.write(0x1004 + 8 * this.qid, rig.ring(this.qid).head));
  }

  #complete(rig: Rig, { cid, status, sqid }: Completion): void {
    const issued = this.#outstanding.get(cid);
    if (issued === undefined || sqid !== this.qid)
      throw new Error(`command ${cid} of queue ${sqid} was completed, which queue ${this.qid} does not have`);
    if (status !== 0) throw new Error(`command ${cid} of queue ${sqid} has status ${status.toString(16)}`);
    this.#outstanding.delete(cid);
    this.#free.push(cid);
    this.completed++;
    const { block, number } = issued;
    if (block === undefined) return;
    this.#busy.delete(block);
    if (number !== undefined) {
      this.#disk.set(block, number);
      return;
    }
    const buffer = rig.guest.slice(this.#buffer(cid), 4);
    const found = new DataView(buffer.buffer, buffer.byteOffset).getUint32(0, true);
    const expected = this.#disk.get(block) ?? 0;
    if (found !== expected) throw new Error(`block ${block} holds ${found}, not ${expected}`);
  }

  /** Until every command has ended. */
  async settle(): Promise<void> {
    while (this.#outstanding.size > 0) {
      await this.collect(true);
      await turn();
    }
  }
}

t.setTimeout(120_000);

t.test(`killed at any store, it completes each command once (seed ${SEED})`, async (t) => {
  const chance = new Chance(SEED);
  const crashing = new Crashing(join(imageFolder(t), 'image'), chance);
  await crashing.rig.enable();
  await crashing.rig.createPair(1, ENTRIES);
  // Three completions fit.
  await crashing.rig.createPair(2, ENTRIES, { cqEntries: 4 });
  crashing.arm();
  const workers = [1, 2].map((qid) => new Worker(crashing, chance, qid));
  while (crashing.crashes < CRASHES) {
    const worker = workers[chance.below(workers.length)]!;
    const what = chance.below(80);
    if (what === 0) {
      await worker.settle();
      await crashing.recreate(worker.qid);
    } else if (what < 30) await worker.submit();
    else if (what < 50) await worker.collect(true);
    else if (what < 60) await worker.collect(false);
    else await turn();
  }
  for (const worker of workers) await worker.settle();
  t.ok(
    workers.every(({ completed }) => completed > CRASHES / 2),
    'there was load',
  );
  for (const qid of [1, 2]) t.equal(crashing.rig.poll(qid), undefined, 'no completion is left over');
  await crashing.rig.device.quiesce();
  await crashing.rig.image.close();
});
