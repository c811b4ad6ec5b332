// SPDX-License-Identifier: Apache-2.0
/**
 * One device for its VMM, from that one's VERSION to its end, over as many servers as it takes.
 *
 *     VMM ─request─▶ gate open? ─▶ back end, under an id of its own, kept until its reply
 *                      └─ no ────▶ hold, until a back end is there or the time is up
 *     VMM ◀─reply── noted for the next back end (DMA ranges, interrupts, config) ◀── back end
 *
 * The gate is shut while a back end is replaced, and while there is none because its server has died. What the server
 * asks of the VMM (DMA_READ, DMA_WRITE) passes all the time.
 */

import { asDevstateError, DevstateError } from '../errors.js';
import type { ConfigReadLog } from '../migration/index.js';
import { closeAll, type Fd, type Frame } from '../transport/index.js';
import {
  Command,
  commandName,
  Errno,
  HEADER_LENGTH,
  HeaderFlag,
  type MigrationState,
  messageCommand,
  messageError,
  messageFlags,
  PciIrq,
  RequestError,
  WitnessedVmm,
} from '../wire/index.js';
import { attachFirst } from './attach-again.js';
import type { BackEnd } from './back-end.js';
import { signalAll, tellStopped } from './exchange.js';
import { Front, type FrontHost, type FrontUser } from './front.js';
import type { ReadSession, SessionDocument } from './handoff-document.js';
import { Hold } from './hold.js';
import { resetBitsOf } from './identity.js';
import type { InFlight } from './in-flight.js';
import { encodeReply, type Message, NO_FDS, type OwnMessage, ownCopy, takeAll } from './messages.js';
import { NextVmm, type NextVmmHost } from './next-vmm.js';
import { Owed } from './owed.js';
import type { Packer, Unpacker } from './packing.js';
import { withoutIoFds, withoutMapping } from './region-filter.js';
import { canBeOwed, ReplayLog } from './replay-log.js';
import { Servers, type ServersHost, type ServersOptions } from './servers.js';
import { captureSession, restoreSession, type SessionFacts } from './session-handoff.js';
import { StandIn } from './stand-in.js';
import { Understudy } from './understudy.js';
import { filterVersion } from './version-filter.js';

export interface SessionOptions extends ServersOptions {
  /** Pass memory of the server on for the VMM to map; then no other server can take its place. */
  readonly mapping: boolean;
  /** The VMM has left. */
  readonly closed: () => void;
}

export class Session implements FrontUser, FrontHost, ServersHost, NextVmmHost {
  readonly replayLog = new ReplayLog();
  readonly owed = new Owed();
  readonly hold: Hold;
  readonly facts: SessionFacts = {
    proposal: undefined,
    known: undefined,
    lostMs: undefined,
    bound: false,
    note: new Uint8Array(0),
  };
  readonly servers: Servers;
  /** Another VMM that is to have the device. */
  readonly next = new NextVmm(this);
  readonly #options: SessionOptions;
  readonly #standIn: StandIn;
  /** The VMM that has the device. */
  #front: Front | undefined;
  /** All that are connected. */
  readonly #fronts = new Set<Front>();
  /** What the server is to be told of another VMM when its device runs. */
  #later: OwnMessage[] = [];
  /** The VMM that has the device is to be signalled when that runs. */
  #signals = false;

  /**
   * Takes over the VMM's connected socket. @param from goes on, after {@link thaw}, where another relay has stopped.
   * @throws DEVSTATE_E_HANDOFF_BUNDLE, having closed what it took
   */
  constructor(fd: Fd, options: SessionOptions, from?: { document: ReadSession; unpacker: Unpacker }) {
    this.#options = options;
    this.hold = new Hold(options.holdMs, (request) => this.#expire(request));
    this.servers = new Servers(this, options);
    this.#standIn = new StandIn({
      log: this.replayLog,
      owed: this.owed,
      irqs: () => this.facts.known?.identity.irqs ?? [],
      note: (request, fds) => this.#note(request, fds),
      reply: (request, errno, payload) => this.#front?.answer(request, errno, payload),
    });
    const front = this.#connect(fd, this);
    this.#front = front;
    if (from === undefined) return;
    front.socket.pause();
    try {
      this.servers.restore(restoreSession(from.document, this, front, from.unpacker));
    } catch (error) {
      this.letGo();
      throw error;
    }
  }

  #connect(fd: Fd, user: FrontUser): Front {
    const front = new Front(fd, user, this);
    this.#fronts.add(front);
    return front;
  }

  /** The VMM that has the device. */
  get front(): Front | undefined {
    return this.#front;
  }

  /** The reads of configuration space that one of its VMMs has sent; undefined when no such VMM is connected. */
  configReadsOf(vmm: WitnessedVmm): ConfigReadLog | undefined {
    return (vmm === WitnessedVmm.PRESENT ? this.#front : this.next.other)?.configReads;
  }

  readonly log: SessionOptions['log'] = (level, message) => this.#options.log(level, message);

  /** No VMM is left. */
  get isClosed(): boolean {
    return this.servers.isClosed;
  }

  close(): void {
    for (const front of this.#fronts) front.close();
    queueMicrotask(() => this.release());
  }

  // The VMM's messages.

  request(front: Front, frame: Frame): void {
    if (this.servers.isOpen) this.forward(frame, takeAll(frame.fds));
    else if (this.facts.proposal === undefined) this.#begin(front, frame);
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
      this.#front?.answer(view, 0, withoutIoFds(message));
      return;
    }
    const posted = (messageFlags(view) & HeaderFlag.NO_REPLY) !== 0;
    if (posted) {
      const copies = fds.map((fd) => fd.duplicate());
      this.#noteDone(message, copies);
      closeAll(copies);
    }
    if (this.#front === undefined) closeAll(fds);
    else this.servers.back?.forward(this.#front, message, fds, true);
  }

  /** A reply of the server to a VMM. */
  reply(front: Front, request: InFlight, frame: Frame): void {
    const { view } = frame;
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
    front.pass(request, frame, length, fds);
  }

  /** The server has carried it out; one that is to take its place has not. */
  #noteDone(message: Message, fds: readonly Fd[]): void {
    if (canBeOwed(messageCommand(message.view))) this.owed.add(message, fds, this.servers.back);
    this.#note(message, fds);
  }

  #note(message: Message, fds: readonly Fd[]): void {
    try {
      this.replayLog.note(message, fds);
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
    if (this.#front !== undefined) this.#front.command(back, frame);
    else if ((messageFlags(frame.view) & HeaderFlag.NO_REPLY) === 0) {
      // The VMM that had the device has gone, and the next one has not come.
      const bytes = encodeReply(frame.view, Errno.ENOTCONN, undefined);
      back.answer({ bytes, view: new DataView(bytes.buffer), length: bytes.length });
    }
  }

  forgetCommands(back: BackEnd): void {
    for (const { commands } of this.#fronts) commands.forget(back);
  }

  // The first server.

  #begin(front: Front, frame: Frame): void {
    if (messageCommand(frame.view) !== Command.VERSION || frame.fds.length > 0) {
      front.answer(frame.view, Errno.EINVAL);
      return;
    }
    this.facts.proposal = filterVersion(frame.bytes.slice(HEADER_LENGTH, frame.length));
    const started = this.#start(front, ownCopy(frame, NO_FDS));
    this.servers.begin(started.catch((error: unknown) => front.close(error)));
  }

  async #start(front: Front, { view }: Message): Promise<void> {
    try {
      const { back, answer } = await attachFirst(this.servers, this.#options);
      front.answer(view, 0, filterVersion(answer));
      this.replayLog.config.resetBits = resetBitsOf(back.identity.config);
      this.servers.adopt(back);
    } catch (error) {
      if (this.isClosed) return;
      const { errno, message } = asDevstateError(error);
      this.#options.log('error', `the VMM is sent away: ${message}`);
      front.answer(view, errno ?? Errno.ENOTCONN);
      front.socket.end();
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
    this.requireSteady();
    const socket = this.#front?.socket;
    await Promise.all([socket?.freeze(), servers.back?.freeze()]);
    // The one may have got something from the other since.
    await Promise.all([socket?.drained(), servers.back?.drained()]);
    signal.throwIfAborted();
    this.requireSteady();
  }

  /** @throws DEVSTATE_E_RELAY when a migration is under way, or another VMM is to have the device */
  requireSteady(): void {
    this.servers.requireNoMigration();
    if (!this.next.underWay) return;
    const message =
      'another VMM is about to have the device; wait for the end of that, or run devstate recover';
    throw new DevstateError('DEVSTATE_E_RELAY', message);
  }

  /** All that another relay needs, of a session that is frozen. */
  capture(packer: Packer): SessionDocument {
    const front = this.#front;
    if (front === undefined) throw new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', 'the VMM has left');
    return captureSession(this, front, this.servers.back, packer);
  }

  /** Goes on after {@link freeze}, or begins where another relay has stopped. */
  thaw(): void {
    if (this.isClosed) return;
    this.hold.resume();
    this.#front?.socket.resume();
    this.servers.thaw();
  }

  /** The VMM is another relay's: closes what is ours of it, frozen as it is, and tells nobody. */
  letGo(): void {
    this.servers.letGo();
    this.hold.close();
    this.replayLog.close();
    for (const front of this.#fronts) front.letGo();
  }

  // Another VMM takes this one's place.

  get isNegotiated(): boolean {
    return this.facts.known !== undefined;
  }

  get state(): MigrationState | undefined {
    return this.servers.back?.state;
  }

  get isLogging(): boolean {
    return this.servers.back?.isLogging === true;
  }

  /** INTx has an eventfd from the beginning; QEMU takes it away when the guest turns on MSI or MSI-X. */
  get usesIntx(): boolean {
    return this.replayLog.interrupts.isAssigned(PciIrq.INTX);
  }

  get resets(): number {
    return this.replayLog.resets;
  }

  async openUnderstudy(): Promise<Understudy> {
    const { servers } = this;
    const { known, proposal } = this.facts;
    if (known === undefined || proposal === undefined || !servers.isOpen)
      throw new RequestError(Errno.EBUSY, 'the relay has no device server, or is about to replace it');
    const { mapping } = this.#options;
    const { resetBits } = this.replayLog.config;
    return Understudy.open({ known, proposal, mapping, resetBits, servers, log: this.log });
  }

  serveUnderstudy(fd: Fd, understudy: Understudy): Front {
    return this.#connect(fd, understudy);
  }

  async tellServer({ log }: Understudy): Promise<void> {
    const { back } = this.servers;
    if (back === undefined) throw new RequestError(Errno.EBUSY, 'the relay has no device server');
    try {
      this.#later = await tellStopped(back, this.replayLog, log);
    } catch (error) {
      // As it was, as far as the server takes it.
      const later = await tellStopped(back, log, this.replayLog).catch(() => []);
      for (const { fds } of later) closeAll(fds);
      throw error;
    }
  }

  exchange(understudy: Understudy, up: Front | undefined, down: Front | undefined): void {
    this.replayLog.exchangeWith(understudy.log);
    [this.facts.proposal, understudy.proposal] = [understudy.proposal, this.facts.proposal];
    if (down !== undefined) down.user = understudy;
    if (up !== undefined) up.user = this;
    this.#front = up;
    this.#signals = true;
    for (const message of this.#later.splice(0)) {
      this.owed.add(message, message.fds);
      closeAll(message.fds);
    }
  }

  // What the relay answers in a server's place.

  /** The time of a request is up. */
  #expire(request: OwnMessage): void {
    if (!this.#standIn.owe(request, request.fds)) this.#front?.answer(request.view, Errno.ETIMEDOUT);
    closeAll(request.fds);
  }

  /** Called before the device is told to stop: keeps what the VMM may read of it meanwhile. */
  keepConfig(): void {
    this.#standIn.keepConfig(this.servers.back);
  }

  running(back: BackEnd): void {
    this.#standIn.forgetConfig();
    if (!this.#signals) return;
    this.#signals = false;
    back.fence().then(
      () => signalAll(this.replayLog),
      () => {
        // The next server is told before it runs.
      },
    );
  }

  left(front: Front, error: DevstateError | undefined): void {
    if (error !== undefined) this.log('warn', `VMM connection: ${error.message} (${error.code})`);
    this.#fronts.delete(front);
    if (this.isClosed) return;
    const had = front === this.#front;
    if (had) this.#front = undefined;
    if (!this.next.left(front) && had) this.release();
  }

  /** Nobody has the device any more. */
  release(): void {
    if (this.isClosed) return;
    this.servers.close();
    this.next.close();
    this.hold.close();
    this.replayLog.close();
    this.#options.closed();
  }
}
