// SPDX-License-Identifier: Apache-2.0
/** Enabling the controller (NVMe 1.4, section 7.6.1): whether CC and the admin queue registers allow it, and the admin queues. */

import { Cc, MPS_MAX, Register } from '../spec/index.js';
import { type ControllerImage, completionAt, submissionAt } from './controller-image.js';
import { CompletionSlot, QUEUE_SIZE, QueueSlot, QueueState, REGISTERS_AT } from './layout.js';

/** Admin queues end below 2^53: 4096 entries of 64 bytes, and more. */
const ADMIN_QUEUE_REACH = 2 ** 20;

/** What stands against enabling, in words; undefined if nothing does. */
export function configurationProblem(image: ControllerImage): string | undefined {
  const cc = image.register(Register.CC);
  if ((cc & Cc.CSS_MASK) !== 0) return `command set 0x${(cc & Cc.CSS_MASK).toString(16)}`;
  if ((cc & Cc.AMS_MASK) !== 0) return 'weighted round robin arbitration';
  if (((cc >>> 7) & 0xf) > MPS_MAX) return `pages of ${image.pageSize} bytes`;
  const { submission, completion } = adminQueues(image);
  for (const { base, entries } of [submission, completion]) {
    if (entries < 2) return 'an admin queue of one entry';
    if (!Number.isSafeInteger(base + ADMIN_QUEUE_REACH) || base % image.pageSize !== 0) {
      return `an admin queue at 0x${base.toString(16)}`;
    }
  }
  return undefined;
}

/** Fills the slots of the admin queues from AQA, ASQ and ACQ. */
export function createAdminQueues(image: ControllerImage): void {
  const { submission, completion } = adminQueues(image);
  for (const [at, { base, entries }] of [
    [submissionAt(0), submission],
    [completionAt(0), completion],
  ] as const) {
    image.span(at, QUEUE_SIZE).fill(0);
    image.setU8(at + QueueSlot.STATE, QueueState.PRESENT);
    image.setU32(at + QueueSlot.ENTRIES, entries);
    image.setU64(at + QueueSlot.BASE, base);
  }
  image.setU8(completionAt(0) + CompletionSlot.PHASE, 1);
  image.setU8(completionAt(0) + CompletionSlot.INTERRUPTS, 1);
}

function adminQueues(image: ControllerImage) {
  const aqa = image.register(Register.AQA);
  return {
    submission: { base: image.u64(REGISTERS_AT + Register.ASQ), entries: (aqa & 0xfff) + 1 },
    completion: { base: image.u64(REGISTERS_AT + Register.ACQ), entries: ((aqa >>> 16) & 0xfff) + 1 },
  };
}
