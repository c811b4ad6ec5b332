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
import { NextVmm, type NextVmmHost } from '../succession/index.js';
import { closeAll, type Fd, type Frame } from '../transport/index.js';
import {
  Command,
  commandName,
  decodeDmaMap,
  Errno,
  HEADER_LENGTH,
  HeaderFlag,
  MigrationState,
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
import type { SessionDocument } from './handoff-document.js';
import { Hold } from './hold.js';
import { resetBitsOf } from './identity.js';
import type { InFlight } from './in-flight.js';
import { encodeReply, type Message, NO_FDS, type OwnMessage, ownCopy, takeAll } from './messages.js';
import { Owed } from './owed.js';
import type { Packer } from './packing.js';
import { withoutIoFds, withoutMapping } from './region-filter.js';
import { canBeOwed, ReplayLog } from './replay-log.js';
import { Servers, type ServersHost, type ServersOptions } from './servers.js';
import type { SessionFacts } from './session-facts.js';
import { captureSession, type HandedSession, restoreSession } from './session-handoff.js';
import { StandIn } from './stand-in.js';
import { Understudy } from './understudy.js';
import { filterVersion } from './version-filter.js';

export interface SessionOptions extends ServersOptions {
  /** Pass memory of the server on for the VMM to map; then no other server can take its place. */
  readonly mapping: boolean;
  /** The VMM has left. */
  readonly closed: () => void;
}

/** Requests without an answer that another relay takes over: each is a line of the document, and is put back one by one. */
const MAX_HANDED_REQUESTS = 1024;

export class Session implements FrontUser, FrontHost, ServersHost, NextVmmHost<Front, Understudy> {
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
  readonly next: NextVmm<Front, Understudy>;
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
   * Takes over the VMM's connected socket. @param from continues, after {@link thaw}, where another relay has stopped.
   * @throws DEVSTATE_E_HANDOFF_BUNDLE, having closed what it took
   */
  constructor(fd: Fd, options: SessionOptions, from?: HandedSession) {
    this.#options = options;
    this.hold = new Hold(options.holdMs, (request) => this.#expire(request));
    this.servers = new Servers(this, options);
    this.next = new NextVmm<Front, Understudy>(this);
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
      this.servers.restore(restoreSession(from, this, front));
    } catch (error) {
      this.relinquish();
      throw error;
    }
  }

  #connect(fd: Fd, user: FrontUser): Front {
    const front = new Front(fd, user, this);
    this.#fronts.add(front);
    return front;
  }

  /** The VMM that has the device. */
  get vmm(): Front | undefined {
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
    if (command === Command.DMA_MAP && !this.#canHold(message, fds)) {
      closeAll(fds);
      this.log('warn', 'a DMA range is refused: memory of too many files; raise the limit of open files');
      this.#front?.answer(view, Errno.EMFILE);
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

  /** Whether the relay can keep the file of a DMA_MAP for the next server. What cannot be read is the server's to refuse. */
  #canHold({ view, length }: Message, fds: readonly Fd[]): boolean {
    try {
      return this.replayLog.dma.canHold(fds[0], decodeDmaMap(view, HEADER_LENGTH, length).flags);
    } catch {
      return true;
    }
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
    this.#requireFewRequests();
  }

  /** Another relay takes them in some milliseconds. @throws DEVSTATE_E_RELAY */
  #requireFewRequests(): void {
    const waiting = this.hold.size + (this.servers.back?.unanswered ?? 0);
    if (waiting <= MAX_HANDED_REQUESTS) return;
    const why = `${waiting} requests of the VMM wait for the device server, and at most ${MAX_HANDED_REQUESTS} go over`;
    throw new DevstateError('DEVSTATE_E_RELAY', `${why}; try again when the server answers`);
  }

  /** @throws DEVSTATE_E_RELAY when a migration is under way, or another VMM is to have the device */
  requireSteady(): void {
    this.servers.requireNoMigration();
    if (!this.next.underWay) return;
    const message =
      'another VMM is about to have the device; wait for the end of that, or run devstate recover';
    throw new DevstateError('DEVSTATE_E_RELAY', message);
  }

  /**
   * All that another relay needs, of a session that is frozen. @param signal aborts when it has taken too long, and
   * {@link thaw} follows
   */
  async capture(packer: Packer, signal: AbortSignal): Promise<SessionDocument> {
    const log = await this.replayLog.capture(packer);
    signal.throwIfAborted();
    const front = this.#front;
    if (front === undefined) throw new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', 'the VMM has left');
    return captureSession(this, front, this.servers.back, log, packer);
  }

  /** Continues after {@link freeze}, or begins where another relay has stopped. */
  thaw(): void {
    if (this.isClosed) return;
    this.hold.resume();
    this.#front?.socket.resume();
    this.servers.thaw();
  }

  /** The VMM is another relay's: closes what is ours of it, frozen as it is, and sends nothing. */
  relinquish(): void {
    this.servers.relinquish();
    this.hold.close();
    this.replayLog.close();
    for (const front of this.#fronts) front.relinquish();
  }

  // Another VMM takes this one's place.

  get isNegotiated(): boolean {
    return this.facts.known !== undefined;
  }

  /** INTx has an eventfd from the beginning; QEMU takes it away when the guest turns on MSI or MSI-X. */
  get usesIntx(): boolean {
    return this.replayLog.interrupts.isAssigned(PciIrq.INTX);
  }

  get resets(): number {
    return this.replayLog.resets;
  }

  /**
   * By CPR two QEMUs wait for the same eventfds, and either may take the other's signal: one of INTx is not sent again. A
   * server of ours holds INTx meanwhile; of any other it is not known that it would.
   */
  requireMayBeFollowed(): void {
    if (this.usesIntx)
      throw new RequestError(
        Errno.ENOTSUP,
        'the guest takes interrupts by INTx: behind a relay one may be lost',
      );
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

  hasAgreed(_second: Front, understudy: Understudy): boolean {
    return understudy.proposal !== undefined;
  }

  vacate(understudy: Understudy): void {
    understudy.vacate();
  }

  /** Has the server know the other VMM's memory and interrupts instead. */
  async prepareExchange({ log }: Understudy): Promise<void> {
    const { back } = this.servers;
    if (back?.state !== MigrationState.STOP)
      throw new RequestError(Errno.EBUSY, 'the device must be stopped (STOP) to change hands');
    if (back.log.isOn) throw new RequestError(Errno.EBUSY, 'the device logs what it writes; stop that first');
    try {
      this.#later = await tellStopped(back, this.replayLog, log);
    } catch (error) {
      // As it was, as far as the server takes it.
      const later = await tellStopped(back, log, this.replayLog).catch(() => []);
      for (const { fds } of later) closeAll(fds);
      const { message, errno = Errno.EIO } = asDevstateError(error);
      throw new RequestError(errno, message);
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

  closeUnderstudy(understudy: Understudy): void {
    understudy.close();
  }

  settled(): void {
    // A session has one VMM at a time: the next one that connects gets a session of its own.
  }

  // What the relay answers in a server's place.

  /** The time of a request is up. */
  #expire(request: OwnMessage): void {
    if (!this.#standIn.owe(request, request.fds)) this.#front?.answer(request.view, Errno.ETIMEDOUT);
    closeAll(request.fds);
  }

  /** Called before the device is asked to stop: keeps what the VMM may read of it meanwhile. */
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
        // The next server gets it before it runs.
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

  /** No VMM has the device any more. */
  release(): void {
    if (this.isClosed) return;
    this.servers.close();
    this.next.close();
    this.hold.close();
    this.replayLog.close();
    this.#options.closed();
  }
}
