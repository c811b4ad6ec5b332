// SPDX-License-Identifier: Apache-2.0
/**
 * State in memory that outlives the process, changed in transactions.
 *
 * Each slot has two copies, each marked with the transaction that wrote it. A write goes to the copy that is not the
 * newest committed one, so what is committed stays whole; the commit is one store of one word. Who comes next takes, of
 * each slot, the newest copy that is not newer than that word. A transaction costs the bytes that it changes, and nothing
 * is ever copied as a whole, compacted, or written twice.
 *
 *     put(a)      a: ── 7 ──│── 5 ──      →      a: ── 7 ──│── 9 ──         committed: 8
 *     put(b)      b: ── 4 ──│── 8 ──      →      b: ── 9 ──│── 8 ──         committed: 8
 *     commit                                                                committed: 9
 *
 * A process that is killed has made all stores up to some point of its program and none after it, so there is nothing to
 * order beyond the order of the program; the word is stored atomically, and so is each half of a copy's mark.
 */

import { crc32c } from '../formats/index.js';
import { Exchange } from './exchange.js';
import {
  At,
  COPY_HEADER,
  JOURNAL_VERSION,
  journalError,
  type Layout,
  layoutOf,
  MAGIC_HIGH,
  MAGIC_LOW,
  NAME_LENGTH,
  type Slot,
  type SlotSpec,
  TABLE_ENTRY,
} from './layout.js';

/** High half of the mark of a copy that is being written, or was never. */
const NO_TRANSACTION = 0xffffffff;
const NONE = -1;

export interface JournalOptions {
  /** Room for one request, and for one reply, bytes. */
  readonly messageLength: number;
  /** Called after every store to the memory: for tests that stop there. */
  readonly onStore?: () => void;
}

interface SlotState extends Slot {
  /** Copy that is the newest committed one; -1 for none. */
  newest: number;
  /** Copy written in the transaction under way; -1 for none. */
  written: number;
}

export class Journal {
  readonly exchange: Exchange;
  readonly #bytes: Uint8Array;
  readonly #words: Uint32Array;
  readonly #wide: BigUint64Array;
  readonly #slots: SlotState[];
  readonly #byName: ReadonlyMap<string, number>;
  readonly #dirty: SlotState[] = [];
  readonly #onStore: (() => void) | undefined;
  #committed = 0;

  private constructor(memory: Uint8Array, layout: Layout, options: JournalOptions) {
    this.#bytes = memory;
    this.#words = new Uint32Array(memory.buffer, memory.byteOffset, memory.length / 4);
    this.#wide = new BigUint64Array(memory.buffer, memory.byteOffset, memory.length / 8);
    this.#onStore = options.onStore;
    this.#slots = layout.slots.map((slot) => ({ ...slot, newest: NONE, written: NONE }));
    this.#byName = new Map(layout.slots.map(({ name }, index) => [name, index]));
    this.exchange = new Exchange(
      memory,
      { at: At.EXCHANGE, ...layout, messageLength: options.messageLength },
      () => this.#onStore?.(),
    );
  }

  /** Bytes that a journal needs. @throws DEVSTATE_E_JOURNAL for slots that cannot be */
  static lengthOf(slots: readonly SlotSpec[], options: JournalOptions): number {
    return layoutOf(slots, options.messageLength).length;
  }

  /** A new journal in memory that holds zeros, aligned to 8 bytes. The magic comes last: until then there is none. */
  static create(memory: Uint8Array, slots: readonly SlotSpec[], options: JournalOptions): Journal {
    const layout = layoutOf(slots, options.messageLength);
    if (memory.length < layout.length)
      throw journalError(`it has ${memory.length} bytes, not ${layout.length}`);
    const journal = new Journal(memory, layout, options);
    journal.#describe(layout);
    return journal;
  }

  /**
   * The journal of a process that is gone, as of its last commit. What it had not committed is forgotten.
   * @throws DEVSTATE_E_JOURNAL when there is none, it is damaged, or keeps other things
   */
  static open(memory: Uint8Array, slots: readonly SlotSpec[], options: JournalOptions): Journal {
    const layout = layoutOf(slots, options.messageLength);
    if (memory.length < layout.length)
      throw journalError('it is of another size, from another version of this server');
    const journal = new Journal(memory, layout, options);
    journal.#requireSame(layout);
    journal.#recover();
    return journal;
  }

  #describe(layout: Layout): void {
    this.#store(At.VERSION, JOURNAL_VERSION);
    this.#store(At.SLOTS, layout.slots.length);
    this.#wide[At.LENGTH / 8] = BigInt(layout.length);
    for (const [index, slot] of layout.slots.entries()) {
      const at = At.TABLE + index * TABLE_ENTRY;
      this.#bytes.set(Buffer.from(slot.name), at);
      this.#wide[(at + NAME_LENGTH) / 8] = BigInt(slot.offset);
      this.#wide[(at + NAME_LENGTH) / 8 + 1] = BigInt(slot.capacity);
      for (let copy = 0; copy < 2; copy++) this.#words[markOf(slot, copy) / 4 + 1] = NO_TRANSACTION;
    }
    this.#store(At.MAGIC + 4, MAGIC_HIGH);
    this.#store(At.MAGIC, MAGIC_LOW);
  }

  #requireSame(layout: Layout): void {
    const words = this.#words;
    if (words[At.MAGIC / 4] !== MAGIC_LOW || words[At.MAGIC / 4 + 1] !== MAGIC_HIGH)
      throw journalError('its magic is wrong');
    if (words[At.VERSION / 4] !== JOURNAL_VERSION)
      throw journalError(`it is of version ${words[At.VERSION / 4]}, this server writes ${JOURNAL_VERSION}`);
    const same =
      words[At.SLOTS / 4] === layout.slots.length &&
      this.#wide[At.LENGTH / 8] === BigInt(layout.length) &&
      layout.slots.every((slot, index) => this.#holds(slot, At.TABLE + index * TABLE_ENTRY));
    if (!same)
      throw journalError('it keeps other things than this server does, which is another device or version');
  }

  #holds({ name, offset, capacity }: Slot, at: number): boolean {
    const bytes = new Uint8Array(NAME_LENGTH);
    bytes.set(Buffer.from(name));
    return (
      Buffer.compare(this.#bytes.subarray(at, at + NAME_LENGTH), bytes) === 0 &&
      this.#wide[(at + NAME_LENGTH) / 8] === BigInt(offset) &&
      this.#wide[(at + NAME_LENGTH) / 8 + 1] === BigInt(capacity)
    );
  }

  #recover(): void {
    const committed = this.#wide[At.COMMITTED / 8]!;
    if (committed > BigInt(Number.MAX_SAFE_INTEGER))
      throw journalError(`it has made ${committed} transactions`);
    this.#committed = Number(committed);
    for (const slot of this.#slots) {
      let newest = 0;
      for (let copy = 0; copy < 2; copy++) {
        const transaction = this.#markAt(slot, copy);
        if (transaction === Number.POSITIVE_INFINITY) continue;
        if (transaction > this.#committed) {
          // The next transaction has this number again, and must not bring it back.
          this.#store(markOf(slot, copy) + 4, NO_TRANSACTION);
        } else if (transaction > newest) {
          newest = transaction;
          slot.newest = copy;
        }
      }
      if (slot.newest !== NONE) this.#requireSound(slot);
    }
  }

  /** Infinity for a copy that holds nothing. */
  #markAt(slot: Slot, copy: number): number {
    const at = markOf(slot, copy) / 4;
    const high = this.#words[at + 1]!;
    return high === NO_TRANSACTION ? Number.POSITIVE_INFINITY : high * 2 ** 32 + this.#words[at]!;
  }

  #requireSound(slot: SlotState): void {
    const at = markOf(slot, slot.newest);
    const length = this.#words[at / 4 + 2]!;
    if (length > slot.capacity)
      throw journalError(`slot ${slot.name} holds ${length} bytes of ${slot.capacity}`);
    const payload = this.#bytes.subarray(at + COPY_HEADER, at + COPY_HEADER + length);
    if (crc32c(payload) !== this.#words[at / 4 + 3]) throw journalError(`slot ${slot.name} is damaged`);
  }

  /** Transactions that were committed. */
  get committed(): number {
    return this.#committed;
  }

  /** Index of a slot, for `put` and `get`. */
  slot(name: string): number {
    const index = this.#byName.get(name);
    if (index === undefined) throw journalError(`it has no slot ${name}`);
    return index;
  }

  /** What is committed of a slot; undefined for nothing. Valid until the next but one transaction that puts it. */
  get(index: number): Uint8Array | undefined {
    const slot = this.#slots[index]!;
    if (slot.newest === NONE) return undefined;
    const at = markOf(slot, slot.newest);
    const length = this.#words[at / 4 + 2]!;
    return this.#bytes.subarray(at + COPY_HEADER, at + COPY_HEADER + length);
  }

  /** The transaction that wrote what `get` gives; 0 for none. */
  transactionOf(index: number): number {
    const slot = this.#slots[index]!;
    return slot.newest === NONE ? 0 : this.#markAt(slot, slot.newest);
  }

  /** Sets a slot in the transaction under way. @throws DEVSTATE_E_JOURNAL, and nothing has changed, when it does not fit */
  put(index: number, payload: Uint8Array): void {
    const slot = this.#slots[index]!;
    if (payload.length > slot.capacity)
      throw journalError(`slot ${slot.name} takes ${slot.capacity} bytes, not ${payload.length}`);
    if (slot.written === NONE) {
      slot.written = slot.newest === 0 ? 1 : 0;
      this.#dirty.push(slot);
    }
    const transaction = this.#committed + 1;
    const at = markOf(slot, slot.written);
    // No mark until all of it is there: the old one could pass for a newer transaction's with half a number.
    this.#store(at + 4, NO_TRANSACTION);
    this.#bytes.set(payload, at + COPY_HEADER);
    this.#onStore?.();
    this.#store(at + 8, payload.length);
    this.#store(at + 12, crc32c(payload));
    this.#store(at, transaction >>> 0);
    this.#store(at + 4, Math.floor(transaction / 2 ** 32));
  }

  /** Makes everything that was put since the last commit what a successor finds. */
  commit(): void {
    this.#committed++;
    Atomics.store(this.#wide, At.COMMITTED / 8, BigInt(this.#committed));
    for (const slot of this.#dirty) {
      slot.newest = slot.written;
      slot.written = NONE;
    }
    this.#dirty.length = 0;
    this.#onStore?.();
  }

  /** Whether what the last transaction was to set off has been. */
  get performed(): boolean {
    return this.#wide[At.PERFORMED / 8] === BigInt(this.#committed);
  }

  /** It has. */
  setPerformed(): void {
    Atomics.store(this.#wide, At.PERFORMED / 8, BigInt(this.#committed));
    this.#onStore?.();
  }

  #store(at: number, value: number): void {
    this.#words[at / 4] = value;
    this.#onStore?.();
  }
}

/** Offset of a copy's mark. */
function markOf(slot: Slot, copy: number): number {
  return slot.offset + copy * slot.stride;
}
