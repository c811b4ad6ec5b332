// SPDX-License-Identifier: Apache-2.0
/** Create and Delete I/O Submission and Completion Queue (NVMe 1.4, sections 5.3 to 5.6). */

import { Cc, CQES, Dword, Register, SQ_ENTRY_SIZE, SQES, Status } from '../spec/index.js';
import type { Birch } from './birch.js';
import { type ControllerImage, completionAt, submissionAt } from './controller-image.js';
import { type EngineOwner, PENDING } from './engine-owner.js';
import { CompletionSlot, QUEUE_SIZE, QueueSlot, QueueState, SubmissionSlot } from './layout.js';

/** PC of dword 11. */
const PHYSICALLY_CONTIGUOUS = 0x1;
/** IEN of dword 11 of Create I/O Completion Queue. */
const INTERRUPTS_ENABLED = 0x2;

export function createCompletionQueue(birch: Birch, slot: number): number {
  const { image, parameters, engine } = birch;
  const id = image.dword(slot, Dword.CDW10) & 0xffff;
  const wrong = creationStatus(birch, slot, completionAt(id));
  if (wrong !== Status.SUCCESS) return wrong;
  const cdw11 = image.dword(slot, Dword.CDW11);
  const vector = cdw11 >>> 16;
  if (vector >= parameters.msix_vectors) return Status.INVALID_INTERRUPT_VECTOR;
  if (entrySizeOf(image, Cc.IOCQES_SHIFT) !== CQES) return Status.INVALID_FIELD;
  const at = fillQueue(image, slot, completionAt(id), id);
  image.setU8(at + CompletionSlot.PHASE, 1);
  image.setU16(at + CompletionSlot.VECTOR, vector);
  image.setU8(at + CompletionSlot.INTERRUPTS, (cdw11 & INTERRUPTS_ENABLED) === 0 ? 0 : 1);
  engine.queueChanged('completion', id);
  return Status.SUCCESS;
}

export function createSubmissionQueue(birch: Birch, slot: number): number {
  const { image, parameters, engine } = birch;
  const id = image.dword(slot, Dword.CDW10) & 0xffff;
  const wrong = creationStatus(birch, slot, submissionAt(id));
  if (wrong !== Status.SUCCESS) return wrong;
  const cdw11 = image.dword(slot, Dword.CDW11);
  const cqid = cdw11 >>> 16;
  if (cqid === 0 || cqid > parameters.queues) return Status.INVALID_QUEUE_IDENTIFIER;
  if (!isUsable(image, completionAt(cqid))) return Status.COMPLETION_QUEUE_INVALID;
  if (entrySizeOf(image, Cc.IOSQES_SHIFT) !== SQES) return Status.INVALID_FIELD;
  const at = fillQueue(image, slot, submissionAt(id), id);
  image.setU8(at + SubmissionSlot.PRIORITY, (cdw11 >>> 1) & 0x3);
  image.setU16(at + SubmissionSlot.CQID, cqid);
  engine.queueChanged('submission', id);
  return Status.SUCCESS;
}

export function deleteSubmissionQueue({ image, engine, parameters }: Birch, slot: number): number {
  const id = image.dword(slot, Dword.CDW10) & 0xffff;
  if (id === 0 || id > parameters.queues) return Status.INVALID_QUEUE_IDENTIFIER;
  if (!isUsable(image, submissionAt(id))) return Status.INVALID_QUEUE_IDENTIFIER;
  engine.deleteSubmission(id, () => engine.finish(slot, Status.SUCCESS));
  return PENDING;
}

export function deleteCompletionQueue(birch: Birch, slot: number, owner: EngineOwner): number {
  const { image, engine, parameters } = birch;
  const id = image.dword(slot, Dword.CDW10) & 0xffff;
  if (id === 0 || id > parameters.queues || !isUsable(image, completionAt(id))) {
    return Status.INVALID_QUEUE_IDENTIFIER;
  }
  for (let sqid = 1; sqid <= parameters.queues; sqid++) {
    const at = submissionAt(sqid);
    if (isPresent(image, at) && image.u16(at + SubmissionSlot.CQID) === id) {
      return Status.INVALID_QUEUE_DELETION;
    }
  }
  engine.deleteCompletion(id, () => {
    owner.announce(id); // its unread entries no longer interrupt
    engine.finish(slot, Status.SUCCESS);
  });
  return PENDING;
}

/** Checks what both Create commands have in common. @param at the queue's slot, if `id` has one */
function creationStatus({ image, parameters }: Birch, slot: number, at: number): number {
  const cdw10 = image.dword(slot, Dword.CDW10);
  const id = cdw10 & 0xffff;
  const entries = (cdw10 >>> 16) + 1;
  if (id === 0 || id > parameters.queues || isPresent(image, at)) return Status.INVALID_QUEUE_IDENTIFIER;
  if (entries < 2 || entries > parameters.queue_entries) return Status.INVALID_QUEUE_SIZE;
  // CAP.CQR: queues are contiguous.
  if ((image.dword(slot, Dword.CDW11) & PHYSICALLY_CONTIGUOUS) === 0) return Status.INVALID_FIELD;
  const base = image.qword(slot, Dword.PRP1);
  if (base % image.pageSize !== 0) return Status.PRP_OFFSET_INVALID;
  return Number.isSafeInteger(base + entries * SQ_ENTRY_SIZE) ? Status.SUCCESS : Status.INVALID_FIELD;
}

/** Fills what both kinds of queue slot have in common. @returns the slot */
function fillQueue(image: ControllerImage, slot: number, at: number, id: number): number {
  image.span(at, QUEUE_SIZE).fill(0);
  image.setU8(at + QueueSlot.STATE, QueueState.PRESENT);
  image.setU16(at + QueueSlot.ID, id);
  image.setU32(at + QueueSlot.ENTRIES, (image.dword(slot, Dword.CDW10) >>> 16) + 1);
  image.setU64(at + QueueSlot.BASE, image.qword(slot, Dword.PRP1));
  return at;
}

/** It is there, or was and is still being deleted: its identifier is taken. */
function isPresent(image: ControllerImage, at: number): boolean {
  return image.u8(at + QueueSlot.STATE) !== QueueState.ABSENT;
}

/** IOSQES or IOCQES of CC. */
function entrySizeOf(image: ControllerImage, shift: number): number {
  return (image.register(Register.CC) >>> shift) & 0xf;
}

/** It is there to stay. */
function isUsable(image: ControllerImage, at: number): boolean {
  return image.u8(at + QueueSlot.STATE) === QueueState.PRESENT;
}
