// SPDX-License-Identifier: Apache-2.0
/** Submission and completion queues: rings in guest memory with their indexes. */

import type { Access, GuestMemory } from '../../../device/index.js';
import { CQ_ENTRY_SIZE, SQ_ENTRY_SIZE } from '../spec/index.js';

/** A ring's place in guest memory, seen as dwords when it is mapped as one piece. */
class RingMemory {
  #words: Int32Array | undefined;
  #generation = -1;

  constructor(
    readonly base: number,
    readonly length: number,
    readonly access: Access,
  ) {}

  /** Undefined when the ring must be reached through `GuestMemory.read` and `write`. @throws DmaFault */
  words(memory: GuestMemory): Int32Array | undefined {
    if (this.#generation !== memory.generation) {
      const view = memory.view(this.base, this.length, this.access);
      // Dwords are stored whole, so that the guest never sees half of one; that needs alignment.
      this.#words =
        view === undefined || view.byteOffset % 4 !== 0
          ? undefined
          : new Int32Array(view.buffer, view.byteOffset, this.length / 4);
      this.#generation = memory.generation;
    }
    return this.#words;
  }
}

export class SubmissionQueue {
  readonly ring: RingMemory;
  /** Next entry to fetch. */
  head = 0;
  /** One past the last entry that the guest has submitted. */
  tail = 0;
  /** Commands fetched and not completed. */
  outstanding = 0;
  /** An asynchronous fetch is under way. */
  fetching = false;
  deleted = false;
  /** Called when `outstanding` becomes 0. */
  onDrained: (() => void) | undefined;

  constructor(
    readonly id: number,
    readonly base: number,
    /** Entries. */
    readonly size: number,
    readonly cq: CompletionQueue,
    readonly priority: number,
  ) {
    this.ring = new RingMemory(base, size * SQ_ENTRY_SIZE, 'read');
  }
}

/** A completion that has no room in its queue, or waits for the one before it to be written. */
export interface HeldCompletion {
  readonly sq: SubmissionQueue;
  readonly cid: number;
  /** Status field without phase. */
  readonly status: number;
  readonly result: number;
}

export class CompletionQueue {
  readonly ring: RingMemory;
  /** Oldest entry that the guest has not consumed. */
  head = 0;
  /** Next entry to write. */
  tail = 0;
  /** Phase tag of the entries being written. */
  phase = 1;
  held: HeldCompletion[] = [];
  /** An asynchronous write of entries is under way. */
  posting = false;
  /** Called when such a write has ended; set while the queue's deletion waits for it. */
  idle: (() => void) | undefined;
  /** Entries were written and not yet announced. */
  due = false;
  deleted = false;

  constructor(
    readonly id: number,
    readonly base: number,
    /** Entries. */
    readonly size: number,
    readonly vector: number,
    readonly interruptsEnabled: boolean,
  ) {
    this.ring = new RingMemory(base, size * CQ_ENTRY_SIZE, 'write');
  }

  get full(): boolean {
    const next = this.tail + 1;
    return (next === this.size ? 0 : next) === this.head;
  }

  get empty(): boolean {
    return this.head === this.tail;
  }

  /** Takes the next entry for writing: its index. Only when not full. */
  advance(): number {
    const index = this.tail;
    if (index + 1 === this.size) {
      this.tail = 0;
      this.phase ^= 1;
    } else this.tail = index + 1;
    return index;
  }

  /** Whether the guest may move the head to `head`: to any entry that was written, up to the tail. */
  mayConsumeTo(head: number): boolean {
    const written = (this.tail - this.head + this.size) % this.size;
    const consumed = (head - this.head + this.size) % this.size;
    return head < this.size && consumed <= written;
  }
}
