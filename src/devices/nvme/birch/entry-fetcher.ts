// SPDX-License-Identifier: Apache-2.0
/** Copies entries of submission queues into free command slots: at once from mapped guest memory, else by a read. */

import { SQ_ENTRY_SIZE } from '../spec/index.js';
import type { CompletionWriter } from './completion-writer.js';
import { type ControllerImage, submissionAt } from './controller-image.js';
import type { EngineOwner } from './engine-owner.js';
import { QUEUE_SLOTS, QueueSlot, SubmissionSlot } from './layout.js';
import { RingViews } from './ring-views.js';
import type { FreeSlots } from './slot-lists.js';

/** Entries taken from one queue before it is the next one's turn. */
const BURST = 8;

/** What the fetcher tells the engine. */
export interface FetcherEvents {
  /** Whether entries of this queue are still wanted. */
  wanted(sqid: number): boolean;
  /** An entry is in `slot`, for whose completion there is a reservation. */
  admitted(slot: number, sqid: number): void;
  /** A read is over. */
  readEnded(sqid: number): void;
  failed(what: string, error: unknown): void;
}

export class EntryFetcher {
  /** Reads under way, and the slots set aside for them. */
  reads = 0;
  claimed = 0;
  readonly #image: ControllerImage;
  readonly #owner: EngineOwner;
  readonly #free: FreeSlots;
  readonly #writer: CompletionWriter;
  readonly #events: FetcherEvents;
  readonly #rings = new RingViews('read');
  readonly #reading = new Uint8Array(QUEUE_SLOTS);

  constructor(
    image: ControllerImage,
    owner: EngineOwner,
    free: FreeSlots,
    writer: CompletionWriter,
    events: FetcherEvents,
  ) {
    this.#image = image;
    this.#owner = owner;
    this.#free = free;
    this.#writer = writer;
    this.#events = events;
  }

  /** A read of this queue's entries is under way. */
  isReading(sqid: number): boolean {
    return this.#reading[sqid] === 1;
  }

  /** A queue was created or deleted. */
  forget(sqid: number): void {
    this.#rings.forget(sqid);
  }

  /** The image is another one. Only when nothing is under way. */
  clear(): void {
    this.#rings.forgetAll();
  }

  /** Takes a burst of entries, as many as there are slots and room for completions. @returns how many were taken now */
  fetch(sqid: number): number {
    const image = this.#image;
    const at = submissionAt(sqid);
    const entries = image.u32(at + QueueSlot.ENTRIES);
    const tail = image.u32(at + QueueSlot.TAIL);
    const cqid = image.u16(at + SubmissionSlot.CQID);
    let head = image.u32(at + QueueSlot.HEAD);
    const credit = this.#writer.credit(cqid);
    if (credit <= 0) {
      this.#writer.starve(cqid);
      return 0;
    }
    const available = tail >= head ? tail - head : tail - head + entries;
    const count = Math.min(available, BURST, credit, this.#free.count);
    let ring: Int32Array | undefined;
    try {
      const base = image.u64(at + QueueSlot.BASE);
      ring = this.#rings.view(this.#owner.host.memory, sqid, base, entries * SQ_ENTRY_SIZE);
    } catch (error) {
      this.#events.failed(`submission queue ${sqid}`, error);
      return 0;
    }
    this.#writer.reserve(cqid, ring === undefined ? Math.min(count, entries - head) : count);
    if (ring === undefined) {
      void this.#read(sqid, cqid, Math.min(count, entries - head));
      return 0;
    }
    for (let i = 0; i < count; i++) {
      const slot = this.#free.take();
      image.takeEntry(slot, ring, head);
      head = head + 1 === entries ? 0 : head + 1;
      this.#events.admitted(slot, sqid);
    }
    image.setU32(at + QueueSlot.HEAD, head);
    return count;
  }

  /** Reads `count` entries, which do not go past the queue's end and for whose completions there is a reservation. */
  async #read(sqid: number, cqid: number, count: number): Promise<void> {
    const image = this.#image;
    const at = submissionAt(sqid);
    const head = image.u32(at + QueueSlot.HEAD);
    const slots = Array.from({ length: count }, () => this.#free.take());
    this.claimed += count;
    this.reads++;
    this.#reading[sqid] = 1;
    const ring = new Int32Array((count * SQ_ENTRY_SIZE) / 4);
    let wanted = false;
    try {
      const address = image.u64(at + QueueSlot.BASE) + head * SQ_ENTRY_SIZE;
      await this.#owner.host.memory.read(address, new Uint8Array(ring.buffer));
      wanted = this.#events.wanted(sqid);
    } catch (error) {
      this.#events.failed(`submission queue ${sqid}`, error);
    }
    for (const [index, slot] of slots.entries()) {
      if (!wanted) this.#free.give(slot);
      else {
        image.takeEntry(slot, ring, index);
        this.#events.admitted(slot, sqid);
      }
    }
    if (wanted) image.setU32(at + QueueSlot.HEAD, (head + count) % image.u32(at + QueueSlot.ENTRIES));
    else this.#writer.reserve(cqid, -count);
    this.claimed -= count;
    this.reads--;
    this.#reading[sqid] = 0;
    this.#events.readEnded(sqid);
  }
}
