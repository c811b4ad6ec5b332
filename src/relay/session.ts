// SPDX-License-Identifier: Apache-2.0
/**
 * One VMM's connection, from its VERSION to its end, over as many servers as it takes.
 *
 *     VMM ─request─▶ gate open? ─▶ back end, under an id of its own, kept until its reply
 *                      └─ no ────▶ hold, until a back end is there or the time is up
 *     VMM ◀─reply── noted for the next back end (DMA ranges, interrupts, config) ◀── back end
 *
 * The gate is shut while a back end is replaced, and while there is none because its server has died. What the server
 * asks of the VMM (DMA_READ, DMA_WRITE) passes all the time.
 */

import { asDevstateError, DevstateError } from '../errors.js';
import { closeAll, type Fd, type Frame, MessageSocket } from '../transport/index.js';
import {
  Command,
  commandName,
  Errno,
  HEADER_LENGTH,
  HeaderFlag,
  messageCommand,
  messageError,
  messageFlags,
  vfioUserFraming,
} from '../wire/index.js';
import { type Attached, attach } from './attach.js';
import { attachAgain, attachFirst } from './attach-again.js';
import { type BackEnd, type BackEndHandler, RELAY_LIMITS } from './back-end.js';
import { ConfigShadow } from './config-shadow.js';
import { Hold } from './hold.js';
import { readConfig, resetBitsOf } from './identity.js';
import type { InFlight, Origin } from './in-flight.js';
import {
  encodeReply,
  type Message,
  NO_FDS,
  type OwnMessage,
  ownCopy,
  payloadOf,
  takeAll,
} from './messages.js';
import { Owed } from './owed.js';
import { withoutIoFds, withoutMapping } from './region-filter.js';
import { canBeOwed, isPlausible, ReplayLog } from './replay-log.js';
import { ServerCommands } from './server-commands.js';
import { filterVersion } from './version-filter.js';

export interface SessionOptions {
  /** Where the device server listens. */
  readonly serverPath: () => string;
  /** Pass memory of the server on for the VMM to map; then no other server can take its place. */
  readonly mapping: boolean;
  /** How long a request of the VMM may wait for a server, ms. */
  readonly holdMs: number;
  readonly log: (level: 'info' | 'warn' | 'error', message: string) => void;
  /** A server is gone, and with it what managers were doing. */
  readonly lost: () => void;
  /** The VMM has left. */
  readonly closed: () => void;
}

/** For what the relay does in the VMM's name: nobody waits for the reply. */
const NOBODY: Origin = { reply: () => {}, lost: () => {} };

export class Session implements Origin, BackEndHandler {
  readonly log = new ReplayLog();
  /** Bytes that one manager leaves for the next. */
  note: Uint8Array = new Uint8Array(0);
  readonly #options: SessionOptions;
  readonly #socket: MessageSocket;
  readonly #hold: Hold;
  readonly #serverCommands = new ServerCommands();
  /** The VMM's VERSION, as it is passed on. */
  #proposal: Uint8Array | undefined;
  #back: BackEnd | undefined;
  /** Of the back end that the VMM was told of, whether it is still there or not. */
  #known: BackEnd | undefined;
  #open = false;
  /** When the server was lost; undefined when it is there. */
  #lostMs: number | undefined;
  readonly #owed = new Owed();
  /** The VMM has memory, or ioeventfds, of the server that it has now. */
  #bound = false;
  #shadow: ConfigShadow | undefined;
  #closed = false;

  /** Takes over the VMM's connected socket. */
  constructor(fd: Fd, options: SessionOptions) {
    this.#options = options;
    this.#hold = new Hold(options.holdMs, (request) => this.#expire(request));
    this.#socket = new MessageSocket(fd, vfioUserFraming, RELAY_LIMITS, {
      message: (frame) => this.#message(frame),
      closed: (error) => this.#onClosed(error),
    });
  }

  /** The server that serves the VMM now; undefined while there is none. */
  get back(): BackEnd | undefined {
    return this.#back;
  }

  /** Whether requests pass. */
  get isOpen(): boolean {
    return this.#open;
  }

  /** @throws DEVSTATE_E_RELAY when no other server can take the place of the VMM's */
  requireReplaceable(): void {
    if (!this.#bound) return;
    const message =
      'the VMM has mapped memory of its device server, which no other can have; run the relay without --map';
    throw new DevstateError('DEVSTATE_E_RELAY', message);
  }

  get isClosed(): boolean {
    return this.#closed;
  }

  close(): void {
    this.#socket.close();
  }

  // The VMM's messages.

  #message(frame: Frame): void {
    const { view } = frame;
    const flags = messageFlags(view);
    if ((flags & HeaderFlag.TYPE_MASK) === HeaderFlag.TYPE_REPLY) this.#serverCommands.answer(frame);
    else if (this.#open) this.#forward(frame, takeAll(frame.fds));
    else if (this.#proposal === undefined) this.#begin(frame);
    else {
      const held = ownCopy(frame, takeAll(frame.fds));
      const overdue = this.#lostMs !== undefined && performance.now() - this.#lostMs > this.#options.holdMs;
      if (overdue) this.#expire(held);
      else this.#hold.push(held);
    }
  }

  #forward(message: Message, fds: readonly Fd[]): void {
    const { view } = message;
    const command = messageCommand(view);
    if (command === Command.DEVICE_GET_REGION_IO_FDS && !this.#options.mapping) {
      closeAll(fds);
      this.#reply(view, 0, withoutIoFds(message));
      return;
    }
    const posted = (messageFlags(view) & HeaderFlag.NO_REPLY) !== 0;
    if (posted) {
      const copies = fds.map((fd) => fd.duplicate());
      this.#noteDone(message, copies);
      closeAll(copies);
    }
    this.#back?.forward(this, message, fds, true);
  }

  /** A reply of the server to the VMM. */
  reply(request: InFlight, frame: Frame): void {
    const { view, bytes } = frame;
    const failed = (messageFlags(view) & HeaderFlag.ERROR) !== 0;
    const refused = failed && messageError(view) === Errno.EINVAL && this.#back?.isStopped === true;
    if (refused && this.#standIn(request)) return;
    let { length, fds } = frame;
    if (!failed) {
      switch (request.command) {
        case Command.REGION_READ:
          break;
        case Command.DEVICE_GET_REGION_INFO:
        case Command.DEVICE_GET_REGION_IO_FDS:
          if (this.#options.mapping) this.#bound ||= fds.length > 0;
          else {
            length = withoutMapping(frame, request.view.getUint32(HEADER_LENGTH, true));
            fds = NO_FDS;
          }
          break;
        default:
          this.#noteDone(request, request.fds);
      }
    }
    view.setUint16(0, request.senderId, true);
    this.#socket.send(bytes, fds.length === 0 ? { length } : { length, fds });
  }

  /** Its requests are made again: see {@link backEndClosed}. */
  lost(): void {}

  /** The server has carried it out; one that is to take its place has not. */
  #noteDone(message: Message, fds: readonly Fd[]): void {
    if (canBeOwed(messageCommand(message.view))) this.#owed.add(message, fds, this.#back);
    this.#note(message, fds);
  }

  #note(message: Message, fds: readonly Fd[]): void {
    try {
      this.log.note(message, fds);
    } catch (error) {
      // The server took what we cannot read; another one will have to do without.
      this.#options.log(
        'warn',
        `${commandName(messageCommand(message.view))}: ${asDevstateError(error).message}`,
      );
    }
  }

  // Commands of servers for the VMM.

  serverCommand(back: BackEnd, frame: Frame): void {
    const wantsReply = (messageFlags(frame.view) & HeaderFlag.NO_REPLY) === 0;
    if (wantsReply && !this.#serverCommands.enter(back, frame)) return;
    this.#socket.send(frame.bytes, { length: frame.length });
  }

  // The first server.

  #begin(frame: Frame): void {
    if (messageCommand(frame.view) !== Command.VERSION || frame.fds.length > 0) {
      this.#reply(frame.view, Errno.EINVAL);
      return;
    }
    this.#proposal = filterVersion(frame.bytes.slice(HEADER_LENGTH, frame.length));
    void this.#start(ownCopy(frame, NO_FDS)).catch((error: unknown) =>
      this.#socket.close(asDevstateError(error)),
    );
  }

  async #start({ view }: Message): Promise<void> {
    try {
      const { back, answer } = await attachFirst(this, this.#options);
      this.#reply(view, 0, filterVersion(answer));
      this.log.config.resetBits = resetBitsOf(back.identity.config);
      this.adopt(back);
    } catch (error) {
      if (this.#closed) return;
      const { errno, message } = asDevstateError(error);
      this.#options.log('error', `the VMM is sent away: ${message}`);
      this.#reply(view, errno ?? Errno.ENOTCONN);
      this.#socket.end();
    }
  }

  // Back ends come and go.

  /** Connects to a server for this VMM. @throws as `attach` does */
  async attach(path: string, predecessor: BackEnd | undefined = this.#known): Promise<Attached> {
    this.requireReplaceable();
    const proposal = this.#proposal ?? new Uint8Array(0);
    const attached = await attach({ path, proposal, handler: this, predecessor });
    if (!this.#closed) return attached;
    attached.back.close();
    throw new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', 'the VMM has left');
  }

  /** From now on requests wait. */
  shut(): void {
    this.#open = false;
  }

  /** Gives a server the VMM's memory and interrupts, and begins to collect what changes from then on. */
  async replay(back: BackEnd): Promise<void> {
    this.#owed.expect(back);
    await this.log.replay(back);
  }

  /** Has a server carry out what has changed since {@link replay}. @throws DEVSTATE_E_REFUSED when it does not */
  async catchUp(back: BackEnd): Promise<void> {
    await this.#owed.carryOut(back);
  }

  /** Gives the VMM's requests to `back`, those that waited first. */
  adopt(back: BackEnd): void {
    if (this.#closed) {
      back.close();
      return;
    }
    const before = this.#back;
    this.#back = back;
    this.#known = back;
    this.#lostMs = undefined;
    this.#open = true;
    this.#owed.expect(back);
    if (before !== undefined && before !== back) this.discard(before);
    this.#pay(back);
    for (const request of this.#hold.takeAll()) this.#forward(request, request.fds);
  }

  /** Ends the connection of a back end that is not, or no more, the VMM's. */
  discard(back: BackEnd): void {
    this.#owed.forget(back);
    this.#serverCommands.forget(back);
    back.close();
  }

  stateChanged(back: BackEnd): void {
    if (back.isStopped || back !== this.#back) return;
    this.#shadow = undefined;
    if (this.#open) this.#pay(back);
  }

  #pay(back: BackEnd): void {
    if (back.isStopped) return;
    for (const message of this.#owed.take(back)) back.forward(NOBODY, message, message.fds, false);
  }

  backEndClosed(back: BackEnd, error: DevstateError | undefined, unanswered: InFlight[]): void {
    const requests: OwnMessage[] = [];
    for (const { origin, bytes, view, length, fds } of unanswered) {
      if (origin === this && !this.#closed) requests.push({ bytes, view, length, fds });
      else {
        closeAll(fds);
        origin.lost();
      }
    }
    this.discard(back);
    if (back !== this.#back) {
      for (const { fds } of requests) closeAll(fds);
      return;
    }
    this.#back = undefined;
    this.#open = false;
    if (this.#closed) return;
    this.#options.lost();
    this.#lostMs = performance.now();
    this.#hold.putBack(requests);
    const why = error === undefined ? 'it closed the connection' : error.message;
    this.#options.log(
      'warn',
      `the device server at ${back.path} is gone (${why}); looking for another there`,
    );
    void attachAgain(this, this.#options);
  }

  // What the relay answers in a server's place.

  /** The time of a request is up. */
  #expire(request: OwnMessage): void {
    if (!this.#owe(request, request.fds)) this.#reply(request.view, Errno.ETIMEDOUT);
    closeAll(request.fds);
  }

  /**
   * Takes a command that servers can be told of later, and answers it. Takes the fds that it needs.
   * @returns false for a command that has to be carried out now
   */
  #owe(request: Message, fds: readonly Fd[]): boolean {
    const command = messageCommand(request.view);
    const irqs = this.#known?.identity.irqs ?? [];
    if (!canBeOwed(command) || !isPlausible(request, fds, this.log, irqs)) return false;
    this.#owed.add(request, fds);
    this.#note(request, fds);
    this.#reply(request.view, 0, command === Command.DMA_UNMAP ? payloadOf(request) : undefined);
    return true;
  }

  /**
   * A server refused a request (EINVAL) as its device is stopped for a migration, which the VMM knows nothing of. What can
   * wait until it runs is done then; config space is what it was. @returns whether the VMM was answered
   */
  #standIn(request: InFlight): boolean {
    if (this.#owe(request, request.fds)) return true;
    const payload = this.#shadow?.access(request);
    if (payload === undefined) return false;
    if (request.command === Command.REGION_WRITE) {
      this.#owed.add(request, NO_FDS);
      this.#note(request, NO_FDS);
    }
    this.#reply(request.view, 0, payload);
    return true;
  }

  /** Called before the device is told to stop: keeps what the VMM may read of it meanwhile. */
  keepConfig(): void {
    const back = this.#back;
    if (back === undefined || back.isStopped || back.identity.config.length === 0) return;
    void readConfig(back, back.identity.config.length).then(
      (config) => {
        this.#shadow = new ConfigShadow(config);
      },
      () => {
        // Then the server's refusals are the answer.
      },
    );
  }

  /** Answers the VMM, unless it wants no answer. `request` begins with the request's header. */
  #reply(request: DataView, errno: number, payload?: Uint8Array): void {
    if ((messageFlags(request) & HeaderFlag.NO_REPLY) !== 0) return;
    this.#socket.send(encodeReply(request, errno, payload));
  }

  #onClosed(error: DevstateError | undefined): void {
    this.#closed = true;
    this.#open = false;
    if (error !== undefined) this.#options.log('warn', `VMM connection: ${error.message} (${error.code})`);
    const back = this.#back;
    this.#back = undefined;
    if (back !== undefined) this.discard(back);
    for (const other of this.#owed.servers) this.discard(other);
    this.#hold.close();
    this.log.close();
    this.#options.closed();
  }
}
