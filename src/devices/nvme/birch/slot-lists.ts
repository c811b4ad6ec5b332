// SPDX-License-Identifier: Apache-2.0
/**
 * Which command slots are free, and queues of slots: an index over the image's command table that can be rebuilt from
 * it at any time. Slots are linked through one array, so nothing is allocated while commands come and go.
 */

import { COMMAND_SLOTS } from './layout.js';

const END = -1;

/** Slots first in, first out. A slot is in one queue at a time. */
export class SlotQueue {
  length = 0;
  #head = END;
  #tail = END;

  constructor(readonly links: Int32Array) {}

  push(slot: number): void {
    this.links[slot] = END;
    if (this.length++ === 0) this.#head = slot;
    else this.links[this.#tail] = slot;
    this.#tail = slot;
  }

  /** The oldest. Only when there is one. */
  shift(): number {
    const slot = this.#head;
    this.#head = this.links[slot]!;
    this.length--;
    return slot;
  }

  some(matches: (slot: number) => boolean): boolean {
    for (let left = this.length, slot = this.#head; left > 0; left--, slot = this.links[slot]!) {
      if (matches(slot)) return true;
    }
    return false;
  }

  /** Removes the slots that `matches`, in order. */
  extract(matches: (slot: number) => boolean): number[] {
    const slots = this.clear();
    const extracted: number[] = [];
    for (const slot of slots) {
      if (matches(slot)) extracted.push(slot);
      else this.push(slot);
    }
    return extracted;
  }

  /** Removes the oldest slot that `matches`, if there is one. */
  extractFirst(matches: (slot: number) => boolean): number | undefined {
    let found: number | undefined;
    for (const slot of this.clear()) {
      if (found === undefined && matches(slot)) found = slot;
      else this.push(slot);
    }
    return found;
  }

  /** @returns what was in it */
  clear(): number[] {
    const slots: number[] = [];
    while (this.length > 0) slots.push(this.shift());
    return slots;
  }
}

/** New links for the slots of one image. */
export function slotLinks(): Int32Array {
  return new Int32Array(COMMAND_SLOTS).fill(END);
}

/** Free slots; the one freed last is used next, as it is still in the cache, and one that never was when there is none. */
export class FreeSlots {
  readonly #slots = new Int32Array(COMMAND_SLOTS);
  #given = 0;
  /** No slot from here on has been taken. */
  #end = 0;

  get count(): number {
    return this.#given + COMMAND_SLOTS - this.#end;
  }

  /** Only when there is one. */
  take(): number {
    return this.#given > 0 ? this.#slots[--this.#given]! : this.#end++;
  }

  give(slot: number): void {
    this.#slots[this.#given++] = slot;
  }

  /** The slots from `end` on are free; of those before, the ones that are given then. */
  reset(end: number): void {
    this.#given = 0;
    this.#end = end;
  }
}
