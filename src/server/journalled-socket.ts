// SPDX-License-Identifier: Apache-2.0
/**
 * The VMM's connection of a server with a crash journal: one message at a time, from the socket into the journal, and its
 * reply from there into the socket. At whatever point the process is killed, a successor knows what of both has moved.
 *
 *     peek header ─▶ fds to the store ─▶ receive ─▶ carry out ─▶ commit ─▶ effects ─▶ send ─▶ advance
 *                                            └── in one transaction ──┘
 *
 * | killed           | its successor                                                     |
 * | ---------------- | ----------------------------------------------------------------- |
 * | before `receive` | finds the message in the socket                                   |
 * | before `commit`  | finds it in the journal, and that nothing of it has happened      |
 * | after `commit`   | brings about the effects (again), and sends what is unsent        |
 * | after `advance`  | continues with the next                                           |
 *
 * As many system calls a message as without a journal: the header is peeked instead of received.
 */

import { asDevstateError, DevstateError } from '../errors.js';
import type { StoredFd } from '../fd-store/index.js';
import { MAX_EXCHANGE_FDS } from '../journal/index.js';
import { Errno, native, type Parts, PollEvent } from '../native/index.js';
import {
  BURST_MS,
  CloseGate,
  closeAll,
  type Fd,
  type Frame,
  type MessageHandler,
  receivedFds,
  type SendOptions,
  SocketWatcher,
} from '../transport/index.js';
import { HEADER_LENGTH, RequestError, vfioUserFraming } from '../wire/index.js';
import { MAX_MESSAGE_FDS, MAX_MESSAGE_LENGTH } from './capabilities.js';
import { type CrashJournal, ServerSlot } from './crash-journal.js';

/** One wake-up serves at most this many messages, then other sockets have their turn. */
const BURST_MESSAGES = 64;
/** A message that ended the process so often is refused. */
export const MAX_ATTEMPTS = 3;

const received = new Int32Array(2 + MAX_EXCHANGE_FDS);

export interface JournalledHandler extends MessageHandler {
  /** A message that is not to be carried out: to be answered with this error. */
  refused(frame: Frame, error: RequestError): void;
}

/** A message and where it stands. */
const Stage = {
  receiving: 0,
  /** With the handler, which has not answered yet. */
  handling: 1,
  /** Answered and committed; the reply is being sent. */
  sending: 2,
} as const;
type Stage = (typeof Stage)[keyof typeof Stage];

export class JournalledSocket {
  readonly #fd: Fd;
  readonly #group: number;
  readonly #gate: CloseGate;
  readonly #crash: CrashJournal;
  readonly #handler: JournalledHandler;
  readonly #watcher: SocketWatcher;
  readonly #answerSlot: number;
  readonly #answer = new Uint32Array(2);
  readonly #answerBytes = new Uint8Array(this.#answer.buffer);
  readonly #header = new Uint8Array(HEADER_LENGTH);
  readonly #headerView = new DataView(this.#header.buffer);
  readonly #view: DataView;
  #stage: Stage = Stage.receiving;
  /** Within `handler.message`: the answer belongs to the transaction that is open. */
  #delivering = false;
  #answered = false;
  #replyLength = 0;
  #fds: Fd[] = [];
  /** What the store keeps for the message. */
  #stored: StoredFd[] = [];
  /** Why an fd of the message cannot be kept. */
  #unkept: RequestError | undefined;
  /** The peer takes no replies any more; what it has sent is still carried out. */
  #deaf = false;
  #paused = false;
  #closed = false;

  /**
   * Becomes the owner of a connected socket. Receives from `start` on.
   * @param goesOn the connection was a predecessor's; else it is new
   */
  constructor(fd: Fd, crash: CrashJournal, handler: JournalledHandler, goesOn: boolean) {
    ({ fd: this.#fd, group: this.#group } = fd.takeConnection());
    this.#gate = new CloseGate(
      this.#group,
      () => this.#watch(),
      (error) => this.close(error),
    );
    this.#crash = crash;
    this.#handler = handler;
    this.#answerSlot = crash.journal.slot(ServerSlot.answer.name);
    this.#view = new DataView(crash.request.buffer);
    this.#watcher = new SocketWatcher(this.#fd, this.#onReady);
    if (goesOn) this.#recover();
    else this.#watch();
  }

  get isClosed(): boolean {
    return this.#closed;
  }

  /** Where the predecessor stopped; nothing is carried out before `resume`. */
  #recover(): void {
    const { receiving, fds } = this.#crash.journal.exchange;
    this.#paused = true;
    const answer = this.#crash.journal.get(this.#answerSlot);
    if (answer !== undefined) this.#answerBytes.set(answer);
    const [sequence, length] = this.#answer;
    if (answer !== undefined && sequence === receiving.sequence && this.#isWhole) {
      this.#stage = Stage.sending;
      this.#replyLength = length!;
    }
    for (const number of fds) {
      // Peeked, and perhaps not yet kept when the process ended: then nothing was received, and it is peeked again.
      if (receiving.position === 0 || !this.#crash.store.has(number)) continue;
      const stored = this.#crash.store.reuse(number);
      this.#stored.push(stored);
      this.#fds.push(stored.fd.duplicate());
    }
  }

  /** All of the message is here. */
  get #isWhole(): boolean {
    const { position } = this.#crash.journal.exchange.receiving;
    return position >= HEADER_LENGTH && position >= vfioUserFraming.messageLength(this.#view, 0);
  }

  /** Continues: with what a predecessor left, first. */
  resume(): void {
    this.#paused = false;
    this.#serve();
    this.#watch();
  }

  pause(): void {
    this.#paused = true;
    this.#watch();
  }

  get #holdsBack(): boolean {
    return this.#paused || this.#gate.isShut;
  }

  #watch(): void {
    if (this.#closed) return;
    let events = 0;
    if (this.#stage === Stage.sending) events = PollEvent.writable;
    else if (this.#stage === Stage.receiving && !this.#holdsBack) events = PollEvent.readable;
    this.#watcher.watch(events);
  }

  readonly #onReady = (): void => {
    this.#serve();
    this.#watch();
  };

  #serve(): void {
    const end = performance.now() + BURST_MS;
    for (let messages = 0; messages < BURST_MESSAGES && !this.#closed; messages++) {
      if (messages > 0 && performance.now() > end) return;
      if (this.#stage === Stage.sending && !this.#sendReply()) return;
      if (this.#holdsBack || this.#stage !== Stage.receiving) return;
      try {
        if (!this.#isWhole && !this.#receive()) return;
      } catch (error) {
        this.close(asDevstateError(error));
        return;
      }
      this.#deliver();
    }
  }

  /** @returns whether all of a message is here */
  #receive(): boolean {
    const { exchange } = this.#crash.journal;
    const { receiving } = exchange;
    for (;;) {
      const have = receiving.position;
      const length = have === 0 ? this.#peek() : this.#lengthWith(have);
      if (length === undefined) return false;
      if (have > 0) receiving.settle();
      const got = native.receiveCounted(
        this.#fd.number,
        exchange.memory,
        receiving.headerAt,
        exchange.requestAt + have,
        length - have,
        have === 0 ? null : received,
      );
      if (got === -Errno.EINTR) continue;
      if (got <= 0) return this.#nothing(-got);
      if (have > 0 && (received[0] !== 0 || received[1] !== 0)) {
        closeAll(receivedFds(received, this.#group));
        throw new DevstateError(
          'DEVSTATE_E_MESSAGE_FDS',
          'file descriptors came behind the header of a message',
        );
      }
      if (this.#isWhole) return true;
    }
  }

  /** The bytes to receive next end here: with the header, while its length is not known. */
  #lengthWith(have: number): number {
    return have < HEADER_LENGTH ? HEADER_LENGTH : requireLength(vfioUserFraming.messageLength(this.#view, 0));
  }

  /** Looks at a header and has its fds kept, before they are gone from the socket. @returns bytes to receive */
  #peek(): number | undefined {
    let got: number;
    do got = native.peekMessage(this.#fd.number, this.#header, 0, HEADER_LENGTH, received);
    while (got === -Errno.EINTR);
    if (got <= 0) {
      this.#nothing(-got);
      return undefined;
    }
    if (received[0] !== 0 || received[1] !== 0) this.#keepFds();
    // The rest of a header that comes in pieces is received as it comes, not peeked at again and again.
    return got < HEADER_LENGTH
      ? HEADER_LENGTH
      : requireLength(vfioUserFraming.messageLength(this.#headerView, 0));
  }

  #keepFds(): void {
    // Those of an earlier look at the same message.
    closeAll(this.#fds);
    this.#fds = receivedFds(received, this.#group);
    if (received[1] !== 0 || this.#fds.length > MAX_MESSAGE_FDS)
      throw new DevstateError(
        'DEVSTATE_E_MESSAGE_FDS',
        'a message carried too many file descriptors, or some were lost',
      );
    const before = this.#stored;
    this.#stored = [];
    try {
      for (const fd of this.#fds) this.#stored.push(this.#crash.store.keep(fd));
    } catch (error) {
      if (!(error instanceof RequestError)) throw error;
      this.#unkept = error;
    }
    for (const stored of before) stored.release();
    this.#crash.journal.exchange.fds = this.#stored.map(({ number }) => number);
  }

  /** Nothing more to receive for now (EAGAIN), or at all. */
  #nothing(errno: number): false {
    if (errno === Errno.EAGAIN) return false;
    const { position } = this.#crash.journal.exchange.receiving;
    if (position > 0)
      this.close(
        new DevstateError(
          'DEVSTATE_E_MESSAGE_TRUNCATED',
          `the peer closed the connection after ${position} bytes of a message`,
        ),
      );
    else if (errno === 0) this.close();
    else this.close(new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', 'the connection was lost', { errno }));
    return false;
  }

  #deliver(): void {
    const { transactions, journal } = this.#crash;
    const { exchange } = journal;
    const attempts = exchange.attempts + 1;
    exchange.attempts = attempts;
    this.#stage = Stage.handling;
    this.#answered = false;
    const frame: Frame = {
      view: this.#view,
      bytes: this.#crash.request,
      length: vfioUserFraming.messageLength(this.#view, 0),
      fds: this.#fds,
    };
    this.#delivering = true;
    let failure: unknown;
    transactions.begin();
    try {
      if (attempts > MAX_ATTEMPTS) this.#handler.refused(frame, poisoned());
      else if (this.#unkept !== undefined) this.#handler.refused(frame, this.#unkept);
      else this.#handler.message(frame);
    } catch (error) {
      failure = error;
    }
    // What a handler that has not answered yet has changed until now is committed by itself.
    transactions.end();
    this.#delivering = false;
    if (failure !== undefined) this.close(asDevstateError(failure));
    else if (this.#answered) this.#sendReply();
  }

  /** The reply to the message. Sent when the transaction that it belongs to is committed. */
  send(parts: Parts, options: SendOptions = {}): void {
    if (this.#closed) return;
    if (options.fds !== undefined && options.fds.length > 0)
      throw new DevstateError('DEVSTATE_E_INTERNAL', 'a reply from the journal carries no file descriptors');
    const { reply } = this.#crash;
    let at = 0;
    for (const part of parts instanceof Uint8Array ? [part0(parts, options.length)] : parts) {
      reply.set(part, at);
      at += part.length;
    }
    this.#answerWith(at);
  }

  /** The message gets no reply. */
  unanswered(): void {
    if (!this.#closed) this.#answerWith(0);
  }

  #answerWith(length: number): void {
    const { journal, transactions } = this.#crash;
    const { sequence } = journal.exchange.receiving;
    transactions.begin();
    if (length > 0) journal.exchange.sending.begin(sequence);
    this.#answer[0] = sequence;
    this.#answer[1] = length;
    journal.put(this.#answerSlot, this.#answerBytes);
    transactions.end();
    this.#answered = true;
    this.#replyLength = length;
    if (this.#delivering) return;
    // An answer that took its time: committed by now, and the next message may be waiting.
    this.#stage = Stage.sending;
    this.#sendReply();
    this.#watch();
  }

  /** @returns whether all of it has left, and the message is done with */
  #sendReply(): boolean {
    const { exchange } = this.#crash.journal;
    const { sending } = exchange;
    this.#stage = Stage.sending;
    while (!this.#deaf && sending.position < this.#replyLength) {
      sending.settle();
      const done = sending.position;
      const sent = native.sendCounted(
        this.#fd.number,
        exchange.memory,
        sending.headerAt,
        exchange.replyAt + done,
        this.#replyLength - done,
      );
      if (sent === -Errno.EAGAIN) return false;
      if (sent < 0 && sent !== -Errno.EINTR) this.#deaf = true;
    }
    this.#advance();
    return true;
  }

  #advance(): void {
    this.#replyLength = 0;
    this.#unkept = undefined;
    closeAll(this.#fds);
    if (this.#fds.length > 0 && !this.#closed) this.#gate.check();
    this.#fds = [];
    this.#crash.journal.exchange.advance();
    if (this.#stored.length > 0) {
      for (const stored of this.#stored.splice(0)) stored.release();
      this.#crash.store.flush();
    }
    this.#stage = Stage.receiving;
  }

  /** Closes at once. `error` goes to `handler.closed`. May be called again. */
  close(error?: DevstateError): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#gate.close();
    this.#watcher.close();
    this.#fd.close();
    closeAll(this.#fds);
    for (const stored of this.#stored.splice(0)) stored.release();
    queueMicrotask(() => this.#handler.closed(error));
  }
}

function poisoned(): RequestError {
  return new RequestError(Errno.EIO, 'it has ended the server several times, and is not tried again');
}

function part0(bytes: Uint8Array, length = bytes.length): Uint8Array {
  return length === bytes.length ? bytes : bytes.subarray(0, length);
}

/** @throws DEVSTATE_E_MESSAGE_LENGTH */
function requireLength(length: number): number {
  if (length >= HEADER_LENGTH && length <= MAX_MESSAGE_LENGTH) return length;
  const message = `a message claims ${length} bytes; ${HEADER_LENGTH} to ${MAX_MESSAGE_LENGTH} are accepted`;
  throw new DevstateError('DEVSTATE_E_MESSAGE_LENGTH', message);
}
