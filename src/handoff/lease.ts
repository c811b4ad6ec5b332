// SPDX-License-Identifier: Apache-2.0
/**
 * Which process owns the device, as one word of memory that all processes see and only an atomic operation changes:
 *
 *     HELD ──offer──▶ OFFERED ──take──▶ TAKEN ──offer──▶ OFFERED …
 *       ▲                │
 *       └────takeBack────┘
 *
 * Messages alone cannot decide this: one that has been sent may be read an hour later, by a process that was stopped
 * and knows nothing of the time-out since. The process that changes the word first has the device, and the other one sees it.
 *
 * The word holds the number of the offer as well, so that a lease can change hands again and again: a process that was
 * stopped with one offer before it cannot take a later one. Beside the word stands which processes these are, for one
 * that looks on: who holds the lease, and has it ended?
 */

import { isDeepStrictEqual } from 'node:util';
import { malformed } from '../documents/index.js';
import { check, checkObject, type Mapping, native, Protection, Seal } from '../native/index.js';
import { Fd } from '../transport/index.js';
import { type ProcessIdentity, thisProcess } from './process-identity.js';

const LEASE_LENGTH = 4096;
const MAGIC = 0x5341454c; // "LEAS"

/** Places in the memory, in words. */
const MAGIC_WORD = 0;
const OWNER_WORD = 1;
const GENERATION_WORD = 2;
/** From here on records of two processes each, who offers and who takes. A ring, by number of the offer. */
const RECORDS_WORD = 16;
/** Words that identify one process: pid, start time, pid namespace. */
const PROCESS_WORDS = 3;
const RECORDS = 168;

const State = { HELD: 1, OFFERED: 2, TAKEN: 3 } as const;
const STATE_MASK = 3;
type Role = 'offers' | 'takes';

const wordOf = (number: number, state: number): number => (number << 2) | state;
const numberOf = (word: number): number => word >>> 2;

export class Lease {
  readonly fd: Fd;
  readonly #mapping: Mapping;
  readonly #words: Int32Array;
  /** The word while the lease is this process's, and while this process offers it. */
  #mine: number | undefined;
  #offered: number | undefined;
  /** No one has been offered it. */
  #fresh = false;

  private constructor(fd: Fd) {
    this.fd = fd;
    try {
      this.#mapping = checkObject(
        native.map(fd.number, 0, LEASE_LENGTH, Protection.readWrite),
        'map a lease',
      );
      const window = checkObject(this.#mapping.window(0, LEASE_LENGTH), 'see a lease');
      this.#words = new Int32Array(window);
    } catch (error) {
      fd.close();
      throw error;
    }
  }

  /** A new one, held by its maker. @param generation counts the handoffs that the device has seen */
  static create(generation = 0): Lease {
    const fd = new Fd(check(native.memfdCreate('devstate-lease'), 'make a lease'));
    try {
      check(native.truncate(fd.number, LEASE_LENGTH), 'make a lease');
      check(native.addSeals(fd.number, Seal.shrink | Seal.grow | Seal.seal), 'seal a lease');
    } catch (error) {
      fd.close();
      throw error;
    }
    const lease = new Lease(fd);
    lease.#words[MAGIC_WORD] = MAGIC;
    lease.#words[GENERATION_WORD] = generation;
    lease.#record(0, 'offers');
    lease.#mine = wordOf(0, State.HELD);
    lease.#fresh = true;
    Atomics.store(lease.#words, OWNER_WORD, lease.#mine);
    return lease;
  }

  /** One that came with a bundle. Takes the fd. @throws DEVSTATE_E_HANDOFF_BUNDLE when it is none */
  static open(fd: Fd): Lease {
    const stat = new Float64Array(4);
    native.stat(fd.number, stat);
    if (stat[0] !== LEASE_LENGTH) {
      fd.close();
      throw malformed(`a lease is ${LEASE_LENGTH} bytes long, not ${stat[0]}`);
    }
    const lease = new Lease(fd);
    if (lease.#words[MAGIC_WORD] === MAGIC) return lease;
    lease.close();
    throw malformed('what should be a lease holds something else');
  }

  /** Counts the handoffs that the device has seen, the one under way included. */
  get generation(): number {
    return this.#words[GENERATION_WORD]! + this.number;
  }

  /** Number of the last offer. */
  get number(): number {
    return numberOf(this.#word);
  }

  get #word(): number {
    return Atomics.load(this.#words, OWNER_WORD);
  }

  /** Whether this process may operate the device: it has the lease, and offers it to no one. */
  get isHeld(): boolean {
    return this.#mine !== undefined && this.#word === this.#mine;
  }

  /** Whether the receiver has taken what this process offered. */
  get isTaken(): boolean {
    return this.#offered !== undefined && this.#word !== this.#offered;
  }

  /** From now on the receiver may take it. @returns false when it is not ours to offer */
  offer(): boolean {
    if (this.#mine === undefined) return false;
    const number = numberOf(this.#mine) + (this.#fresh ? 0 : 1);
    this.#record(number, 'offers');
    const offered = wordOf(number, State.OFFERED);
    if (!this.#change(this.#mine, offered)) return false;
    this.#offered = offered;
    this.#mine = undefined;
    this.#fresh = false;
    return true;
  }

  /** The giver continues. @returns false when the receiver has taken it: the device is no longer ours */
  takeBack(): boolean {
    if (this.#offered === undefined) return false;
    const held = wordOf(numberOf(this.#offered), State.HELD);
    if (!this.#change(this.#offered, held)) return false;
    this.#mine = held;
    this.#offered = undefined;
    return true;
  }

  /** The receiver takes over. @param number of the offer @returns false when the giver has gone on: the device is not ours */
  take(number = 0): boolean {
    this.#record(number, 'takes');
    const taken = wordOf(number, State.TAKEN);
    if (!this.#change(wordOf(number, State.OFFERED), taken)) return false;
    this.#mine = taken;
    return true;
  }

  /** The process that has the lease; undefined when nothing is written of it. */
  get owner(): ProcessIdentity | undefined {
    for (;;) {
      const word = this.#word;
      const role = (word & STATE_MASK) === State.TAKEN ? 'takes' : 'offers';
      const at = recordAt(numberOf(word), role);
      const [pid = 0, startTime = 0, namespace = 0] = this.#words.subarray(at, at + PROCESS_WORDS);
      const identity = { pid, startTime, namespace };
      if (this.#word === word) return identity.pid === 0 ? undefined : identity;
    }
  }

  /**
   * Takes the lease from a process that has ended. Only for the one that all processes had the device from, and when it
   * is sure: nothing here can tell. @returns false when it has changed hands meanwhile
   */
  reclaim(dead: ProcessIdentity): boolean {
    const word = this.#word;
    const owner = this.owner;
    if (owner === undefined || !isDeepStrictEqual(owner, dead)) return false;
    const held = wordOf(numberOf(word) + 1, State.HELD);
    if (!this.#change(word, held)) return false;
    this.#mine = held;
    this.#offered = undefined;
    // Only now: the number could have become another's until then.
    this.#record(numberOf(held), 'offers');
    return true;
  }

  #change(from: number, to: number): boolean {
    return Atomics.compareExchange(this.#words, OWNER_WORD, from, to) === from;
  }

  #record(number: number, role: Role): void {
    const { pid, startTime, namespace } = thisProcess();
    this.#words.set([pid, startTime, namespace], recordAt(number, role));
  }

  close(): void {
    this.#mapping.unmap();
    this.fd.close();
  }
}

function recordAt(number: number, role: Role): number {
  const record = 2 * (number % RECORDS) + (role === 'offers' ? 0 : 1);
  return RECORDS_WORD + PROCESS_WORDS * record;
}
