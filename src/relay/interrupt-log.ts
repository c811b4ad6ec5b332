// SPDX-License-Identifier: Apache-2.0
/** What the VMM has said with DEVICE_SET_IRQS, as far as it still holds: eventfds by index, action and vector, and masks. */

import { FdKind } from '../handoff/index.js';
import { closeAll, type Fd } from '../transport/index.js';
import { IrqSetFlag, type SetIrqs } from '../wire/index.js';
import type { Packer, Unpacker } from './packing.js';

/** One message of a replay; the fds stay the log's. */
export interface SetIrqsMessage {
  readonly request: SetIrqs;
  readonly fds: readonly Fd[];
}

/** What is known of one interrupt index. */
class IndexLog {
  /** By action, then by vector; undefined where the VMM has assigned none on purpose. */
  readonly eventfds = new Map<number, Map<number, Fd | undefined>>();
  readonly masked = new Set<number>();

  close(): void {
    for (const vectors of this.eventfds.values()) for (const fd of vectors.values()) fd?.close();
  }
}

export interface CapturedIndex {
  readonly index: number;
  readonly actions: readonly {
    readonly action: number;
    readonly vectors: readonly { readonly vector: number; readonly hasFd: boolean }[];
  }[];
  readonly masked: readonly number[];
}

export class InterruptLog {
  readonly #indexes = new Map<number, IndexLog>();

  /** Notes what a server has accepted. Takes the fds, or closes those that say nothing lasting. */
  set({ flags, index, start, count }: SetIrqs, data: Uint8Array, fds: readonly Fd[]): void {
    const action = flags & IrqSetFlag.ACTIONS_MASK;
    if (count === 0) {
      this.#indexes.get(index)?.close();
      this.#indexes.delete(index);
      closeAll(fds);
      return;
    }
    const log = this.#indexes.get(index) ?? new IndexLog();
    this.#indexes.set(index, log);
    if ((flags & IrqSetFlag.DATA_EVENTFD) !== 0) {
      const vectors = log.eventfds.get(action) ?? new Map<number, Fd | undefined>();
      log.eventfds.set(action, vectors);
      for (let i = 0; i < count; i++) {
        vectors.get(start + i)?.close();
        vectors.set(start + i, fds[i]?.take());
        // A new eventfd begins unmasked.
        if (action === IrqSetFlag.ACTION_TRIGGER) log.masked.delete(start + i);
      }
    } else if (action !== IrqSetFlag.ACTION_TRIGGER) {
      for (let i = 0; i < count; i++) {
        if ((flags & IrqSetFlag.DATA_BOOL) !== 0 && data[i] === 0) continue;
        if (action === IrqSetFlag.ACTION_MASK) log.masked.add(start + i);
        else log.masked.delete(start + i);
      }
    }
    closeAll(fds);
  }

  /** What brings a new server there. @param maxFds that it takes with a message */
  *messages(maxFds: number): Generator<SetIrqsMessage> {
    for (const [index, log] of this.#indexes) {
      for (const [action, vectors] of log.eventfds)
        yield* runs(index, action | IrqSetFlag.DATA_EVENTFD, vectors, Math.max(1, maxFds));
      for (const vector of log.masked) {
        const flags = IrqSetFlag.DATA_NONE | IrqSetFlag.ACTION_MASK;
        yield { request: { flags, index, start: vector, count: 1 }, fds: [] };
      }
    }
  }

  /** Indexes of which something was said. */
  get indexes(): number[] {
    return [...this.#indexes.keys()];
  }

  /** Whether the VMM has assigned an eventfd that interrupts of an index are raised with. */
  isAssigned(index: number): boolean {
    const vectors = this.#indexes.get(index)?.eventfds.get(IrqSetFlag.ACTION_TRIGGER)?.values() ?? [];
    return [...vectors].some((fd) => fd !== undefined);
  }

  /** The eventfds that interrupts are raised with. */
  *triggers(): Generator<Fd> {
    for (const { eventfds } of this.#indexes.values())
      for (const fd of eventfds.get(IrqSetFlag.ACTION_TRIGGER)?.values() ?? [])
        if (fd !== undefined) yield fd;
  }

  /** What another relay is to have; the eventfds go along. */
  capture(packer: Packer): CapturedIndex[] {
    return [...this.#indexes].map(([index, { eventfds, masked }]) => ({
      index,
      actions: [...eventfds].map(([action, vectors]) => ({
        action,
        vectors: [...vectors].map(([vector, fd]) => {
          if (fd !== undefined) packer.add(FdKind.EVENTFD, fdName(index, action, vector), fd);
          return { vector, hasFd: fd !== undefined };
        }),
      })),
      masked: [...masked],
    }));
  }

  /** @throws DEVSTATE_E_HANDOFF_BUNDLE */
  restore(indexes: readonly CapturedIndex[], unpacker: Unpacker): void {
    for (const { index, actions, masked } of indexes) {
      const log = new IndexLog();
      this.#indexes.set(index, log);
      for (const vector of masked) log.masked.add(vector);
      for (const { action, vectors } of actions) {
        const byVector = new Map<number, Fd | undefined>();
        log.eventfds.set(action, byVector);
        for (const { vector, hasFd } of vectors) {
          const name = fdName(index, action, vector);
          byVector.set(vector, hasFd ? unpacker.take(FdKind.EVENTFD, name).take() : undefined);
        }
      }
    }
  }

  close(): void {
    for (const log of this.#indexes.values()) log.close();
    this.#indexes.clear();
  }
}

function fdName(index: number, action: number, vector: number): string {
  return `irq:${index}:${action}:${vector}`;
}

/** Vectors in a row that all have an eventfd, or all have none: a message cannot have holes. */
function* runs(
  index: number,
  flags: number,
  vectors: ReadonlyMap<number, Fd | undefined>,
  maxFds: number,
): Generator<SetIrqsMessage> {
  const sorted = [...vectors].sort(([a], [b]) => a - b);
  for (let at = 0; at < sorted.length; ) {
    const [start, first] = sorted[at]!;
    const fds: Fd[] = [];
    let count = 0;
    while (at < sorted.length) {
      const [vector, fd] = sorted[at]!;
      const breaks = vector !== start + count || (fd === undefined) !== (first === undefined);
      if (breaks || fds.length === maxFds) break;
      if (fd !== undefined) fds.push(fd);
      count++;
      at++;
    }
    yield { request: { flags, index, start, count }, fds };
  }
}
