// SPDX-License-Identifier: Apache-2.0
/**
 * Whose the device is, as one word of memory that both processes see and only an atomic operation changes:
 *
 *     HELD ──offer──▶ OFFERED ──take──▶ TAKEN
 *       ▲                │
 *       └────takeBack────┘
 *
 * Messages alone cannot decide this: one that has been sent may be read an hour later, by a process that was stopped
 * and knows nothing of the time-out since. Whoever changes the word first has the device, and the other one is told so.
 */

import { check, checkObject, type Mapping, native, Protection, Seal } from '../native/index.js';
import { Fd } from '../transport/index.js';
import { malformed } from './protocol.js';

const LEASE_LENGTH = 4096;
const MAGIC = 0x5341454c; // "LEAS"

/** Places in the memory, in words. */
const MAGIC_WORD = 0;
const OWNER_WORD = 1;
const GENERATION_WORD = 2;

const Owner = { HELD: 1, OFFERED: 2, TAKEN: 3 } as const;

export class Lease {
  readonly fd: Fd;
  readonly #mapping: Mapping;
  readonly #words: Int32Array;

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
    Atomics.store(lease.#words, OWNER_WORD, Owner.HELD);
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

  get generation(): number {
    return this.#words[GENERATION_WORD]!;
  }

  /** Whether the receiver has taken it. */
  get isTaken(): boolean {
    return Atomics.load(this.#words, OWNER_WORD) === Owner.TAKEN;
  }

  /** From now on the receiver may take it. */
  offer(): boolean {
    return this.#change(Owner.HELD, Owner.OFFERED);
  }

  /** The giver goes on. @returns false when the receiver has taken it: the device is no longer ours */
  takeBack(): boolean {
    return this.#change(Owner.OFFERED, Owner.HELD);
  }

  /** The receiver takes over. @returns false when the giver has gone on: the device is not ours */
  take(): boolean {
    return this.#change(Owner.OFFERED, Owner.TAKEN);
  }

  #change(from: number, to: number): boolean {
    return Atomics.compareExchange(this.#words, OWNER_WORD, from, to) === from;
  }

  close(): void {
    this.#mapping.unmap();
    this.fd.close();
  }
}
