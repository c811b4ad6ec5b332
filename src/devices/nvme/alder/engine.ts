// SPDX-License-Identifier: Apache-2.0
/**
 * Moves commands in and completions out: fetches submission queue entries, hands them to the command sets, posts
 * completion queue entries, raises interrupts.
 *
 * ```
 * doorbell ─► service ─► execute ─► (I/O continues) ─► complete ─► post ─► announce
 *               ▲  ▲                                               │
 *               │  └── fewer commands under way ◄──────────────────┤
 *               └───── the guest consumed entries of a full queue ─┘
 * ```
 * Where rings are in mapped memory all of it is synchronous, and a whole batch of completions is announced by one
 * interrupt. What is under way is counted in `activity`; `stop` ends fetching, and once idle nothing touches the guest.
 */

import { type DeviceHost, DmaFault } from '../../../device/index.js';
import { DevstateError } from '../../../errors.js';
import { CQ_ENTRY_SIZE, SQ_ENTRY_SIZE, Status, statusField } from '../spec/index.js';
import { Turn } from '../turn.js';
import { Activity } from './activity.js';
import { Command, CommandError } from './command.js';
import type { CompletionQueue, HeldCompletion, SubmissionQueue } from './queues.js';

/** Commands under way at a time, over all queues: bounds the memory that a guest can make us use. */
export const MAX_OUTSTANDING = 2048;
/** Completions held for one queue before its submission queues are no longer served. */
const MAX_HELD = 256;
/** Commands fetched from one queue before other work of the process gets its turn. */
const BATCH = 64;
/** Commands after which the time is looked at. */
const LOOK_AFTER = 8;
/** The slot of a command that no record holds. */
export const NOT_KEPT = -1;

/** What the engine needs of the controller. */
export interface EngineOwner {
  readonly host: DeviceHost;
  /** Starts a command; it ends with `complete` or `park`. @throws to end it with the status that fits */
  execute(command: Command): void;
  /** Entries of `cq` were written, or it became empty. */
  announce(cq: CompletionQueue): void;
  /** The error status of a completed command, for the log. @returns the status to report */
  failed(command: Command, status: number): number;
  /** The rings cannot be reached: no command can be taken or completed any more. */
  fatal(reason: string): void;
}

/** Is told of commands, to keep those that a crash must not lose. */
export interface CommandKeeper {
  taken(command: Command): void;
  ended(command: Command): void;
  /** All of them, and those that are inherited: their queues are gone. */
  cleared(): void;
  /** Something of the queues beyond their indexes may have changed. */
  changed(): void;
}

export interface InheritedCommand {
  /** Where it is kept, if it is. */
  readonly record?: number;
  /** Identifier of its submission queue. */
  readonly sq: number;
  /** The submission queue entry. */
  readonly entry: Uint8Array;
}

export class QueueEngine {
  /** By queue identifier; 0 are the admin queues. */
  readonly submission: (SubmissionQueue | undefined)[];
  readonly completion: (CompletionQueue | undefined)[];
  readonly activity = new Activity();
  /** Entries may be fetched. */
  #fetching = false;
  /** Completions are for the guest; they are dropped while the controller is being disabled. */
  #posting = false;
  /** Guest memory is not to be touched: completions (of event requests) are held. */
  #frozen = false;
  /** Undefined without a crash journal. */
  keeper: CommandKeeper | undefined;
  /** One completion queue entry on its way through the journal. */
  readonly #entry = new Int32Array(CQ_ENTRY_SIZE / 4);
  readonly #entryBytes = new Uint8Array(this.#entry.buffer);
  /** Nested batches, each a transaction; completions are announced when the outermost ends. */
  #batches = 0;
  readonly #due: CompletionQueue[] = [];
  readonly #free: Command[] = [];
  readonly #turn = new Turn();
  #outstanding = 0;
  /** Commands that came with a state, taken from their queues where that was saved; carried out when work is taken up. */
  inherited: readonly InheritedCommand[] = [];
  /** A queue was passed over because too many commands were under way. */
  #starved = false;

  constructor(
    readonly owner: EngineOwner,
    queues: number,
  ) {
    this.submission = new Array<SubmissionQueue | undefined>(queues).fill(undefined);
    this.completion = new Array<CompletionQueue | undefined>(queues).fill(undefined);
  }

  /** Takes up work: everything that the doorbells say is there. */
  start(): void {
    this.#fetching = true;
    this.#posting = true;
    this.#frozen = false;
    this.#beginBatch();
    for (const cq of this.completion) if (cq !== undefined) this.#postHeld(cq);
    this.#executeInherited();
    for (const sq of this.submission) if (sq !== undefined) this.#service(sq);
    this.#endBatch();
  }

  /** False while the controller stops, or stands still. */
  get fetching(): boolean {
    return this.#fetching;
  }

  /** No further entry is fetched; `activity` becomes idle when what is under way has been completed. */
  stop(): void {
    this.#fetching = false;
  }

  /** Nothing is written to guest memory until `start`; what completes (event requests) is held. Only when idle. */
  freeze(): void {
    this.#fetching = false;
    this.#frozen = true;
    this.#posting = true;
  }

  /** As `stop`, and what completes from now on does so in silence. */
  abandon(): void {
    this.#fetching = false;
    this.#posting = false;
  }

  /** Removes all queues. Only when idle. */
  clear(): void {
    for (const sq of this.submission) if (sq !== undefined) sq.deleted = true;
    for (const cq of this.completion) if (cq !== undefined) cq.deleted = true;
    this.submission.fill(undefined);
    this.completion.fill(undefined);
    this.inherited = [];
    this.#starved = false;
    this.keeper?.cleared();
  }

  #executeInherited(): void {
    const commands = this.inherited;
    this.inherited = [];
    if (commands.length > 0) this.keeper?.changed();
    this.#beginBatch();
    for (const { sq: id, entry, record = NOT_KEPT } of commands) {
      const sq = this.submission[id];
      if (sq === undefined) continue;
      const command = this.#take(sq, record);
      new Uint8Array(command.words.buffer).set(entry);
      this.#execute(command);
    }
    this.#endBatch();
  }

  /** The submission tail doorbell. @returns false when the value is out of range */
  ringSubmission(sq: SubmissionQueue, tail: number): boolean {
    if (tail >= sq.size) return false;
    sq.tail = tail;
    this.#service(sq);
    return true;
  }

  /** The completion head doorbell. @returns false when the value is out of range or beyond what was posted */
  ringCompletion(cq: CompletionQueue, head: number): boolean {
    if (!cq.mayConsumeTo(head)) return false;
    const stalled = cq.held.length > 0;
    cq.head = head;
    if (stalled && this.#fetching) {
      this.#postHeld(cq);
      this.#serviceBound(cq);
    }
    if (cq.empty) this.owner.announce(cq);
    return true;
  }

  /** Ends a command. `result` is dword 0 of its completion. */
  complete(command: Command, status: number, result = 0): void {
    const { sq, cid } = command;
    const field = status === Status.SUCCESS ? status : this.owner.failed(command, statusField(status));
    this.#beginBatch();
    this.#enqueue({ sq, cid, status: field, result });
    this.#release(command);
    this.#endBatch();
  }

  /** Ends a command by what was thrown. */
  completeError(command: Command, error: unknown): void {
    this.complete(command, this.#statusOf(error));
  }

  /** A command that stays with the controller for an unknown time (Asynchronous Event Request): not counted as under way. */
  park(command: Command): void {
    this.keeper?.changed();
    this.#release(command);
  }

  /** Completes a parked command. */
  completeParked(sq: SubmissionQueue, cid: number, status: number, result: number): void {
    this.#enqueue({ sq, cid, status: statusField(status), result });
  }

  /** Settles when all commands of a queue have ended; none is fetched from it any more. */
  drainSubmission(sq: SubmissionQueue): Promise<void> {
    sq.deleted = true;
    return new Promise((resolve) => {
      if (sq.outstanding === 0) resolve();
      else sq.onDrained = resolve;
    });
  }

  #statusOf(error: unknown): number {
    if (error instanceof CommandError) return error.status;
    if (error instanceof DmaFault) return Status.DATA_TRANSFER_ERROR;
    const text = error instanceof DevstateError ? `${error.message} (${error.code})` : String(error);
    this.owner.host.log('error', `command failed: ${text}`);
    return Status.INTERNAL_ERROR;
  }

  #mayFetch(sq: SubmissionQueue): boolean {
    if (!this.#fetching || sq.deleted || sq.fetching) return false;
    const { held, full } = sq.cq;
    if (held.length >= MAX_HELD || (held.length > 0 && full)) return false;
    if (this.#outstanding < MAX_OUTSTANDING) return true;
    this.#starved = true;
    return false;
  }

  #service(sq: SubmissionQueue): void {
    if (sq.head === sq.tail) return;
    this.#beginBatch();
    try {
      for (let left = BATCH; sq.head !== sq.tail && this.#mayFetch(sq); left--) {
        if (left === 0 || (left < BATCH && left % LOOK_AFTER === 0 && this.#turn.isOver)) {
          this.#serviceLater(sq);
          break;
        }
        const words = sq.ring.words(this.owner.host.memory);
        if (words === undefined) {
          void this.#fetchRemote(sq);
          break;
        }
        const command = this.#take(sq);
        const at = sq.head * (SQ_ENTRY_SIZE / 4);
        for (let i = 0; i < SQ_ENTRY_SIZE / 4; i++) command.words[i] = words[at + i]!;
        sq.head = sq.head + 1 === sq.size ? 0 : sq.head + 1;
        this.#execute(command);
      }
    } catch (error) {
      this.#ringFailed(`submission queue ${sq.id}`, error);
    } finally {
      this.#endBatch();
    }
  }

  #serviceLater(sq: SubmissionQueue): void {
    setImmediate(() => {
      if (this.#turn.isOver) this.#serviceLater(sq);
      else this.#service(sq);
    });
  }

  async #fetchRemote(sq: SubmissionQueue): Promise<void> {
    sq.fetching = true;
    this.activity.begin();
    try {
      const end = sq.tail > sq.head ? sq.tail : sq.size;
      const count = Math.min(end - sq.head, BATCH);
      const words = new Int32Array((count * SQ_ENTRY_SIZE) / 4);
      const bytes = new Uint8Array(words.buffer);
      await this.owner.host.memory.read(sq.base + sq.head * SQ_ENTRY_SIZE, bytes);
      sq.fetching = false;
      this.#beginBatch();
      for (let i = 0; i < count && this.#mayFetch(sq); i++) {
        const command = this.#take(sq);
        command.words.set(words.subarray((i * SQ_ENTRY_SIZE) / 4, ((i + 1) * SQ_ENTRY_SIZE) / 4));
        sq.head = sq.head + 1 === sq.size ? 0 : sq.head + 1;
        this.#execute(command);
      }
      this.#endBatch();
      this.#serviceLater(sq);
    } catch (error) {
      sq.fetching = false;
      this.#ringFailed(`submission queue ${sq.id}`, error);
    } finally {
      this.activity.end();
    }
  }

  #execute(command: Command): void {
    try {
      this.owner.execute(command);
    } catch (error) {
      this.completeError(command, error);
    }
  }

  #take(sq: SubmissionQueue, record = NOT_KEPT): Command {
    const command = this.#free.pop() ?? new Command();
    command.sq = sq;
    command.record = record;
    this.keeper?.taken(command);
    sq.outstanding++;
    this.#outstanding++;
    this.activity.begin();
    return command;
  }

  #release(command: Command): void {
    const { sq } = command;
    this.keeper?.ended(command);
    this.#free.push(command);
    this.#outstanding--;
    if (--sq.outstanding === 0) sq.onDrained?.();
    if (this.#starved && this.#outstanding <= MAX_OUTSTANDING / 2) {
      this.#starved = false;
      setImmediate(() => this.#serviceAll());
    }
    this.activity.end();
  }

  #serviceAll(): void {
    for (const sq of this.submission) if (sq !== undefined) this.#service(sq);
  }

  #serviceBound(cq: CompletionQueue): void {
    for (const sq of this.submission) if (sq?.cq === cq) this.#service(sq);
  }

  #enqueue(completion: HeldCompletion): void {
    const { cq } = completion.sq;
    if (!this.#posting) return;
    // What admin commands change is theirs to keep, and of the completion queues what is held.
    if (completion.sq.id === 0 || cq.held.length > 0) this.keeper?.changed();
    cq.held.push(completion);
    this.#beginBatch();
    this.#post(cq);
    if (cq.held.length > 0) this.keeper?.changed();
    this.#endBatch();
  }

  /** Writes completions that were held before now, while there is room. A successor must not find them held any more. */
  #postHeld(cq: CompletionQueue): void {
    if (cq.held.length > 0) this.keeper?.changed();
    this.#post(cq);
  }

  /** Writes held completions while there is room. */
  #post(cq: CompletionQueue): void {
    if (this.#frozen || cq.posting || cq.held.length === 0) return;
    if (this.keeper !== undefined) {
      this.#postKept(cq);
      return;
    }
    try {
      const words = cq.ring.words(this.owner.host.memory);
      if (words === undefined) {
        void this.#postRemote(cq);
        return;
      }
      let posted = 0;
      for (; posted < cq.held.length && !cq.full; posted++) {
        const { phase } = cq;
        const index = cq.advance();
        writeEntry(words, index * (CQ_ENTRY_SIZE / 4), cq.held[posted]!, phase);
        this.owner.host.memory.written(cq.base + index * CQ_ENTRY_SIZE, CQ_ENTRY_SIZE);
      }
      if (posted === 0) return;
      if (posted === cq.held.length) cq.held.length = 0;
      else cq.held.splice(0, posted);
      this.#announceLater(cq);
    } catch (error) {
      this.#ringFailed(`completion queue ${cq.id}`, error);
    }
  }

  /** With a crash journal: entries are written when they are certain, wherever the ring is. */
  #postKept(cq: CompletionQueue): void {
    let posted = 0;
    for (; posted < cq.held.length && !cq.full; posted++) {
      const { phase } = cq;
      const index = cq.advance();
      writeEntry(this.#entry, 0, cq.held[posted]!, phase);
      this.owner.host.journal.write(cq.base + index * CQ_ENTRY_SIZE, this.#entryBytes);
    }
    if (posted === 0) return;
    cq.held.splice(0, posted);
    this.#announceLater(cq);
  }

  async #postRemote(cq: CompletionQueue): Promise<void> {
    cq.posting = true;
    this.activity.begin();
    try {
      const words = new Int32Array(CQ_ENTRY_SIZE / 4);
      const bytes = new Uint8Array(words.buffer);
      while (this.#posting && cq.held.length > 0 && !cq.full) {
        const { phase } = cq;
        // Taken before the write: the guest may consume the entry before we learn that it was written.
        const index = cq.advance();
        writeEntry(words, 0, cq.held.shift()!, phase);
        await this.owner.host.memory.write(cq.base + index * CQ_ENTRY_SIZE, bytes);
        if (this.#posting) this.owner.announce(cq);
      }
    } catch (error) {
      this.#ringFailed(`completion queue ${cq.id}`, error);
    } finally {
      cq.posting = false;
      cq.idle?.();
      this.activity.end();
    }
    if (this.#fetching && !cq.deleted) this.#serviceBound(cq);
  }

  /** Waits for an entry that is being written: its memory is the guest's again once the queue is deleted. */
  async drainCompletion(cq: CompletionQueue): Promise<void> {
    if (!cq.posting) return;
    await new Promise<void>((resolve) => {
      cq.idle = resolve;
    });
  }

  #announceLater(cq: CompletionQueue): void {
    if (cq.due) return;
    cq.due = true;
    this.#due.push(cq);
  }

  #beginBatch(): void {
    if (this.#batches++ === 0) this.owner.host.journal.begin();
  }

  #endBatch(): void {
    if (--this.#batches > 0) return;
    for (const cq of this.#due) {
      cq.due = false;
      this.owner.announce(cq);
    }
    this.#due.length = 0;
    this.owner.host.journal.end();
  }

  #ringFailed(what: string, error: unknown): void {
    this.abandon();
    this.owner.fatal(`${what}: ${error instanceof Error ? error.message : String(error)}`);
  }
}

/** Writes a completion queue entry; the dword with the phase tag last, because the guest goes by it. */
function writeEntry(words: Int32Array, at: number, completion: HeldCompletion, phase: number): void {
  const { sq, cid, status, result } = completion;
  words[at] = result;
  words[at + 1] = 0;
  words[at + 2] = sq.head | (sq.id << 16);
  Atomics.store(words, at + 3, cid | (phase << 16) | (status << 17));
}
