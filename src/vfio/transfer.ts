// SPDX-License-Identifier: Apache-2.0
/**
 * An assignment's way from one process to the next, on the two phases of a handoff:
 *
 *     giver                                      receiver
 *       offers: devices, bytes to lock   ──────▶   RLIMIT_MEMLOCK
 *       suspends; forgets addresses
 *       fds, document                    ──────▶   maps memory, looks whether the devices are as described
 *                                                  takes the lease
 *       lets go                          ◀──────   tells the kernel its addresses; resumes
 *
 * No one resets anything: that a device came this way says that it runs.
 */

import {
  type Adopted,
  type Bundle,
  type Giver,
  type Lease,
  type Outgoing,
  parseHandoff,
  type Receiver,
} from '../handoff/index.js';
import { VfioAssignment } from './assignment.js';
import { type AssignmentOffer, assignmentOffer } from './assignment-document.js';
import type { Rebinding } from './dma-space.js';
import { requireMemoryLock } from './memory-lock.js';

/** What the process does that operates the devices. */
export interface Operator {
  /**
   * Stops operating them. What it returns (see `packDocument`) is for the next process. After it this process is refused every
   * access to the devices, until it has them again.
   */
  suspend?(assignment: VfioAssignment): unknown | Promise<unknown>;
  /** They stay here after all. Must not fail. */
  resume?(assignment: VfioAssignment): void | Promise<void>;
  /** They have come: with what the process before had to say (not validated), and what became of the DMA mappings. */
  adopted?(assignment: VfioAssignment, application: unknown, rebinding: Rebinding): void | Promise<void>;
  /** They have gone, and this process's files of them are closed. */
  gone?(): void;
}

export class AssignmentGiver implements Giver {
  readonly offer: AssignmentOffer;
  readonly #assignment: VfioAssignment;
  readonly #operator: Operator;
  #released = false;

  /** @throws DEVSTATE_E_VFIO_LEASE when it is not ours to give, DEVSTATE_E_VFIO_REBIND when it cannot go over */
  constructor(assignment: VfioAssignment, operator: Operator) {
    assignment.requireLease();
    assignment.requireMovable();
    this.#assignment = assignment;
    this.#operator = operator;
    this.offer = {
      what: 'vfio',
      version: 1,
      locked: assignment.lockedBytes,
      devices: assignment.deviceNames,
    };
  }

  async freeze(_answer: unknown, signal: AbortSignal): Promise<Outgoing> {
    const application = await this.#operator.suspend?.(this.#assignment);
    signal.throwIfAborted();
    const outgoing = this.#assignment.release(application ?? null);
    this.#released = true;
    return outgoing;
  }

  async thaw(): Promise<void> {
    if (this.#released) this.#assignment.keep();
    this.#released = false;
    await this.#operator.resume?.(this.#assignment);
  }
}

/** Where an assignment comes to. */
export interface ReceivingHost {
  /** @throws to refuse */
  consider?(offer: AssignmentOffer): void;
  /** The assignment is this process's; the operator has not heard of it yet. */
  installed(assignment: VfioAssignment): void;
}

export class AssignmentReceiver implements Receiver {
  readonly #operator: Operator;
  readonly #host: ReceivingHost;

  constructor(operator: Operator, host: ReceivingHost) {
    this.#operator = operator;
    this.#host = host;
  }

  prepare(offered: unknown): null {
    const offer = parseHandoff(assignmentOffer, offered, 'the offer');
    this.#host.consider?.(offer);
    requireMemoryLock(offer.locked);
    return null;
  }

  async adopt(bundle: Bundle): Promise<Adopted> {
    const { assignment, application } = VfioAssignment.adopt(bundle);
    return {
      start: async (lease: Lease) => {
        const rebinding = assignment.rebind(lease);
        this.#host.installed(assignment);
        await this.#operator.adopted?.(assignment, application, rebinding);
      },
      abandon: () => assignment.close(),
    };
  }
}
