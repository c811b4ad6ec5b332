// SPDX-License-Identifier: Apache-2.0
/**
 * Commands in: from the guest's submission queues into command slots, and from there into the command sets.
 *
 * ```
 *  doorbell ─► turns ─► fetch, a burst each ─► FETCHED ─► STARTED ─► CompletionWriter
 *                ▲                                │          └─► WAITING (event requests)
 *                └── more entries, and room       └── quiesced: stays, and is state
 * ```
 * A command is fetched only when there is room for its completion, and started only while few others are under way.
 * All state is in the image; the lists here are an index over it.
 */

import { SQ_ENTRY_SIZE, Status, statusField } from '../spec/index.js';
import { CompletionWriter } from './completion-writer.js';
import { type ControllerImage, commandAt, submissionAt } from './controller-image.js';
import { type EngineOwner, PARKED, PENDING } from './engine-owner.js';
import {
  COMMAND_SLOTS,
  CommandSlot,
  CommandState,
  QUEUE_SIZE,
  QUEUE_SLOTS,
  QueueSlot,
  QueueState,
  SubmissionSlot,
} from './layout.js';
import { May, Mode } from './mode.js';
import { commandsInOrder } from './records.js';
import { RingViews } from './ring-views.js';
import { FreeSlots, SlotQueue, slotLinks } from './slot-lists.js';

/** Commands fetched and not completed, over all queues. */
const FETCH_LIMIT = 256;
/** Commands under way at a time: as many as the disk makes use of. */
const START_LIMIT = 32;
/** Entries taken from one queue before it is the next one's turn. */
const BURST = 8;
/** Entries taken before other work of the process gets its turn. */
const BATCH = 64;

export class QueueEngine {
  /** Called whenever nothing is under way any more. */
  onIdle: (() => void) | undefined;
  readonly #image: ControllerImage;
  readonly #owner: EngineOwner;
  readonly #writer: CompletionWriter;
  readonly #rings = new RingViews('read');
  readonly #free = new FreeSlots();
  readonly #ready: SlotQueue;
  readonly #waiting: SlotQueue;
  /** By submission queue: commands fetched and not completed, and a fetch under way as one more. */
  readonly #outstanding = new Int32Array(QUEUE_SLOTS);
  readonly #fetching = new Uint8Array(QUEUE_SLOTS);
  /** Queues that may have entries to fetch, in the order of their turns. */
  readonly #turns: number[] = [];
  readonly #inTurn = new Uint8Array(QUEUE_SLOTS);
  /** By submission queue that is being deleted: whom to tell. */
  readonly #deleting = new Map<number, () => void>();
  #started = 0;
  /** Fetches under way, and the slots set aside for them. */
  #fetches = 0;
  #claimed = 0;
  #pumping = false;
  #mode: Mode = Mode.SILENT;
  #order = 0;

  constructor(image: ControllerImage, owner: EngineOwner) {
    const links = slotLinks();
    this.#image = image;
    this.#owner = owner;
    this.#ready = new SlotQueue(links);
    this.#waiting = new SlotQueue(links);
    this.#writer = new CompletionWriter(image, owner, links, {
      released: (slot) => this.#release(slot),
      nextOrder: () => ++this.#order,
      writeEnded: () => this.#pump(),
      failed: (what, error) => this.#ringFailed(what, error),
    });
    this.rebuild();
  }

  get mode(): Mode {
    return this.#mode;
  }

  /** What the engine may do from now on; work that became possible is taken up. */
  setMode(mode: Mode): void {
    this.#mode = mode;
    this.#writer.mode = mode;
    this.#writer.postAll();
    for (let id = 0; id < QUEUE_SLOTS; id++) this.#offerTurn(id);
    this.#pump();
  }

  /** Nothing is under way, nor, while commands may be started, is there one to start. */
  get idle(): boolean {
    const toStart = (this.#mode & May.START) === 0 ? 0 : this.#ready.length;
    return this.#started + this.#fetches + this.#writer.writes + toStart === 0;
  }

  /** Event requests that wait. */
  get waiting(): number {
    return this.#waiting.length;
  }

  /** The submission tail doorbell. @returns false when the value is out of range */
  ringSubmission(id: number, tail: number): boolean {
    const at = submissionAt(id);
    if (tail >= this.#image.u32(at + QueueSlot.ENTRIES)) return false;
    this.#image.setU32(at + QueueSlot.TAIL, tail);
    this.#offerTurn(id);
    this.#pump();
    return true;
  }

  /** The completion head doorbell. @returns false when the value is out of range or beyond what was posted */
  ringCompletion(id: number, head: number): boolean {
    if (!this.#writer.consume(id, head)) return false;
    if (this.#writer.takeStarved(id)) {
      for (let sqid = 0; sqid < QUEUE_SLOTS; sqid++) {
        if (this.#image.u16(submissionAt(sqid) + SubmissionSlot.CQID) === id) this.#offerTurn(sqid);
      }
    }
    if (this.#turns.length > 0) this.#pump();
    return true;
  }

  /** Ends a command that was `PENDING`. */
  finish(slot: number, status: number): void {
    this.#started--;
    this.#end(slot, status);
    this.#pump();
  }

  /** Answers the event request that waits longest. Only when one does. */
  answerOldest(status: number, result: number): void {
    this.#answer(this.#waiting.shift(), status, result);
  }

  /** Answers the event request with this identifier. @returns false when there is none */
  answerRequest(cid: number, status: number): boolean {
    const slot = this.#waiting.extractFirst((other) => this.#image.cid(other) === cid);
    if (slot === undefined) return false;
    this.#answer(slot, status, 0);
    return true;
  }

  /** A queue's slot was filled or emptied. */
  queueChanged(kind: 'submission' | 'completion', id: number): void {
    if (kind === 'submission') this.#rings.forget(id);
    else this.#writer.forget(id);
  }

  /**
   * Deletes a submission queue as soon as none of its commands is under way: now or later. Commands that were not
   * started yet are aborted; completions without room are dropped, as those of a queue that goes may be.
   */
  deleteSubmission(id: number, done: () => void): void {
    this.#image.setU8(submissionAt(id) + QueueSlot.STATE, QueueState.DELETING);
    this.#deleting.set(id, done);
    for (const slot of this.#ready.extract((other) => this.#image.sqid(other) === id)) {
      this.#end(slot, Status.ABORTED_SQ_DELETION);
    }
    this.#checkDeleted(id);
  }

  /** Makes the index anew: the image was loaded or cleared. Only when idle. */
  rebuild(): void {
    const image = this.#image;
    this.#ready.clear();
    this.#waiting.clear();
    this.#writer.clear();
    this.#free.clear();
    this.#rings.forgetAll();
    this.#outstanding.fill(0);
    this.#turns.length = 0;
    this.#inTurn.fill(0);
    for (let slot = COMMAND_SLOTS - 1; slot >= 0; slot--) {
      if (image.u8(commandAt(slot) + CommandSlot.STATE) === CommandState.FREE) this.#free.give(slot);
    }
    const used = commandsInOrder(image);
    const last = used.at(-1);
    this.#order = last === undefined ? 0 : image.view.getFloat64(commandAt(last) + CommandSlot.ORDER, true);
    for (const slot of used) this.#enlist(slot);
  }

  #enlist(slot: number): void {
    const state = this.#image.u8(commandAt(slot) + CommandSlot.STATE);
    if (state === CommandState.WAITING) this.#waiting.push(slot);
    else if (state === CommandState.DUE) this.#writer.adopt(slot);
    else {
      const sqid = this.#image.sqid(slot);
      this.#outstanding[sqid]!++;
      this.#writer.reserve(this.#completionQueue(sqid), 1);
      this.#ready.push(slot);
    }
  }

  #completionQueue(sqid: number): number {
    return this.#image.u16(submissionAt(sqid) + SubmissionSlot.CQID);
  }

  #offerTurn(id: number): void {
    const at = submissionAt(id);
    const image = this.#image;
    if (image.u8(at + QueueSlot.STATE) !== QueueState.PRESENT) return;
    if (this.#inTurn[id] === 1 || this.#fetching[id] === 1) return;
    if (image.u32(at + QueueSlot.HEAD) === image.u32(at + QueueSlot.TAIL)) return;
    this.#inTurn[id] = 1;
    this.#turns.push(id);
  }

  #pump(): void {
    if (this.#pumping) return;
    this.#pumping = true;
    this.#writer.beginBatch();
    let left = BATCH;
    this.#startReady();
    while (left > 0 && this.#turns.length > 0 && this.#mayFetch()) {
      const id = this.#turns.shift()!;
      this.#inTurn[id] = 0;
      left -= this.#fetch(id);
      this.#startReady();
    }
    if (left <= 0 && this.#turns.length > 0) setImmediate(() => this.#pump());
    this.#pumping = false;
    this.#writer.endBatch();
    if (this.onIdle !== undefined && this.idle) this.onIdle();
  }

  #mayFetch(): boolean {
    const { length } = this.#ready;
    const limited = this.#started + this.#claimed + length >= FETCH_LIMIT || this.#free.count === 0;
    return (this.#mode & May.FETCH) !== 0 && !limited;
  }

  /** Takes a burst of entries from a queue. @returns how many are taken now */
  #fetch(id: number): number {
    const image = this.#image;
    const at = submissionAt(id);
    if (image.u8(at + QueueSlot.STATE) !== QueueState.PRESENT) return 0;
    const entries = image.u32(at + QueueSlot.ENTRIES);
    const tail = image.u32(at + QueueSlot.TAIL);
    let head = image.u32(at + QueueSlot.HEAD);
    const cqid = image.u16(at + SubmissionSlot.CQID);
    const credit = this.#writer.credit(cqid);
    if (credit <= 0) {
      this.#writer.starve(cqid);
      return 0;
    }
    const available = tail >= head ? tail - head : tail - head + entries;
    const count = Math.min(available, BURST, credit, this.#free.count);
    const base = image.u64(at + QueueSlot.BASE);
    let ring: Int32Array | undefined;
    try {
      ring = this.#rings.view(this.#owner.host.memory, id, base, entries * SQ_ENTRY_SIZE);
    } catch (error) {
      this.#ringFailed(`submission queue ${id}`, error);
      return 0;
    }
    if (ring === undefined) {
      void this.#fetchRemote(id, Math.min(count, entries - head));
      return 0;
    }
    for (let i = 0; i < count; i++) {
      const slot = this.#free.take();
      image.takeEntry(slot, ring, head);
      head = head + 1 === entries ? 0 : head + 1;
      this.#admit(slot, id);
    }
    this.#writer.reserve(cqid, count);
    image.setU32(at + QueueSlot.HEAD, head);
    this.#offerTurn(id);
    return count;
  }

  async #fetchRemote(id: number, count: number): Promise<void> {
    const image = this.#image;
    const at = submissionAt(id);
    const cqid = image.u16(at + SubmissionSlot.CQID);
    const head = image.u32(at + QueueSlot.HEAD);
    const slots = Array.from({ length: count }, () => this.#free.take());
    this.#writer.reserve(cqid, count);
    this.#claimed += count;
    this.#fetching[id] = 1;
    this.#outstanding[id]!++;
    this.#fetches++;
    const ring = new Int32Array((count * SQ_ENTRY_SIZE) / 4);
    let taken = false;
    try {
      const address = image.u64(at + QueueSlot.BASE) + head * SQ_ENTRY_SIZE;
      await this.#owner.host.memory.read(address, new Uint8Array(ring.buffer));
      taken = (this.#mode & May.FETCH) !== 0 && image.u8(at + QueueSlot.STATE) === QueueState.PRESENT;
    } catch (error) {
      this.#ringFailed(`submission queue ${id}`, error);
    }
    for (const [index, slot] of slots.entries()) {
      if (!taken) this.#free.give(slot);
      else {
        image.takeEntry(slot, ring, index);
        this.#admit(slot, id);
      }
    }
    if (taken) image.setU32(at + QueueSlot.HEAD, (head + count) % image.u32(at + QueueSlot.ENTRIES));
    else this.#writer.reserve(cqid, -count);
    this.#claimed -= count;
    this.#fetching[id] = 0;
    this.#outstanding[id]!--;
    this.#fetches--;
    this.#checkDeleted(id);
    this.#offerTurn(id);
    this.#pump();
  }

  /** An entry was copied to a slot. */
  #admit(slot: number, sqid: number): void {
    const image = this.#image;
    const at = commandAt(slot);
    image.setU8(at + CommandSlot.STATE, CommandState.FETCHED);
    image.setU16(at + CommandSlot.SQID, sqid);
    image.setU32(at + CommandSlot.STATUS, 0);
    image.setU32(at + CommandSlot.RESULT, 0);
    image.view.setFloat64(at + CommandSlot.ORDER, ++this.#order, true);
    this.#outstanding[sqid]!++;
    this.#ready.push(slot);
  }

  #startReady(): void {
    while (this.#ready.length > 0 && this.#started < START_LIMIT && (this.#mode & May.START) !== 0) {
      const slot = this.#ready.shift();
      this.#image.setU8(commandAt(slot) + CommandSlot.STATE, CommandState.STARTED);
      this.#started++;
      const status = this.#owner.execute(slot);
      if (status === PENDING) continue;
      this.#started--;
      if (status === PARKED) this.#park(slot);
      else this.#end(slot, status);
    }
  }

  /** An event request waits, and is no longer counted among what is under way. */
  #park(slot: number): void {
    const sqid = this.#image.sqid(slot);
    this.#image.setU8(commandAt(slot) + CommandSlot.STATE, CommandState.WAITING);
    this.#outstanding[sqid]!--;
    this.#writer.reserve(this.#completionQueue(sqid), -1);
    this.#waiting.push(slot);
    this.#owner.parked();
  }

  #answer(slot: number, status: number, result: number): void {
    this.#writer.reserve(this.#completionQueue(this.#image.sqid(slot)), 1);
    this.#image.setU32(commandAt(slot) + CommandSlot.RESULT, result);
    this.#writer.complete(slot, statusField(status));
  }

  /** A command has ended, or never began. */
  #end(slot: number, status: number): void {
    const sqid = this.#image.sqid(slot);
    const field = status === Status.SUCCESS ? status : this.#owner.failed(slot, statusField(status));
    this.#writer.complete(slot, field);
    this.#outstanding[sqid]!--;
    this.#checkDeleted(sqid);
  }

  #checkDeleted(sqid: number): void {
    const done = this.#deleting.get(sqid);
    if (done === undefined || this.#outstanding[sqid] !== 0) return;
    this.#deleting.delete(sqid);
    this.#writer.drop(sqid);
    this.#image.span(submissionAt(sqid), QUEUE_SIZE).fill(0);
    this.#rings.forget(sqid);
    done();
  }

  #release(slot: number): void {
    this.#image.setU8(commandAt(slot) + CommandSlot.STATE, CommandState.FREE);
    this.#free.give(slot);
  }

  #ringFailed(what: string, error: unknown): void {
    this.#mode = Mode.SILENT;
    this.#writer.mode = Mode.SILENT;
    this.#owner.fatal(`${what}: ${error instanceof Error ? error.message : String(error)}`);
  }
}
