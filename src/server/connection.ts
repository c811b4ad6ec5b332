// SPDX-License-Identifier: Apache-2.0
/**
 * One client's connection: takes its commands in order, answers them, and matches replies to commands of our own.
 *
 *     frame ─ reply? ──▶ DMA peer's pending request
 *       └─ command ──▶ busy? ──▶ backlog (copied)
 *                        └─ handler ──▶ reply, unless No_reply
 *
 * A handler that returns a promise makes the connection busy: later commands wait, replies do not, so a device that
 * needs guest memory by messages in the middle of a region access gets it.
 */

import { asDevstateError, DevstateError } from '../errors.js';
import { ConfigReadLog } from '../migration/index.js';
import type { Parts } from '../native/index.js';
import type { Manager, NextVmmSteps } from '../succession/index.js';
import {
  BURST_MS,
  closeAll,
  type Fd,
  type Frame,
  type MessageHandler,
  MessageSocket,
  type SendOptions,
} from '../transport/index.js';
import {
  type Capabilities,
  Command,
  commandName,
  decodeVersion,
  defaultCapabilities,
  Errno,
  encodeFarewell,
  encodeReplyHeader,
  encodeVersion,
  HEADER_LENGTH,
  HeaderFlag,
  messageCommand,
  messageFlags,
  messageId,
  RequestError,
  type Version,
  vfioUserFraming,
} from '../wire/index.js';
import { MAX_BACKLOG_BYTES, MAX_BACKLOG_FDS, MAX_BACKLOG_MESSAGES } from './backlog-bundle.js';
import { MAX_DATA_XFER_SIZE, MAX_MESSAGE_FDS, MAX_MESSAGE_LENGTH, negotiate } from './capabilities.js';
import type {
  CommandHandler,
  ConfigReadsOf,
  HandOver,
  LastError,
  Request,
  Role,
  ServerContext,
} from './command.js';
import { commandsFor } from './commands.js';
import { type CrashJournal, ServerSlot } from './crash-journal.js';
import { type DmaPeer, type DmaTerms, MessageDmaPeer, noDmaByMessages, proposedTerms } from './dma-peer.js';
import { JournalledSocket } from './journalled-socket.js';
import { Reply } from './reply.js';
import type { MigrationPort, ServedDevice } from './served-device.js';

/** A client that does not agree on a version within this time is sent away, so that it does not keep others out. */
export const VERSION_TIMEOUT_MS = 5000;
/** Parts of a reply that are sent as they are; the addon gathers at most 64. */
const MAX_PARTS = 32;

const LIMITS = {
  maxMessageLength: MAX_MESSAGE_LENGTH,
  maxFds: MAX_MESSAGE_FDS,
  maxQueuedBytes: 64 * 1024 * 1024,
};

export interface ConnectionOptions {
  readonly role: Role;
  readonly device: ServedDevice;
  /** Offer a second socket for commands from the server, if the client can. */
  readonly twinSocket: boolean;
  /** How long the client may take to agree on a version. */
  readonly versionTimeoutMs: number;
  readonly log: (level: 'info' | 'warn' | 'error', message: string) => void;
  /** Hands the server over to its successor, for a manager that asks for it. */
  readonly handOver?: HandOver;
  /** Has another VMM take the place of the present one, for a manager that asks for it. */
  readonly nextVmm?: NextVmmSteps;
  /** Which reads of configuration space VMMs have sent, for a manager that asks. */
  readonly configReadsOf?: ConfigReadsOf;
  /** Whether a VMM that leaves leaves the device as it is, because another one is to have it. */
  readonly keeps?: (device: ServedDevice) => boolean;
  /** What is agreed on, received and answered is kept there. For one connection at a time. */
  readonly crash?: CrashJournal | undefined;
  /** Called once, when the connection has ended and the device has been told. */
  readonly closed: () => void;
}

/** A command that waits: its bytes and fds are its own. */
export interface Waiting {
  readonly bytes: Uint8Array;
  readonly fds: Fd[];
}

/** The socket of a connection: with a crash journal, or without. */
type ConnectionSocket = Pick<MessageSocket, 'close' | 'isClosed' | 'pause' | 'resume'> & {
  send(parts: Parts, options: SendOptions): unknown;
  /** The message that is being delivered gets no reply. */
  unanswered?(): void;
};

/** All that a successor needs to continue with a connection that is frozen. */
export interface FrozenConnection {
  readonly negotiated: boolean;
  readonly peer: Capabilities;
  /** Undefined before the version is agreed on. */
  readonly dma: { readonly terms: DmaTerms; readonly twin: Fd | undefined } | undefined;
  /** Commands that were received and not carried out, oldest first. */
  readonly backlog: readonly Waiting[];
}

export class Connection implements ServerContext, Manager {
  readonly role: Role;
  device: ServedDevice;
  readonly maxTransfer = MAX_DATA_XFER_SIZE;
  migration: MigrationPort | undefined;
  peer: Capabilities = defaultCapabilities;
  lastError: LastError = { id: 0, words: '' };
  activeAt = performance.now();
  readonly handOver: HandOver | undefined;
  readonly nextVmm: NextVmmSteps | undefined;
  readonly configReads: ConfigReadLog | undefined;
  readonly configReadsOf: ConfigReadsOf | undefined;

  readonly #options: ConnectionOptions;
  readonly #socket: ConnectionSocket;
  /** The same, without a crash journal. */
  readonly #plain: MessageSocket | undefined;
  readonly #reply = new Reply();
  readonly #commands: ReadonlyMap<number, CommandHandler>;
  readonly #backlog: Waiting[] = [];
  #backlogBytes = 0;
  #backlogFds = 0;
  #busy = false;
  /** Commands wait, because the device is about to be another process's. */
  #held = false;
  #onSettled: (() => void) | undefined;
  #negotiated = false;
  #dmaPeer: MessageDmaPeer | undefined;
  #versionTimer: NodeJS.Timeout | undefined;

  /**
   * Takes over a connected socket. @param frozen continues where a predecessor has stopped, after `thaw`. Its fds are taken
   */
  constructor(fd: Fd, options: ConnectionOptions, frozen?: FrozenConnection) {
    this.role = options.role;
    this.device = options.device;
    this.#options = options;
    this.#commands = commandsFor(options.role);
    const handler: MessageHandler = {
      message: (frame) => this.#message(frame),
      closed: (error) => void this.#closed(error),
    };
    if (options.crash === undefined) {
      this.#plain = new MessageSocket(fd, vfioUserFraming, LIMITS, handler);
      this.#socket = this.#plain;
    } else {
      const refused = (frame: Frame, error: RequestError): void => this.#refuse(frame, error);
      this.#socket = new JournalledSocket(fd, options.crash, { ...handler, refused }, frozen !== undefined);
    }
    this.handOver = options.handOver;
    this.nextVmm = options.nextVmm;
    this.configReads = options.role === 'vmm' ? new ConfigReadLog() : undefined;
    this.configReadsOf = options.configReadsOf;
    if (frozen !== undefined) this.#adopt(frozen);
    if (this.#negotiated) return;
    this.#versionTimer = setTimeout(() => {
      const why = 'the client did not send VERSION in time';
      this.#say(why);
      this.#socket.close(new DevstateError('DEVSTATE_E_PROTOCOL', why));
    }, options.versionTimeoutMs);
    this.#versionTimer.unref();
  }

  #adopt(frozen: FrozenConnection): void {
    this.#held = true;
    this.#socket.pause();
    for (const { bytes, fds } of frozen.backlog) this.#wait(bytes, fds);
    if (!frozen.negotiated) return;
    this.#negotiated = true;
    this.peer = frozen.peer;
    this.migration = this.device.openMigration(this.role);
    if (this.#plain === undefined) this.device.connected(noDmaByMessages);
    if (frozen.dma === undefined || this.#plain === undefined) return;
    this.#dmaPeer = new MessageDmaPeer(this.#plain, frozen.dma.terms);
    if (frozen.dma.twin !== undefined) this.#dmaPeer.adoptTwinSocket(frozen.dma.twin);
    this.device.connected(this.#dmaPeer);
  }

  /** A version is agreed on. */
  get isNegotiated(): boolean {
    return this.#negotiated;
  }

  /** From the next command on, this VMM has another device: the understudy's place, or the device itself. */
  redirect(device: ServedDevice): void {
    const { migration } = this;
    this.device = device;
    this.migration = device.openMigration(this.role);
    if (migration !== undefined) void this.#attempt(async () => migration.close());
  }

  /** The client's memory by messages, once a version is agreed on. */
  get dmaPeer(): DmaPeer | undefined {
    return this.#dmaPeer;
  }

  close(): void {
    this.#socket.close();
  }

  get isBusy(): boolean {
    return this.#busy || this.#backlog.length > 0 || this.migration?.drives === true;
  }

  sendAway(why: string): void {
    this.#say(why);
    this.#socket.close(new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', why));
  }

  /** Says why the connection is about to be closed, to those that can be told. */
  #say(why: string): void {
    if (this.role === 'manager') this.#plain?.send(encodeFarewell(why));
  }

  /** Settles when no command is being carried out; those that come wait. Answers to our own commands are taken still. */
  async hold(): Promise<void> {
    this.#held = true;
    if (this.#busy) await new Promise<void>((resolve) => (this.#onSettled = resolve));
  }

  /** After `hold`: stops between two messages. @throws when the client has left */
  async freeze(): Promise<FrozenConnection> {
    await this.#requirePlain().freeze();
    return {
      negotiated: this.#negotiated,
      peer: this.peer,
      dma: this.#dmaPeer?.freeze(),
      backlog: this.#backlog,
    };
  }

  /** A second owner of the connected socket. */
  duplicate(): Fd {
    return this.#requirePlain().duplicate();
  }

  #requirePlain(): MessageSocket {
    if (this.#plain === undefined)
      throw new DevstateError('DEVSTATE_E_HANDOFF', 'a connection with a crash journal is not handed over');
    return this.#plain;
  }

  /** Continues after `hold` and `freeze`. */
  thaw(): void {
    this.#held = false;
    this.#onSettled = undefined;
    this.#socket.resume();
    this.#resumeBacklog();
  }

  /** A successor has the connection: closes what is ours of it, and sends nothing. */
  relinquish(): void {
    clearTimeout(this.#versionTimer);
    for (const { fds } of this.#backlog.splice(0)) closeAll(fds);
    this.#dmaPeer?.close();
    if (this.#plain?.isClosed === false) this.#plain.detach().close();
  }

  #message(frame: Frame): void {
    if ((messageFlags(frame.view) & HeaderFlag.TYPE_MASK) === HeaderFlag.TYPE_REPLY) {
      if (this.#dmaPeer?.reply(frame) !== true) {
        throw new DevstateError('DEVSTATE_E_PROTOCOL', 'the client answered a command that was never sent');
      }
    } else if (this.#busy || this.#held || this.#backlog.length > 0) {
      this.activeAt = performance.now();
      const fds = frame.fds.map((fd) => fd.take());
      this.#wait(frame.bytes.slice(0, frame.length), fds);
    } else {
      this.activeAt = performance.now();
      this.#dispatch(frame.view, frame.bytes, frame.length, frame.fds);
      // The handler may still read its request: the next messages go elsewhere.
      if (this.#busy) this.#plain?.keepFrame();
    }
  }

  /** Keeps a command for later. Takes the fds. */
  #wait(bytes: Uint8Array, fds: Fd[]): void {
    this.#backlog.push({ bytes, fds });
    this.#backlogBytes += bytes.length;
    this.#backlogFds += fds.length;
    if (
      this.#backlog.length > MAX_BACKLOG_MESSAGES ||
      this.#backlogBytes > MAX_BACKLOG_BYTES ||
      this.#backlogFds > MAX_BACKLOG_FDS
    ) {
      throw new DevstateError(
        'DEVSTATE_E_PROTOCOL',
        'the client sends commands faster than they can be carried out',
      );
    }
  }

  #dispatch(view: DataView, bytes: Uint8Array, end: number, fds: readonly Fd[]): void {
    const id = messageId(view);
    const command = messageCommand(view);
    const noReply = (messageFlags(view) & HeaderFlag.NO_REPLY) !== 0;
    this.#reply.reset();
    let done: void | Promise<void>;
    try {
      done = this.#handle(command, { view, bytes, at: HEADER_LENGTH, end, fds });
    } catch (error) {
      this.#finish(id, command, noReply, error);
      return;
    }
    if (done === undefined) {
      this.#finish(id, command, noReply, undefined);
      return;
    }
    this.#busy = true;
    const held = fds.filter((fd) => fd.isOpen).map((fd) => fd.take());
    void this.#settle(done, id, command, noReply).finally(() => {
      closeAll(held);
      if (bytes.byteLength === bytes.buffer.byteLength) this.#plain?.returnBuffer(bytes);
    });
  }

  /** Waits for a command's end, answers it, and continues with what has come meanwhile. Never rejects. */
  async #settle(done: Promise<void>, id: number, command: number, noReply: boolean): Promise<void> {
    let failure: unknown;
    try {
      await done;
    } catch (error) {
      failure = error;
    }
    try {
      this.#finish(id, command, noReply, failure);
      this.#busy = false;
      this.#onSettled?.();
      this.#serveBacklog();
    } catch (error) {
      this.#socket.close(asDevstateError(error));
    }
  }

  /** Answers a command without looking at it. */
  #refuse({ view }: Frame, error: RequestError): void {
    const noReply = (messageFlags(view) & HeaderFlag.NO_REPLY) !== 0;
    this.#finish(messageId(view), messageCommand(view), noReply, error);
  }

  /** Carries out what waits, in turns with other work: there may be thousands. */
  #serveBacklog(): void {
    const end = performance.now() + BURST_MS;
    while (!this.#busy && !this.#held && !this.#socket.isClosed) {
      if (performance.now() > end && this.#backlog.length > 0) {
        setImmediate(() => this.#resumeBacklog());
        return;
      }
      const waiting = this.#backlog.shift();
      if (waiting === undefined) return;
      this.#backlogBytes -= waiting.bytes.length;
      this.#backlogFds -= waiting.fds.length;
      const { bytes, fds } = waiting;
      this.#dispatch(new DataView(bytes.buffer), bytes, bytes.length, fds);
      closeAll(fds);
    }
  }

  #resumeBacklog(): void {
    try {
      this.#serveBacklog();
    } catch (error) {
      this.#socket.close(asDevstateError(error));
    }
  }

  #handle(command: number, request: Request): void | Promise<void> {
    if ((messageFlags(request.view) & HeaderFlag.TYPE_MASK) !== HeaderFlag.TYPE_COMMAND)
      throw new RequestError(Errno.EINVAL, 'a message that is neither command nor reply');
    if (command === Command.VERSION) return this.#version(request);
    if (!this.#negotiated) throw new RequestError(Errno.EINVAL, 'the first command must be VERSION');
    const handler = this.#commands.get(command);
    if (handler === undefined)
      throw new RequestError(Errno.EINVAL, `${commandName(command)} is not served here`);
    return handler(this, request, this.#reply);
  }

  #finish(id: number, command: number, noReply: boolean, error: unknown): void {
    let errno = 0;
    if (error !== undefined) {
      errno = error instanceof RequestError ? error.errno : Errno.EIO;
      // A manager gets the words in answer, and tries what it need not succeed with.
      const refusal = this.role === 'manager' ? 'info' : 'warn';
      const level = error instanceof RequestError ? refusal : 'error';
      const words = error instanceof Error ? error.message : String(error);
      this.lastError = { id, words };
      this.#options.log(level, `${commandName(command)}: ${words}`);
    }
    const reply = this.#reply;
    if (noReply) {
      reply.reset();
      this.#socket.unanswered?.();
      return;
    }
    if (errno !== 0) {
      reply.reset();
      reply.allocate(0);
    }
    let length = reply.length;
    for (const part of reply.parts) length += part.length;
    encodeReplyHeader(reply.view, 0, id, command, length, errno);
    this.#send(reply);
    reply.reset();
  }

  #send(reply: Reply): void {
    const head = HEADER_LENGTH + reply.length;
    if (reply.parts.length === 0) {
      this.#socket.send(
        reply.bytes,
        reply.fds.length === 0 ? { length: head } : { length: head, fds: reply.fds },
      );
      return;
    }
    // The parts stay as they are, so only the head has to be copied for the queue to keep. Many are small records, which
    // are cheaper to join than to gather, and one system call takes only so many.
    const parts = reply.parts.length <= MAX_PARTS ? reply.parts : [Buffer.concat(reply.parts)];
    this.#socket.send([reply.bytes.slice(0, head), ...parts], { fds: reply.fds, owned: true });
  }

  #version(request: Request): void {
    if (this.#negotiated) throw new RequestError(Errno.EINVAL, 'VERSION was agreed on already');
    if (request.fds.length > 0) throw new RequestError(Errno.EINVAL, 'VERSION carries fds');
    const proposal = decodeVersion(request.view, request.at, request.end);
    const canTakeTwin = this.role === 'vmm' && proposal.capabilities.maxMsgFds > 0;
    const twinSocket = this.#options.twinSocket && canTakeTwin && this.#plain !== undefined;
    const version = negotiate(proposal, { twinSocket });
    this.peer = { ...proposal.capabilities, writeMultiple: version.capabilities.writeMultiple };
    this.migration = this.device.openMigration(this.role);
    if (this.role === 'vmm') this.device.connected(this.#openDmaPeer(proposal, version));
    const payload = encodeVersion(version);
    this.#reply.allocate(payload.length);
    this.#reply.bytes.set(payload, HEADER_LENGTH);
    this.#negotiated = true;
    const { crash } = this.#options;
    crash?.journal.put(
      crash.journal.slot(ServerSlot.connection.name),
      Buffer.from(JSON.stringify(this.peer)),
    );
    clearTimeout(this.#versionTimer);
  }

  /** The client's memory by messages; with the twin socket, if it was agreed on, in the reply to VERSION. */
  #openDmaPeer(proposal: Version, { capabilities }: Version): DmaPeer {
    if (this.#plain === undefined) return noDmaByMessages;
    const peer = new MessageDmaPeer(this.#plain, proposedTerms(proposal));
    this.#dmaPeer = peer;
    if (capabilities.twinSocket) {
      this.#reply.fds = [peer.useTwinSocket()];
      this.#reply.owned = this.#reply.fds;
    }
    return peer;
  }

  async #closed(error: DevstateError | undefined): Promise<void> {
    clearTimeout(this.#versionTimer);
    for (const waiting of this.#backlog.splice(0)) closeAll(waiting.fds);
    if (error !== undefined)
      this.#options.log('warn', `${this.role} connection: ${error.message} (${error.code})`);
    this.#dmaPeer?.close();
    await this.#attempt(async () => this.migration?.close());
    const { device } = this;
    const hadDevice = this.#negotiated && this.role === 'vmm';
    if (hadDevice && this.#options.keeps?.(device) !== true)
      await this.#attempt(async () => device.disconnected());
    this.#options.closed();
  }

  /** Does one thing that has to be done when the client has left, whatever became of the others. */
  async #attempt(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (failure) {
      this.#options.log(
        'error',
        `after the ${this.role} left: ${failure instanceof Error ? failure.message : failure}`,
      );
    }
  }
}
