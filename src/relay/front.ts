// SPDX-License-Identifier: Apache-2.0
/** One VMM's connection, as its requests go out and replies come back; who serves it may change. */

import { asDevstateError, type DevstateError } from '../errors.js';
import { ConfigReadLog } from '../migration/index.js';
import { type Fd, type Frame, MessageSocket } from '../transport/index.js';
import {
  Command,
  Errno,
  HEADER_LENGTH,
  HeaderFlag,
  messageCommand,
  messageFlags,
  PciRegion,
  REGION_ACCESS_LENGTH,
  vfioUserFraming,
} from '../wire/index.js';
import { type BackEnd, RELAY_LIMITS } from './back-end.js';
import type { InFlight, Origin } from './in-flight.js';
import { encodeReply, type Message, NO_FDS } from './messages.js';
import { ServerCommands } from './server-commands.js';

/** Who serves a VMM: the session that has the device, or the understudy. */
export interface FrontUser {
  /** A request. */
  request(front: Front, frame: Frame): void;
}

export interface FrontHost {
  /** The server's reply to a request, which {@link Front.pass} sends on. */
  reply(front: Front, request: InFlight, frame: Frame): void;
  left(front: Front, error: DevstateError | undefined): void;
}

export class Front implements Origin {
  readonly lasting = 'vmm';
  readonly socket: MessageSocket;
  /** Commands of servers that this VMM has yet to answer. */
  readonly commands = new ServerCommands();
  /** Which reads of configuration space this VMM has sent. */
  readonly configReads = new ConfigReadLog();
  user: FrontUser;
  readonly #host: FrontHost;

  /** Takes over the VMM's connected socket. */
  constructor(fd: Fd, user: FrontUser, host: FrontHost) {
    this.user = user;
    this.#host = host;
    this.socket = new MessageSocket(fd, vfioUserFraming, RELAY_LIMITS, {
      message: (frame) => this.#message(frame),
      closed: (error) => host.left(this, error),
    });
  }

  #message(frame: Frame): void {
    const isReply = (messageFlags(frame.view) & HeaderFlag.TYPE_MASK) === HeaderFlag.TYPE_REPLY;
    if (isReply) this.commands.answer(frame);
    else {
      this.#witness(frame);
      this.user.request(this, frame);
    }
  }

  /** Whoever serves the VMM, and whenever: what it has sent has arrived here. */
  #witness({ view, length }: Frame): void {
    if (messageCommand(view) !== Command.REGION_READ || length < HEADER_LENGTH + REGION_ACCESS_LENGTH) return;
    if (view.getUint32(HEADER_LENGTH + 8, true) !== PciRegion.CONFIG) return;
    // An offset that is no safe integer is none in configuration space either.
    if (view.getUint32(HEADER_LENGTH + 4, true) !== 0) return;
    this.configReads.note(view.getUint32(HEADER_LENGTH, true), view.getUint32(HEADER_LENGTH + 12, true));
  }

  reply(request: InFlight, frame: Frame): void {
    this.#host.reply(this, request, frame);
  }

  /** Answers requests with an error. Those of the VMM that has the device are made again instead: see `Servers`. */
  lost({ view }: InFlight): void {
    this.answer(view, Errno.ETIMEDOUT);
  }

  /** Sends a server's reply on. @param length of it, and @param fds, as far as they are passed on */
  pass(request: InFlight, { view, bytes }: Message, length: number, fds: readonly Fd[] = NO_FDS): void {
    view.setUint16(0, request.senderId, true);
    this.socket.send(bytes, fds.length === 0 ? { length } : { length, fds });
  }

  /** Answers the VMM, unless it wants no answer. `request` begins with the request's header. */
  answer(request: DataView, errno: number, payload?: Uint8Array): void {
    if ((messageFlags(request) & HeaderFlag.NO_REPLY) !== 0) return;
    this.socket.send(encodeReply(request, errno, payload));
  }

  /** Sends a server's command to the VMM. */
  command(back: BackEnd, frame: Frame): void {
    const wantsReply = (messageFlags(frame.view) & HeaderFlag.NO_REPLY) === 0;
    if (wantsReply && !this.commands.enter(back, frame)) return;
    this.socket.send(frame.bytes, { length: frame.length });
  }

  close(error?: unknown): void {
    this.socket.close(error === undefined ? undefined : asDevstateError(error));
  }

  /** Another process has it: closes what is ours, frozen as it is, and sends nothing. */
  relinquish(): void {
    if (!this.socket.isClosed) this.socket.detach().close();
  }
}
