// SPDX-License-Identifier: Apache-2.0
/**
 * Commands in: from the guest's submission queues into command slots, and from there into the command sets.
 *
 * ```
 *  doorbell ─► turns ─► fetch, a burst each ─► FETCHED ─► STARTED ─► CompletionWriter
 *                ▲                                │          └─► WAITING (event requests)
 *                └── more entries, and room       └── quiesced: stays, and is state
 * ```
 * A command is fetched only when there is room for its completion. I/O commands are started only while few others are
 * under way; admin commands never wait for I/O, which a guest may want to end by them. All state is in the image; the lists here are an
 * index over it.
 */

import { Status, statusField } from '../spec/index.js';
import { Turn } from '../turn.js';
import { CompletionWriter } from './completion-writer.js';
import { type ControllerImage, commandAt, completionAt, submissionAt } from './controller-image.js';
import { type EngineOwner, PARKED, PENDING } from './engine-owner.js';
import { EntryFetcher } from './entry-fetcher.js';
import {
  CommandSlot,
  CommandState,
  Header,
  QUEUE_SIZE,
  QUEUE_SLOTS,
  QueueSlot,
  QueueState,
  SubmissionSlot,
} from './layout.js';
import { May, Mode } from './mode.js';
import { commandsInOrder } from './records.js';
import { FreeSlots, SlotQueue, slotLinks } from './slot-lists.js';
import { Turns } from './turns.js';

/** I/O commands fetched and not completed, over all queues. */
const FETCH_LIMIT = 256;
/** I/O commands under way at a time: as many as the disk makes use of. */
const START_LIMIT = 32;
/** Entries taken before other work of the process gets its turn. */
const BATCH = 64;
/** Entries after which the time is looked at. */
const LOOK_AFTER = 8;

export class QueueEngine {
  /** Called whenever nothing is under way any more. */
  onIdle: (() => void) | undefined;
  readonly #image: ControllerImage;
  readonly #owner: EngineOwner;
  readonly #writer: CompletionWriter;
  readonly #fetcher: EntryFetcher;
  readonly #free = new FreeSlots();
  /** FETCHED slots, of the admin queue and of the others. */
  readonly #readyAdmin: SlotQueue;
  readonly #readyIo: SlotQueue;
  readonly #waiting: SlotQueue;
  /** By submission queue: commands fetched and not completed. */
  readonly #outstanding = new Int32Array(QUEUE_SLOTS);
  readonly #turns = new Turns();
  /** By queue that is being deleted: whom to tell. */
  readonly #deletedSubmission = new Map<number, () => void>();
  readonly #deletedCompletion = new Map<number, () => void>();
  /** Commands under way, and how many of them are I/O commands. */
  #started = 0;
  #startedIo = 0;
  #pumping = false;
  #pumpsLater = false;
  readonly #turn = new Turn();
  #mode: Mode = Mode.SILENT;
  #order = 0;

  constructor(image: ControllerImage, owner: EngineOwner) {
    const links = slotLinks();
    this.#image = image;
    this.#owner = owner;
    this.#readyAdmin = new SlotQueue(links);
    this.#readyIo = new SlotQueue(links);
    this.#waiting = new SlotQueue(links);
    this.#writer = new CompletionWriter(image, owner, links, {
      released: (slot) => this.#release(slot),
      nextOrder: () => ++this.#order,
      writeEnded: (cqid) => this.#writeEnded(cqid),
      failed: (what, error) => this.#ringFailed(what, error),
    });
    this.#fetcher = new EntryFetcher(image, owner, this.#free, this.#writer, {
      wanted: (sqid) => (this.#mode & May.FETCH) !== 0 && this.#isPresent(sqid),
      admitted: (slot, sqid) => this.#admit(slot, sqid),
      readEnded: (sqid) => this.#readEnded(sqid),
      failed: (what, error) => this.#ringFailed(what, error),
    });
    this.rebuild();
  }

  get mode(): Mode {
    return this.#mode;
  }

  /** What the engine may do from now on; work that became possible is taken up. */
  setMode(mode: Mode): void {
    this.#mode = mode;
    this.#writer.mode = mode;
    this.#writer.postAll();
    const last = this.#image.u32(Header.QUEUES);
    for (let id = 0; id <= last; id++) this.#offerTurn(id);
    this.#pump();
  }

  /** Nothing is under way, nor, while commands may be started, is there one to start. */
  get idle(): boolean {
    const toStart = (this.#mode & May.START) === 0 ? 0 : this.#readyAdmin.length + this.#readyIo.length;
    return this.#started + this.#fetcher.reads + this.#writer.writes + toStart === 0;
  }

  /** Event requests that wait. */
  get waiting(): number {
    return this.#waiting.length;
  }

  /** The submission tail doorbell. @returns false when the value is out of range */
  ringSubmission(id: number, tail: number): boolean {
    const at = submissionAt(id);
    if (tail >= this.#image.u32(at + QueueSlot.ENTRIES)) return false;
    this.#image.setU32(at + QueueSlot.TAIL, tail);
    this.#offerTurn(id);
    this.#pump();
    return true;
  }

  /** The completion head doorbell. @returns false when the value is out of range or beyond what was posted */
  ringCompletion(id: number, head: number): boolean {
    if (!this.#writer.consume(id, head)) return false;
    if (this.#writer.takeStarved(id)) {
      for (let sqid = 0; sqid < QUEUE_SLOTS; sqid++) {
        if (this.#image.u16(submissionAt(sqid) + SubmissionSlot.CQID) === id) this.#offerTurn(sqid);
      }
    }
    if (this.#turns.next !== undefined) this.#pump();
    return true;
  }

  /** Ends a command that was `PENDING`. */
  finish(slot: number, status: number): void {
    this.#stopped(slot);
    this.#end(slot, status);
    this.#pump();
  }

  /** Answers the event request that waits longest. Only when one does. */
  answerOldest(status: number, result: number): void {
    this.#answer(this.#waiting.shift(), status, result);
  }

  /** Answers the event request with this identifier. @returns false when there is none */
  answerRequest(cid: number, status: number): boolean {
    const slot = this.#waiting.extractFirst((other) => this.#image.cid(other) === cid);
    if (slot === undefined) return false;
    this.#answer(slot, status, 0);
    return true;
  }

  /** A queue's slot was filled or emptied. */
  queueChanged(kind: 'submission' | 'completion', id: number): void {
    if (kind === 'submission') this.#fetcher.forget(id);
    else this.#writer.forget(id);
  }

  /**
   * Deletes a submission queue as soon as none of its commands is under way, now or later, and tells `done`. Commands
   * that were not started yet are aborted; completions without room are dropped, as those of a queue that goes may be.
   */
  deleteSubmission(id: number, done: () => void): void {
    this.#image.setU8(submissionAt(id) + QueueSlot.STATE, QueueState.DELETING);
    this.#deletedSubmission.set(id, done);
    for (const slot of this.#readyIo.extract((other) => this.#image.sqid(other) === id)) {
      this.#end(slot, Status.ABORTED_SQ_DELETION);
    }
    this.#checkDeleted(id);
  }

  /** Deletes a completion queue to which no submission queue belongs, as soon as nothing is written to it, and tells `done`. */
  deleteCompletion(id: number, done: () => void): void {
    this.#image.setU8(completionAt(id) + QueueSlot.STATE, QueueState.DELETING);
    this.#deletedCompletion.set(id, done);
    if (!this.#writer.isWriting(id)) this.#finishDeletion(id);
  }

  /** Makes the index anew: the image was loaded or cleared. Only when idle. */
  rebuild(): void {
    const image = this.#image;
    this.#readyAdmin.clear();
    this.#readyIo.clear();
    this.#waiting.clear();
    this.#writer.clear();
    this.#free.reset(image.commandEnd);
    this.#fetcher.clear();
    this.#turns.clear();
    this.#outstanding.fill(0);
    for (let slot = image.commandEnd - 1; slot >= 0; slot--) {
      if (image.u8(commandAt(slot) + CommandSlot.STATE) === CommandState.FREE) this.#free.give(slot);
    }
    const used = commandsInOrder(image);
    const last = used.at(-1);
    this.#order = last === undefined ? 0 : image.view.getFloat64(commandAt(last) + CommandSlot.ORDER, true);
    for (const slot of used) this.#enlist(slot);
  }

  #enlist(slot: number): void {
    const state = this.#image.u8(commandAt(slot) + CommandSlot.STATE);
    if (state === CommandState.WAITING) this.#waiting.push(slot);
    else if (state === CommandState.DUE) this.#writer.adopt(slot);
    else {
      const sqid = this.#image.sqid(slot);
      this.#outstanding[sqid]!++;
      this.#writer.reserve(this.#completionQueue(sqid), 1);
      this.#readyOf(sqid).push(slot);
    }
  }

  #readyOf(sqid: number): SlotQueue {
    return sqid === 0 ? this.#readyAdmin : this.#readyIo;
  }

  #completionQueue(sqid: number): number {
    return this.#image.u16(submissionAt(sqid) + SubmissionSlot.CQID);
  }

  #isPresent(sqid: number): boolean {
    return this.#image.u8(submissionAt(sqid) + QueueSlot.STATE) === QueueState.PRESENT;
  }

  /** Gives a queue a turn if it has entries. */
  #offerTurn(sqid: number): void {
    const at = submissionAt(sqid);
    const image = this.#image;
    if (image.u32(at + QueueSlot.HEAD) === image.u32(at + QueueSlot.TAIL) || !this.#isPresent(sqid)) return;
    if (!this.#fetcher.isReading(sqid)) this.#turns.offer(sqid);
  }

  #pump(): void {
    if (this.#pumping) return;
    this.#pumping = true;
    this.#writer.beginBatch();
    let left = BATCH;
    this.#startReady();
    for (let sqid = this.#turns.next; sqid !== undefined && left > 0; sqid = this.#turns.next) {
      if (!this.#mayFetch(sqid)) break;
      this.#turns.take();
      if (!this.#isPresent(sqid)) continue;
      const taken = this.#fetcher.fetch(sqid);
      left -= taken;
      // A queue of which nothing could be taken gets its next turn when something changes.
      if (taken > 0) this.#offerTurn(sqid);
      if (left <= BATCH - LOOK_AFTER && this.#turn.isOver) left = 0;
      this.#startReady();
    }
    if (left <= 0 && this.#turns.next !== undefined) this.#pumpLater();
    this.#pumping = false;
    this.#writer.endBatch();
    if (this.onIdle !== undefined && this.idle) this.onIdle();
  }

  #pumpLater(): void {
    if (this.#pumpsLater) return;
    this.#pumpsLater = true;
    setImmediate(() => {
      this.#pumpsLater = false;
      this.#pump();
    });
  }

  #mayFetch(sqid: number): boolean {
    if ((this.#mode & May.FETCH) === 0 || this.#free.count === 0) return false;
    return sqid === 0 || this.#startedIo + this.#fetcher.claimed + this.#readyIo.length < FETCH_LIMIT;
  }

  #readEnded(sqid: number): void {
    this.#checkDeleted(sqid);
    this.#offerTurn(sqid);
    this.#pump();
  }

  #writeEnded(cqid: number): void {
    for (const sqid of [...this.#deletedSubmission.keys()]) this.#checkDeleted(sqid);
    this.#finishDeletion(cqid);
    this.#pump();
  }

  /** An entry was copied to a slot. */
  #admit(slot: number, sqid: number): void {
    const image = this.#image;
    const at = commandAt(slot);
    image.setCommandState(slot, CommandState.FETCHED);
    image.setU16(at + CommandSlot.SQID, sqid);
    image.setU32(at + CommandSlot.STATUS, 0);
    image.setU32(at + CommandSlot.RESULT, 0);
    image.view.setFloat64(at + CommandSlot.ORDER, ++this.#order, true);
    this.#outstanding[sqid]!++;
    this.#readyOf(sqid).push(slot);
  }

  #startReady(): void {
    if ((this.#mode & May.START) === 0) return;
    while (this.#readyAdmin.length > 0) this.#start(this.#readyAdmin.shift());
    while (this.#readyIo.length > 0 && this.#startedIo < START_LIMIT) this.#start(this.#readyIo.shift());
  }

  #start(slot: number): void {
    this.#image.setCommandState(slot, CommandState.STARTED);
    this.#started++;
    if (this.#image.sqid(slot) !== 0) this.#startedIo++;
    const status = this.#owner.execute(slot);
    if (status === PENDING) return;
    this.#stopped(slot);
    if (status === PARKED) this.#park(slot);
    else this.#end(slot, status);
  }

  /** A command is no longer under way. */
  #stopped(slot: number): void {
    this.#started--;
    if (this.#image.sqid(slot) !== 0) this.#startedIo--;
  }

  /** An event request waits, and is no longer counted among what is under way. */
  #park(slot: number): void {
    const sqid = this.#image.sqid(slot);
    this.#image.setCommandState(slot, CommandState.WAITING);
    this.#outstanding[sqid]!--;
    this.#writer.reserve(this.#completionQueue(sqid), -1);
    this.#waiting.push(slot);
    this.#owner.parked();
  }

  #answer(slot: number, status: number, result: number): void {
    this.#writer.reserve(this.#completionQueue(this.#image.sqid(slot)), 1);
    this.#image.setU32(commandAt(slot) + CommandSlot.RESULT, result);
    this.#writer.complete(slot, statusField(status));
  }

  /** A command has ended, or never began. */
  #end(slot: number, status: number): void {
    const sqid = this.#image.sqid(slot);
    const field = status === Status.SUCCESS ? status : this.#owner.failed(slot, statusField(status));
    this.#writer.complete(slot, field);
    this.#outstanding[sqid]!--;
    this.#checkDeleted(sqid);
  }

  /** Ends the deletion of a submission queue if there is one and nothing stands in its way. */
  #checkDeleted(sqid: number): void {
    const done = this.#deletedSubmission.get(sqid);
    if (done === undefined || this.#outstanding[sqid] !== 0 || this.#fetcher.isReading(sqid)) return;
    // What is being written has room, and is not dropped.
    if (this.#writer.isWriting(this.#completionQueue(sqid)) && this.#writer.hasDue(sqid)) return;
    this.#deletedSubmission.delete(sqid);
    this.#writer.drop(sqid);
    this.#image.span(submissionAt(sqid), QUEUE_SIZE).fill(0);
    this.#fetcher.forget(sqid);
    done();
  }

  /** Ends the deletion of a completion queue if there is one. */
  #finishDeletion(cqid: number): void {
    const done = this.#deletedCompletion.get(cqid);
    if (done === undefined) return;
    this.#deletedCompletion.delete(cqid);
    this.#image.span(completionAt(cqid), QUEUE_SIZE).fill(0);
    this.#writer.forget(cqid);
    done();
  }

  #release(slot: number): void {
    this.#image.setCommandState(slot, CommandState.FREE);
    this.#free.give(slot);
  }

  #ringFailed(what: string, error: unknown): void {
    this.#mode = Mode.SILENT;
    this.#writer.mode = Mode.SILENT;
    this.#owner.fatal(`${what}: ${error instanceof Error ? error.message : String(error)}`);
  }
}
