// SPDX-License-Identifier: Apache-2.0
/**
 * Completions out: into the guest's completion queues, or, while there is no room, kept in their command slots as DUE.
 *
 * For each queue it counts the commands whose completions are still to come, so that none is fetched that would find no
 * room. What finds none all the same: completions of event requests, and what another controller left behind.
 */

import { CQ_ENTRY_SIZE, CQES } from '../spec/index.js';
import { type ControllerImage, commandAt, completionAt, submissionAt } from './controller-image.js';
import type { EngineOwner } from './engine-owner.js';
import {
  CommandSlot,
  CommandState,
  CompletionSlot,
  QUEUE_SLOTS,
  QueueSlot,
  QueueState,
  SubmissionSlot,
} from './layout.js';
import { May, Mode } from './mode.js';
import { RingViews } from './ring-views.js';
import { SlotQueue } from './slot-lists.js';

const ENTRY_WORDS = CQ_ENTRY_SIZE / 4;
/** Entries of one write where guest memory is reached by messages. */
const REMOTE_ENTRIES = 32;

/** What the writer tells the engine. */
export interface WriterEvents {
  /** The slot is done with. */
  released(slot: number): void;
  /** Order of a change of state, see `CommandSlot.ORDER`. */
  nextOrder(): number;
  /** A write to this queue that took time is over. */
  writeEnded(cqid: number): void;
  failed(what: string, error: unknown): void;
}

export class CompletionWriter {
  mode: Mode = Mode.SILENT;
  /** Writes under way. */
  writes = 0;
  readonly #image: ControllerImage;
  readonly #owner: EngineOwner;
  readonly #events: WriterEvents;
  readonly #rings = new RingViews('write');
  /** By completion queue: DUE slots, oldest first. */
  readonly #due: SlotQueue[];
  /** By completion queue: completions to come, the due ones included. */
  readonly #reserved = new Int32Array(QUEUE_SLOTS);
  readonly #writing = new Uint8Array(QUEUE_SLOTS);
  /** A submission queue was passed over because this completion queue has no room. */
  readonly #starved = new Uint8Array(QUEUE_SLOTS);
  /** Queues to announce when the batch ends. */
  readonly #toAnnounce: number[] = [];
  #inBatch = false;

  constructor(image: ControllerImage, owner: EngineOwner, links: Int32Array, events: WriterEvents) {
    this.#image = image;
    this.#owner = owner;
    this.#events = events;
    this.#due = Array.from({ length: QUEUE_SLOTS }, () => new SlotQueue(links));
  }

  /** Until `endBatch`, a queue is announced at most once, at the end. */
  beginBatch(): void {
    this.#inBatch = true;
  }

  endBatch(): void {
    this.#inBatch = false;
    for (const id of this.#toAnnounce) this.#owner.announce(id);
    this.#toAnnounce.length = 0;
  }

  /** Commands that may be fetched now whose completions go to this queue. */
  credit(id: number): number {
    return this.#room(id) - this.#reserved[id]!;
  }

  /** Counts `change` more completions to come. */
  reserve(id: number, change: number): void {
    this.#reserved[id]! += change;
  }

  starve(id: number): void {
    this.#starved[id] = 1;
  }

  /** Whether a submission queue was passed over because of this queue, which it no longer is. */
  takeStarved(id: number): boolean {
    const starved = this.#starved[id] === 1;
    this.#starved[id] = 0;
    return starved;
  }

  /** Completes the command in a slot, for which there is a reservation. @param status the field without phase */
  complete(slot: number, status: number): void {
    const image = this.#image;
    const id = this.#queueOf(slot);
    if ((this.mode & May.KEEP) === 0) {
      this.#done(slot, id);
      return;
    }
    const at = commandAt(slot);
    image.setU16(at + CommandSlot.STATUS, status);
    image.setCommandState(slot, CommandState.DUE);
    image.view.setFloat64(at + CommandSlot.ORDER, this.#events.nextOrder(), true);
    this.#due[id]!.push(slot);
    this.#post(id);
  }

  /** Takes a slot that is DUE in an image that was loaded. */
  adopt(slot: number): void {
    const id = this.#queueOf(slot);
    this.#reserved[id]!++;
    this.#due[id]!.push(slot);
  }

  /** Drops what is due of a submission queue. */
  drop(sqid: number): void {
    const id = this.#image.u16(submissionAt(sqid) + SubmissionSlot.CQID);
    for (const slot of this.#due[id]!.extract((other) => this.#image.sqid(other) === sqid)) {
      this.#done(slot, id);
    }
  }

  /** A write to this queue is under way. */
  isWriting(id: number): boolean {
    return this.#writing[id] === 1;
  }

  /** Whether a completion of this submission queue is due. */
  hasDue(sqid: number): boolean {
    const id = this.#image.u16(submissionAt(sqid) + SubmissionSlot.CQID);
    return this.#due[id]!.some((slot) => this.#image.sqid(slot) === sqid);
  }

  /** A queue was created or deleted. */
  forget(id: number): void {
    this.#rings.forget(id);
    this.#starved[id] = 0;
  }

  /** Writes what is due wherever there is room. */
  postAll(): void {
    for (let id = 0; id < QUEUE_SLOTS; id++) this.#post(id);
  }

  /** The completion head doorbell. @returns false when the value is out of range or beyond what was posted */
  consume(id: number, head: number): boolean {
    const image = this.#image;
    const at = completionAt(id);
    const entries = image.u32(at + QueueSlot.ENTRIES);
    const from = image.u32(at + QueueSlot.HEAD);
    const tail = image.u32(at + QueueSlot.TAIL);
    const consumed = head >= from ? head - from : head - from + entries;
    const written = tail >= from ? tail - from : tail - from + entries;
    if (head >= entries || consumed > written) return false;
    image.setU32(at + QueueSlot.HEAD, head);
    this.#post(id);
    if (head === image.u32(at + QueueSlot.TAIL)) this.#owner.announce(id);
    return true;
  }

  /** Forgets everything about the image. Only when nothing is under way. */
  clear(): void {
    for (const due of this.#due) due.clear();
    this.#rings.forgetAll();
    this.#reserved.fill(0);
    this.#starved.fill(0);
    this.#toAnnounce.length = 0;
  }

  #queueOf(slot: number): number {
    return this.#image.u16(submissionAt(this.#image.sqid(slot)) + SubmissionSlot.CQID);
  }

  /** Free entries: one always stays free, so that full and empty differ. */
  #room(id: number): number {
    const at = completionAt(id);
    const entries = this.#image.u32(at + QueueSlot.ENTRIES);
    const used = this.#image.u32(at + QueueSlot.TAIL) - this.#image.u32(at + QueueSlot.HEAD);
    return entries - 1 - (used < 0 ? used + entries : used);
  }

  #done(slot: number, id: number): void {
    this.#reserved[id]!--;
    this.#events.released(slot);
  }

  #post(id: number): void {
    const due = this.#due[id]!;
    if (due.length === 0 || (this.mode & May.POST) === 0 || this.#writing[id] === 1) return;
    const at = completionAt(id);
    const { memory } = this.#owner.host;
    try {
      const base = this.#image.u64(at + QueueSlot.BASE);
      const length = this.#image.u32(at + QueueSlot.ENTRIES) << CQES;
      const ring = this.#rings.view(memory, id, base, length);
      if (ring === undefined) {
        void this.#postRemote(id);
        return;
      }
      const count = Math.min(due.length, this.#room(id));
      for (let i = 0; i < count; i++) {
        const index = this.#image.u32(at + QueueSlot.TAIL);
        this.#writeEntry(id, due.shift(), ring, index * ENTRY_WORDS);
        memory.written(base + index * CQ_ENTRY_SIZE, CQ_ENTRY_SIZE);
      }
      if (count > 0) this.#announce(id);
    } catch (error) {
      this.#events.failed(`completion queue ${id}`, error);
    }
  }

  async #postRemote(id: number): Promise<void> {
    const at = completionAt(id);
    const image = this.#image;
    this.#writing[id] = 1;
    this.writes++;
    try {
      for (;;) {
        const tail = image.u32(at + QueueSlot.TAIL);
        const count = Math.min(
          this.#due[id]!.length,
          this.#room(id),
          image.u32(at + QueueSlot.ENTRIES) - tail,
          REMOTE_ENTRIES,
        );
        if (count === 0 || (this.mode & May.POST) === 0) break;
        const words = new Int32Array(count * ENTRY_WORDS);
        // The tail moves before the write: the guest may consume an entry before we learn that it was written.
        for (let i = 0; i < count; i++) this.#writeEntry(id, this.#due[id]!.shift(), words, i * ENTRY_WORDS);
        const address = image.u64(at + QueueSlot.BASE) + tail * CQ_ENTRY_SIZE;
        await this.#owner.host.memory.write(address, new Uint8Array(words.buffer));
        if ((this.mode & May.POST) !== 0) this.#announce(id);
      }
    } catch (error) {
      this.#events.failed(`completion queue ${id}`, error);
    } finally {
      this.#writing[id] = 0;
      this.writes--;
    }
    this.#events.writeEnded(id);
  }

  /** Takes the queue's next entry, writes it to `words` from `to` on, and ends the slot. */
  #writeEntry(id: number, slot: number, words: Int32Array, to: number): void {
    const image = this.#image;
    const queue = completionAt(id);
    const command = commandAt(slot);
    const sqid = image.sqid(slot);
    const phase = image.u8(queue + CompletionSlot.PHASE);
    words[to] = image.u32(command + CommandSlot.RESULT);
    words[to + 1] = 0;
    words[to + 2] = image.u32(submissionAt(sqid) + QueueSlot.HEAD) | (sqid << 16);
    const status = (image.u16(command + CommandSlot.STATUS) << 1) | phase;
    // The dword with the phase tag last, because the guest goes by it.
    Atomics.store(words, to + 3, image.cid(slot) | (status << 16));
    const next = image.u32(queue + QueueSlot.TAIL) + 1;
    const wraps = next === image.u32(queue + QueueSlot.ENTRIES);
    image.setU32(queue + QueueSlot.TAIL, wraps ? 0 : next);
    if (wraps) image.setU8(queue + CompletionSlot.PHASE, phase ^ 1);
    this.#done(slot, id);
  }

  #announce(id: number): void {
    if (this.#image.u8(completionAt(id) + QueueSlot.STATE) !== QueueState.PRESENT) return;
    if (!this.#inBatch) this.#owner.announce(id);
    else if (!this.#toAnnounce.includes(id)) this.#toAnnounce.push(id);
  }
}
