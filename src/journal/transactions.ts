// SPDX-License-Identifier: Apache-2.0
/**
 * Changes of state that happen as one, and what they set off: interrupts, small writes to guest memory.
 *
 *     begin ─▶ changes, effects noted ─▶ end ─▶ who keeps records puts those that changed ─▶ commit ─▶ effects
 *
 * No one outside sees an effect before what caused it is certain. Effects are kept with the transaction: if the process
 * ends between the two, its successor brings them about (again: an interrupt too many, the same bytes once more).
 */

import type { Journal } from './journal.js';
import { journalError, type SlotSpec } from './layout.js';

/** What a transaction can set off. Must not throw. */
export interface Effector {
  /** Signals the eventfd that is kept under this number. */
  signal(fd: number): void;
  /** Writes guest memory; the last 4 bytes last. */
  write(address: number, bytes: Uint8Array): void;
}

const EFFECTS_CAPACITY = 128 * 1024;
export const EFFECTS_SLOT: SlotSpec = { name: 'effects', capacity: EFFECTS_CAPACITY };

/** First word of an effect. */
const EffectKind = { SIGNAL: 1, WRITE: 2 } as const;
/** kind u32, fd u32 */
const SIGNAL_LENGTH = 8;
/** kind u32, length u32, address u64; the bytes follow, padded to 8 */
const WRITE_HEADER = 16;

export class Transactions {
  readonly journal: Journal;
  effector: Effector | undefined;
  readonly #effectsSlot: number;
  readonly #keepers: (() => void)[] = [];
  readonly #afterwards: (() => void)[] = [];
  readonly #effects = new Uint8Array(EFFECTS_CAPACITY);
  readonly #view = new DataView(this.#effects.buffer);
  #length = 0;
  #depth = 0;
  /** A transaction could not be kept: what the memory of the process says is not what a successor will find. */
  #broken: unknown;

  constructor(journal: Journal) {
    this.journal = journal;
    this.#effectsSlot = journal.slot(EFFECTS_SLOT.name);
  }

  /** Whether a transaction is under way. */
  get open(): boolean {
    return this.#depth > 0;
  }

  /** `keep` is called at the end of each transaction, to put what has changed. */
  keep(keep: () => void): void {
    this.#keepers.push(keep);
  }

  /** `done` is called after each commit. */
  afterwards(done: () => void): void {
    this.#afterwards.push(done);
  }

  /** All that `work` changes, at once or not at all. Within another it is a part of that. */
  run<T>(work: () => T): T {
    this.begin();
    try {
      return work();
    } finally {
      this.end();
    }
  }

  /** @throws what an earlier `end` threw */
  begin(): void {
    if (this.#broken !== undefined) throw this.#broken;
    this.#depth++;
  }

  /**
   * @throws DEVSTATE_E_JOURNAL when a record does not fit: nothing is committed, there will be no other transaction, and the
   * process should end. Its successor finds the state before.
   */
  end(): void {
    if (this.#depth > 1) {
      this.#depth--;
      return;
    }
    try {
      this.#commit();
    } catch (error) {
      this.#broken = error;
      throw error;
    }
  }

  #commit(): void {
    for (const keep of this.#keepers) keep();
    const { journal } = this;
    const effects = this.#effects.subarray(0, this.#length);
    if (this.#length > 0) journal.put(this.#effectsSlot, effects);
    journal.commit();
    this.#depth = 0;
    this.#length = 0;
    if (effects.length > 0) {
      this.#perform(effects);
      journal.setPerformed();
    }
    for (const done of this.#afterwards) done();
  }

  /** After the commit, or now when there is no transaction. */
  signal(fd: number): void {
    if (!this.open) {
      this.effector?.signal(fd);
      return;
    }
    const at = this.#reserve(SIGNAL_LENGTH);
    this.#view.setUint32(at, EffectKind.SIGNAL, true);
    this.#view.setUint32(at + 4, fd, true);
  }

  /** As `signal`. The bytes are copied. */
  write(address: number, bytes: Uint8Array): void {
    if (!this.open) {
      this.effector?.write(address, bytes);
      return;
    }
    const at = this.#reserve(WRITE_HEADER + ((bytes.length + 7) & ~7));
    this.#view.setUint32(at, EffectKind.WRITE, true);
    this.#view.setUint32(at + 4, bytes.length, true);
    this.#view.setUint32(at + 8, address >>> 0, true);
    this.#view.setUint32(at + 12, Math.floor(address / 2 ** 32), true);
    this.#effects.set(bytes, at + WRITE_HEADER);
  }

  #reserve(length: number): number {
    const at = this.#length;
    if (at + length > EFFECTS_CAPACITY) throw journalError('one transaction sets off more than fits');
    this.#length = at + length;
    return at;
  }

  /** After a predecessor's crash: makes sure of what its last transaction set off. */
  redo(): void {
    const { journal } = this;
    if (journal.performed || journal.transactionOf(this.#effectsSlot) !== journal.committed) return;
    const effects = journal.get(this.#effectsSlot);
    if (effects !== undefined) this.#perform(effects.slice());
    journal.setPerformed();
  }

  #perform(effects: Uint8Array): void {
    const view = new DataView(effects.buffer, effects.byteOffset, effects.length);
    for (let at = 0; at < effects.length; ) {
      if (view.getUint32(at, true) === EffectKind.SIGNAL) {
        this.effector?.signal(view.getUint32(at + 4, true));
        at += SIGNAL_LENGTH;
        continue;
      }
      const length = view.getUint32(at + 4, true);
      const address = view.getUint32(at + 8, true) + view.getUint32(at + 12, true) * 2 ** 32;
      this.effector?.write(address, effects.subarray(at + WRITE_HEADER, at + WRITE_HEADER + length));
      at += WRITE_HEADER + ((length + 7) & ~7);
    }
  }
}
