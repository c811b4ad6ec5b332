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

import { asDevstateError, type DevstateError } from '../errors.js';
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
import { attachFirst } from './attach-again.js';
import { type BackEnd, RELAY_LIMITS } from './back-end.js';
import type { ReadSession, SessionDocument } from './handoff-document.js';
import { Hold } from './hold.js';
import { resetBitsOf } from './identity.js';
import type { InFlight, Origin } from './in-flight.js';
import { encodeReply, type Message, NO_FDS, type OwnMessage, ownCopy, takeAll } from './messages.js';
import { Owed } from './owed.js';
import type { Packer, Unpacker } from './packing.js';
import { withoutIoFds, withoutMapping } from './region-filter.js';
import { canBeOwed, ReplayLog } from './replay-log.js';
import { ServerCommands } from './server-commands.js';
import { NOBODY, Servers, type ServersHost, type ServersOptions } from './servers.js';
import { captureSession, restoreSession, type SessionFacts } from './session-handoff.js';
import { StandIn } from './stand-in.js';
import { filterVersion } from './version-filter.js';

export interface SessionOptions extends ServersOptions {
  /** Pass memory of the server on for the VMM to map; then no other server can take its place. */
  readonly mapping: boolean;
  /** The VMM has left. */
  readonly closed: () => void;
}

export class Session implements Origin, ServersHost {
  readonly lasting = 'vmm';
  readonly vmm: Origin = this;
  readonly log = new ReplayLog();
  readonly owed = new Owed();
  readonly commands = new ServerCommands();
  readonly hold: Hold;
  readonly facts: SessionFacts = {
    proposal: undefined,
    known: undefined,
    lostMs: undefined,
    bound: false,
    note: new Uint8Array(0),
  };
  readonly servers: Servers;
  readonly #options: SessionOptions;
  readonly #socket: MessageSocket;
  readonly #standIn: StandIn;

  /**
   * Takes over the VMM's connected socket. @param from goes on, after {@link thaw}, where another relay has stopped.
   * @throws DEVSTATE_E_HANDOFF_BUNDLE, having closed what it took
   */
  constructor(fd: Fd, options: SessionOptions, from?: { document: ReadSession; unpacker: Unpacker }) {
    this.#options = options;
    this.hold = new Hold(options.holdMs, (request) => this.#expire(request));
    this.servers = new Servers(this, options);
    this.#standIn = new StandIn({
      log: this.log,
      owed: this.owed,
      irqs: () => this.facts.known?.identity.irqs ?? [],
      note: (request, fds) => this.#note(request, fds),
      reply: (request, errno, payload) => this.#reply(request, errno, payload),
    });
    this.#socket = new MessageSocket(fd, vfioUserFraming, RELAY_LIMITS, {
      message: (frame) => this.#message(frame),
      closed: (error) => this.#onClosed(error),
    });
    if (from === undefined) return;
    this.#socket.pause();
    try {
      const origins = { vmm: this, nobody: NOBODY };
      this.servers.restore(restoreSession(from.document, this, origins, from.unpacker));
    } catch (error) {
      this.letGo();
      throw error;
    }
  }

  /** The VMM has left. */
  get isClosed(): boolean {
    return this.servers.isClosed;
  }

  close(): void {
    this.#socket.close();
  }

  // The VMM's messages.

  #message(frame: Frame): void {
    const { view } = frame;
    const flags = messageFlags(view);
    if ((flags & HeaderFlag.TYPE_MASK) === HeaderFlag.TYPE_REPLY) this.commands.answer(frame);
    else if (this.servers.isOpen) this.forward(frame, takeAll(frame.fds));
    else if (this.facts.proposal === undefined) this.#begin(frame);
    else {
      const held = ownCopy(frame, takeAll(frame.fds));
      const { lostMs } = this.facts;
      const overdue = lostMs !== undefined && performance.now() - lostMs > this.#options.holdMs;
      if (overdue) this.#expire(held);
      else this.hold.push(held);
    }
  }

  forward(message: Message, fds: readonly Fd[]): void {
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
    this.servers.back?.forward(this, message, fds, true);
  }

  /** A reply of the server to the VMM. */
  reply(request: InFlight, frame: Frame): void {
    const { view, bytes } = frame;
    const failed = (messageFlags(view) & HeaderFlag.ERROR) !== 0;
    const refused = failed && messageError(view) === Errno.EINVAL && this.servers.back?.isStopped === true;
    if (refused && this.#standIn.answer(request)) return;
    let { length, fds } = frame;
    if (!failed) {
      switch (request.command) {
        case Command.REGION_READ:
          break;
        case Command.DEVICE_GET_REGION_INFO:
        case Command.DEVICE_GET_REGION_IO_FDS:
          if (this.#options.mapping) this.facts.bound ||= fds.length > 0;
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

  /** Its requests are made again: see `Servers`. */
  lost(): void {}

  /** The server has carried it out; one that is to take its place has not. */
  #noteDone(message: Message, fds: readonly Fd[]): void {
    if (canBeOwed(messageCommand(message.view))) this.owed.add(message, fds, this.servers.back);
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
    if (wantsReply && !this.commands.enter(back, frame)) return;
    this.#socket.send(frame.bytes, { length: frame.length });
  }

  // The first server.

  #begin(frame: Frame): void {
    if (messageCommand(frame.view) !== Command.VERSION || frame.fds.length > 0) {
      this.#reply(frame.view, Errno.EINVAL);
      return;
    }
    this.facts.proposal = filterVersion(frame.bytes.slice(HEADER_LENGTH, frame.length));
    const started = this.#start(ownCopy(frame, NO_FDS));
    this.servers.begin(started.catch((error: unknown) => this.#socket.close(asDevstateError(error))));
  }

  async #start({ view }: Message): Promise<void> {
    try {
      const { back, answer } = await attachFirst(this.servers, this.#options);
      this.#reply(view, 0, filterVersion(answer));
      this.log.config.resetBits = resetBitsOf(back.identity.config);
      this.servers.adopt(back);
    } catch (error) {
      if (this.isClosed) return;
      const { errno, message } = asDevstateError(error);
      this.#options.log('error', `the VMM is sent away: ${message}`);
      this.#reply(view, errno ?? Errno.ENOTCONN);
      this.#socket.end();
    }
  }

  // Another relay takes this one's place.

  /**
   * Stops between two messages on either side. @param signal aborts when it has taken too long, and {@link thaw} follows
   * @throws DEVSTATE_E_RELAY when a migration is under way, DEVSTATE_E_CONNECTION_CLOSED
   */
  async freeze(signal: AbortSignal): Promise<void> {
    const { servers } = this;
    await servers.settle();
    signal.throwIfAborted();
    servers.requireNoMigration();
    await Promise.all([this.#socket.freeze(), servers.back?.freeze()]);
    // The one may have got something from the other since.
    await Promise.all([this.#socket.drained(), servers.back?.drained()]);
    signal.throwIfAborted();
    servers.requireNoMigration();
  }

  /** All that another relay needs, of a session that is frozen. */
  capture(packer: Packer): SessionDocument {
    return captureSession(this, this.#socket, this.servers.back, packer);
  }

  /** Goes on after {@link freeze}, or begins where another relay has stopped. */
  thaw(): void {
    if (this.isClosed) return;
    this.hold.resume();
    this.#socket.resume();
    this.servers.thaw();
  }

  /** The VMM is another relay's: closes what is ours of it, frozen as it is, and tells nobody. */
  letGo(): void {
    this.servers.letGo();
    this.hold.close();
    this.log.close();
    if (!this.#socket.isClosed) this.#socket.detach().close();
  }

  // What the relay answers in a server's place.

  /** The time of a request is up. */
  #expire(request: OwnMessage): void {
    if (!this.#standIn.owe(request, request.fds)) this.#reply(request.view, Errno.ETIMEDOUT);
    closeAll(request.fds);
  }

  /** Called before the device is told to stop: keeps what the VMM may read of it meanwhile. */
  keepConfig(): void {
    this.#standIn.keepConfig(this.servers.back);
  }

  running(): void {
    this.#standIn.forgetConfig();
  }

  /** Answers the VMM, unless it wants no answer. `request` begins with the request's header. */
  #reply(request: DataView, errno: number, payload?: Uint8Array): void {
    if ((messageFlags(request) & HeaderFlag.NO_REPLY) !== 0) return;
    this.#socket.send(encodeReply(request, errno, payload));
  }

  #onClosed(error: DevstateError | undefined): void {
    if (error !== undefined) this.#options.log('warn', `VMM connection: ${error.message} (${error.code})`);
    this.servers.close();
    this.hold.close();
    this.log.close();
    this.#options.closed();
  }
}
