// SPDX-License-Identifier: Apache-2.0
/** Queues ↔ their state. */

import type { QueueEngine } from './engine.js';
import { CompletionQueue, SubmissionQueue } from './queues.js';
import type { QueuesState } from './state.js';

/** Queues in order of identifier. */
export function captureQueues(engine: QueueEngine): QueuesState {
  return {
    submission: engine.submission
      .filter((sq) => sq !== undefined)
      .map(({ id, base, size, head, tail, cq, priority }) => ({
        id,
        base,
        size,
        head,
        tail,
        cq: cq.id,
        priority,
      })),
    completion: engine.completion
      .filter((cq) => cq !== undefined)
      .map(({ id, base, size, head, tail, phase, vector, interruptsEnabled, held }) => ({
        id,
        base,
        size,
        head,
        tail,
        phase,
        vector,
        interruptsEnabled,
        held: held.map(({ sq, cid, status, result }) => ({ sq: sq.id, cid, status, result: result >>> 0 })),
      })),
  };
}

/** Makes the queues of a checked state in an engine that has none. */
export function restoreQueues(engine: QueueEngine, state: QueuesState): void {
  for (const { id, base, size, head, tail, phase, vector, interruptsEnabled } of state.completion) {
    const cq = new CompletionQueue(id, base, size, vector, interruptsEnabled);
    Object.assign(cq, { head, tail, phase });
    engine.completion[id] = cq;
  }
  for (const { id, base, size, head, tail, cq, priority } of state.submission) {
    const sq = new SubmissionQueue(id, base, size, engine.completion[cq]!, priority);
    Object.assign(sq, { head, tail });
    engine.submission[id] = sq;
  }
  for (const { id, held } of state.completion) {
    engine.completion[id]!.held = held.map((completion) => ({
      ...completion,
      sq: engine.submission[completion.sq]!,
    }));
  }
}
