// SPDX-License-Identifier: Apache-2.0
/**
 * Requests on their way through the relay, by the ids that it sends them under. Their senders' ids may be anything, and
 * the same for two of them; the relay's own requests are among theirs.
 *
 * Every request is kept until its reply has come, so that it can be sent again to another server. A server carries
 * commands out in order: a reply says that all posted ones (No_reply) before it are done too, so those are kept no longer.
 */

import { DevstateError } from '../errors.js';
import { closeAll, type Fd, type Frame } from '../transport/index.js';

const IDS = 0x10000;
/** Bytes of a message that every slot has room for: a header and a region access of 32 bytes, and every fixed layout. */
const ROOM = 64;
/** Posted requests in a row; the next one is to be answered, so that these can be forgotten. */
const MAX_POSTED = 64;
/** Bytes of long messages that are kept until their replies have come. */
const MAX_KEPT_BYTES = 64 * 1024 * 1024;
/** Slots that are kept for the next requests. */
const MAX_SPARE = 256;

const NO_FDS: readonly Fd[] = [];

/** The VMM, or no one: nothing waits for the reply. */
export type LastingOrigin = 'vmm' | 'none';

/** Where a request came from. */
export interface Origin {
  /** What a relay that takes this one's place knows it by; undefined for one that ends with this process. */
  readonly lasting?: LastingOrigin;
  /** Its reply; `frame` is valid during the call only. */
  reply(request: InFlight, frame: Frame): void;
  /** There will be no reply to one of its requests: the server is gone. `why` says so. */
  lost(request: InFlight, why: string): void;
}

/** A request that was sent. Valid until its reply has been dealt with. */
export interface InFlight {
  /** Under which it was sent. */
  readonly id: number;
  /** Under which it came. */
  readonly senderId: number;
  readonly command: number;
  readonly origin: Origin;
  /** No reply will come. */
  readonly posted: boolean;
  /** Its sender waits for none, but one will come. */
  readonly silent: boolean;
  /** The message: all of it if it is kept, or as much as there is room for. */
  readonly bytes: Uint8Array;
  readonly view: DataView;
  /** Bytes of the whole message. */
  readonly length: number;
  /** What travelled along, if it is kept. */
  readonly fds: readonly Fd[];
}

class Slot implements InFlight {
  readonly #room = new Uint8Array(ROOM);
  readonly #roomView = new DataView(this.#room.buffer);
  id = 0;
  senderId = 0;
  command = 0;
  origin!: Origin;
  posted = false;
  silent = false;
  sequence = 0;
  bytes = this.#room;
  view = this.#roomView;
  length = 0;
  fds: readonly Fd[] = NO_FDS;

  store(bytes: Uint8Array, length: number, whole: boolean): void {
    this.length = length;
    if (whole && length > ROOM) {
      this.bytes = bytes.slice(0, length);
      this.view = new DataView(this.bytes.buffer);
      return;
    }
    const room = this.#room;
    const end = Math.min(length, ROOM);
    // For so few bytes a loop is faster than a view of them.
    for (let i = 0; i < end; i++) room[i] = bytes[i]!;
  }

  clear(): void {
    this.bytes = this.#room;
    this.view = this.#roomView;
    this.fds = NO_FDS;
  }
}

/** What is kept of a request's message: all of it, or its beginning. */
export function keptBytes({ bytes, length }: InFlight): Uint8Array {
  return bytes.subarray(0, Math.min(length, bytes.length));
}

export interface NewRequest {
  readonly origin: Origin;
  readonly senderId: number;
  readonly command: number;
  readonly posted: boolean;
  readonly silent: boolean;
  /** Keep all of the message, however long it is. */
  readonly whole: boolean;
}

export class InFlightTable {
  /** In the order in which they were sent. */
  readonly #slots = new Map<number, Slot>();
  readonly #spare: Slot[] = [];
  #nextId = 0;
  #sequence = 0;
  #posted = 0;
  #keptBytes = 0;
  #waiters: { readonly condition: () => boolean; readonly resolve: () => void }[] = [];

  /** Requests that are not known to be done. */
  get size(): number {
    return this.#slots.size;
  }

  /** Whether the next request should have a reply, because too many before it have none. */
  get needsReply(): boolean {
    return this.#posted >= MAX_POSTED;
  }

  /**
   * Enters a request; the id in the returned one is the one to send it under.
   * @param fds become the table's
   * @throws DEVSTATE_E_REQUEST_LIMIT
   */
  add(request: NewRequest, bytes: Uint8Array, length: number, fds: readonly Fd[]): InFlight {
    if (this.#slots.size >= IDS || this.#keptBytes > MAX_KEPT_BYTES) {
      closeAll(fds);
      const message = `${this.#slots.size} requests wait for the server's replies, and no more can be kept`;
      throw new DevstateError('DEVSTATE_E_REQUEST_LIMIT', message);
    }
    let id = this.#nextId;
    while (this.#slots.has(id)) id = (id + 1) % IDS;
    this.#nextId = (id + 1) % IDS;
    return this.#enter(id, request, bytes, length, fds);
  }

  /** All that are not known to be done, in the order in which they were sent. They stay the table's. */
  get requests(): Iterable<InFlight> {
    return this.#slots.values();
  }

  get nextId(): number {
    return this.#nextId;
  }

  set nextId(id: number) {
    this.#nextId = id;
  }

  /** Enters a request that was sent already, by the relay whose place this one takes. @param bytes what was kept of it */
  restore(
    id: number,
    request: Omit<NewRequest, 'whole'>,
    bytes: Uint8Array,
    length: number,
    fds: readonly Fd[],
  ): void {
    this.#enter(id, { ...request, whole: bytes.length === length }, bytes, length, fds);
  }

  #enter(id: number, request: NewRequest, bytes: Uint8Array, length: number, fds: readonly Fd[]): InFlight {
    const slot = this.#spare.pop() ?? new Slot();
    slot.id = id;
    slot.senderId = request.senderId;
    slot.command = request.command;
    slot.origin = request.origin;
    slot.posted = request.posted;
    slot.silent = request.silent;
    slot.sequence = this.#sequence++;
    slot.store(bytes, length, request.whole);
    this.#keptBytes += slot.bytes.length;
    if (fds.length > 0) slot.fds = fds;
    if (request.posted) this.#posted++;
    this.#slots.set(id, slot);
    return slot;
  }

  /** The request that a reply with this id is for; undefined when there is none. To be given back by {@link release}. */
  take(id: number): InFlight | undefined {
    const slot = this.#slots.get(id);
    if (slot === undefined) return undefined;
    this.#slots.delete(id);
    if (slot.posted) this.#posted--;
    if (this.#posted > 0) this.#forgetPosted(slot.sequence);
    return slot;
  }

  #forgetPosted(before: number): void {
    for (const slot of this.#slots.values()) {
      if (!slot.posted || slot.sequence > before) return;
      this.#slots.delete(slot.id);
      this.#posted--;
      this.release(slot);
    }
  }

  /** The request is over. Fds that no one took are closed. */
  release(request: InFlight): void {
    closeAll(request.fds);
    const slot = request as Slot;
    this.#keptBytes -= slot.bytes.length;
    slot.clear();
    if (this.#spare.length < MAX_SPARE) this.#spare.push(slot);
    if (this.#waiters.length > 0) this.#settle();
  }

  /** Settles when every request is done; posted ones are only when a later one is. */
  idle(): Promise<void> {
    return this.#until(() => this.#slots.size === 0);
  }

  /** Settles when no request is under way but those that another relay could continue with. */
  onlyLasting(): Promise<void> {
    return this.#until(() => {
      for (const { origin } of this.#slots.values()) if (origin.lasting === undefined) return false;
      return true;
    });
  }

  #until(condition: () => boolean): Promise<void> {
    if (condition()) return Promise.resolve();
    return new Promise((resolve) => this.#waiters.push({ condition, resolve }));
  }

  #settle(): void {
    this.#waiters = this.#waiters.filter(({ condition, resolve }) => {
      if (!condition()) return true;
      resolve();
      return false;
    });
  }

  /** All that are not known to be done, in order. They are the caller's. */
  drain(): InFlight[] {
    const all = [...this.#slots.values()];
    this.#slots.clear();
    this.#posted = 0;
    this.#keptBytes = 0;
    this.#settle();
    return all;
  }
}
