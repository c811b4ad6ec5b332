// SPDX-License-Identifier: Apache-2.0
/** Create and Delete I/O Submission and Completion Queue (NVMe 1.4, sections 5.3 to 5.6). */

import { Cc, CQES, Dword, SQES, Status } from '../spec/index.js';
import { type Command, CommandError } from './command.js';
import type { Controller } from './controller.js';
import { CompletionQueue, SubmissionQueue } from './queues.js';

/** PC of dword 11. */
const PHYSICALLY_CONTIGUOUS = 0x1;
/** IEN of dword 11 of Create I/O Completion Queue. */
const INTERRUPTS_ENABLED = 0x2;

export function createCompletionQueue(controller: Controller, command: Command): number {
  const { engine, parameters, registers } = controller;
  const { id, size, base } = newQueue(controller, command, engine.completion);
  const cdw11 = command.dword(Dword.CDW11);
  const vector = cdw11 >>> 16;
  if (vector >= parameters.msix_vectors) throw new CommandError(Status.INVALID_INTERRUPT_VECTOR);
  if (((registers.cc >>> Cc.IOCQES_SHIFT) & 0xf) !== CQES) throw new CommandError(Status.INVALID_FIELD);
  engine.completion[id] = new CompletionQueue(id, base, size, vector, (cdw11 & INTERRUPTS_ENABLED) !== 0);
  return 0;
}

export function createSubmissionQueue(controller: Controller, command: Command): number {
  const { engine, registers } = controller;
  const { id, size, base } = newQueue(controller, command, engine.submission);
  const cdw11 = command.dword(Dword.CDW11);
  const cqid = cdw11 >>> 16;
  if (cqid === 0 || cqid >= engine.completion.length) throw new CommandError(Status.INVALID_QUEUE_IDENTIFIER);
  const cq = engine.completion[cqid];
  if (cq === undefined) throw new CommandError(Status.COMPLETION_QUEUE_INVALID);
  if (((registers.cc >>> Cc.IOSQES_SHIFT) & 0xf) !== SQES) throw new CommandError(Status.INVALID_FIELD);
  engine.submission[id] = new SubmissionQueue(id, base, size, cq, (cdw11 >>> 1) & 0x3);
  return 0;
}

/** The end of a command: together with its completion, so that a crash in between does not find the one without the other. */
export type Finish = () => void;

export async function deleteSubmissionQueue({ engine }: Controller, command: Command): Promise<Finish> {
  const id = command.dword(Dword.CDW10) & 0xffff;
  const sq = engine.submission[id];
  if (id === 0 || sq === undefined || sq.deleted) throw new CommandError(Status.INVALID_QUEUE_IDENTIFIER);
  await engine.drainSubmission(sq);
  return () => {
    // What found no room in the completion queue counts as aborted with its queue.
    sq.cq.held = sq.cq.held.filter((completion) => completion.sq !== sq);
    engine.submission[id] = undefined;
  };
}

export async function deleteCompletionQueue({ engine }: Controller, command: Command): Promise<Finish> {
  const id = command.dword(Dword.CDW10) & 0xffff;
  const cq = engine.completion[id];
  if (id === 0 || cq === undefined || cq.deleted) throw new CommandError(Status.INVALID_QUEUE_IDENTIFIER);
  if (engine.submission.some((sq) => sq?.cq === cq)) throw new CommandError(Status.INVALID_QUEUE_DELETION);
  cq.deleted = true;
  cq.held = [];
  await engine.drainCompletion(cq);
  return () => {
    engine.completion[id] = undefined;
    // Its unread entries no longer interrupt.
    engine.owner.announce(cq);
  };
}

/** Checks what both Create commands have in common. */
function newQueue(
  { parameters, registers }: Controller,
  command: Command,
  existing: readonly unknown[],
): { id: number; size: number; base: number } {
  const cdw10 = command.dword(Dword.CDW10);
  const id = cdw10 & 0xffff;
  const size = (cdw10 >>> 16) + 1;
  if (id === 0 || id >= existing.length || existing[id] !== undefined) {
    throw new CommandError(Status.INVALID_QUEUE_IDENTIFIER);
  }
  if (size < 2 || size > parameters.queue_entries) throw new CommandError(Status.INVALID_QUEUE_SIZE);
  // CAP.CQR: queues are contiguous.
  if ((command.dword(Dword.CDW11) & PHYSICALLY_CONTIGUOUS) === 0)
    throw new CommandError(Status.INVALID_FIELD);
  const base = command.qword(Dword.PRP1);
  if (base % registers.pageSize !== 0) throw new CommandError(Status.PRP_OFFSET_INVALID);
  if (!Number.isSafeInteger(base + size * 64)) throw new CommandError(Status.INVALID_FIELD);
  return { id, size, base };
}
