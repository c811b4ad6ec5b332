// SPDX-License-Identifier: Apache-2.0
/** A command under way. Objects are reused: one is valid until it is completed. */

import { Dword, SQ_ENTRY_SIZE } from '../spec/index.js';
import type { SubmissionQueue } from './queues.js';

export class Command {
  /** The submission queue entry. */
  readonly words = new Int32Array(SQ_ENTRY_SIZE / 4);
  sq!: SubmissionQueue;
  /** Where it is kept with a crash journal; -1 while it is not. */
  record = -1;

  /** Dword `index`, unsigned. */
  dword(index: number): number {
    return this.words[index]! >>> 0;
  }

  /** Dwords `index` and the next as one number, imprecise above 2^53 (which no valid address or LBA reaches). */
  qword(index: number): number {
    return (this.words[index]! >>> 0) + (this.words[index + 1]! >>> 0) * 2 ** 32;
  }

  get opcode(): number {
    return this.words[Dword.CDW0]! & 0xff;
  }

  get cid(): number {
    return this.words[Dword.CDW0]! >>> 16;
  }

  get nsid(): number {
    return this.dword(Dword.NSID);
  }
}

/** Ends a command with a status other than success. */
export class CommandError extends Error {
  constructor(readonly status: number) {
    const limit = Error.stackTraceLimit;
    Error.stackTraceLimit = 0; // a guest can provoke one per command
    super(`command failed with status 0x${status.toString(16)}`);
    Error.stackTraceLimit = limit;
    this.name = 'CommandError';
  }
}
