// SPDX-License-Identifier: Apache-2.0
/** What is going to happen, in the order of a simulated time: a binary heap. */

interface Entry {
  readonly at: number;
  readonly order: number;
  readonly act: () => void;
}

export class Agenda {
  now = 0;
  #order = 0;
  readonly #heap: Entry[] = [];

  /** Events of the same time happen in the order in which they were put in. */
  at(time: number, act: () => void): void {
    const entry = { at: Math.max(time, this.now), order: this.#order++, act };
    const heap = this.#heap;
    let index = heap.push(entry) - 1;
    while (index > 0) {
      const parent = (index - 1) >> 1;
      if (!isBefore(entry, heap[parent]!)) break;
      heap[index] = heap[parent]!;
      index = parent;
    }
    heap[index] = entry;
  }

  in(delay: number, act: () => void): void {
    this.at(this.now + delay, act);
  }

  /** Lets the next event happen, if there is one up to `limit`. */
  next(limit: number): boolean {
    const heap = this.#heap;
    const first = heap[0];
    if (first === undefined || first.at > limit) return false;
    const last = heap.pop()!;
    if (heap.length > 0) this.#sink(last);
    this.now = first.at;
    first.act();
    return true;
  }

  #sink(entry: Entry): void {
    const heap = this.#heap;
    let index = 0;
    for (;;) {
      let child = 2 * index + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && isBefore(heap[child + 1]!, heap[child]!)) child++;
      if (!isBefore(heap[child]!, entry)) break;
      heap[index] = heap[child]!;
      index = child;
    }
    heap[index] = entry;
  }
}

function isBefore(a: Entry, b: Entry): boolean {
  return a.at < b.at || (a.at === b.at && a.order < b.order);
}
