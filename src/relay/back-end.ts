// SPDX-License-Identifier: Apache-2.0
/**
 * The relay's connection to one device server. Requests of the VMM, of managers and of the relay itself go out on it
 * under ids of its own; replies find their way back by them.
 */

import { Requester, type RequestOptions } from '../client/index.js';
import { asDevstateError, DevstateError } from '../errors.js';
import { migrationStateOf } from '../migration/index.js';
import { connect, type Fd, type Frame, MessageSocket } from '../transport/index.js';
import {
  Command,
  commandName,
  DEFAULT_MAX_DATA_XFER_SIZE,
  type DeviceState,
  DeviceStateBit,
  Errno,
  encodeErrorOf,
  encodeFeatureHeader,
  errnoName,
  FEATURE_LENGTH,
  Feature,
  FeatureFlag,
  HEADER_LENGTH,
  HeaderFlag,
  MAX_EXPLANATION_BYTES,
  MigrationRegister,
  MigrationState,
  messageCommand,
  messageError,
  messageFlags,
  messageId,
  REGION_ACCESS_LENGTH,
  readU64,
  type Version,
  vfioUserFraming,
} from '../wire/index.js';
import type { Identity } from './identity.js';
import { type InFlight, InFlightTable, keptBytes, type LastingOrigin, type Origin } from './in-flight.js';
import { encodeRequest, type Message, NO_FDS } from './messages.js';
import type { PackedMessage, Packer, Unpacker } from './packing.js';
import { logCommandOf, ServerLog } from './server-log.js';

/** Longest message either way: the largest transfer that QEMU accepts a server to announce would be longer, and no one does. */
export const MAX_MESSAGE_LENGTH = (1 << 20) + 128 * 1024;
export const RELAY_LIMITS = {
  maxMessageLength: MAX_MESSAGE_LENGTH,
  maxFds: 253,
  maxQueuedBytes: 64 * 1024 * 1024,
};

export interface BackEndHandler {
  /** A command of the server for the VMM. */
  serverCommand(back: BackEnd, frame: Frame): void;
  /** The device has reached another migration state. */
  stateChanged(back: BackEnd): void;
  /** The connection has ended; `unanswered` are the handler's to release. */
  backEndClosed(back: BackEnd, error: DevstateError | undefined, unanswered: InFlight[]): void;
}

/** What is known of a server, whether it is there or not. */
export interface KnownServer {
  readonly path: string;
  /** What it answered to VERSION. */
  readonly version: Version;
  readonly identity: Identity;
}

/** A request as another relay receives it. */
export interface CapturedRequest extends PackedMessage {
  readonly id: number;
  readonly senderId: number;
  readonly command: number;
  readonly origin: LastingOrigin;
  readonly posted: boolean;
  readonly silent: boolean;
}

export interface CapturedRequests {
  readonly nextId: number;
  /** In the order in which they were sent. */
  readonly requests: readonly CapturedRequest[];
}

export class BackEnd extends Requester implements KnownServer {
  readonly explainsRefusals = true;
  readonly path: string;
  readonly #socket: MessageSocket;
  readonly #handler: BackEndHandler;
  readonly #table = new InFlightTable();
  #state: MigrationState = MigrationState.RUNNING;
  /** What it writes to the VMM's memory. */
  readonly log = new ServerLog();
  /** How many requests of the relay itself it has answered. */
  answered = 0;
  #identity: Identity | undefined;
  #version: Version | undefined;

  private constructor(path: string, fd: Fd, handler: BackEndHandler) {
    super();
    this.path = path;
    this.#handler = handler;
    this.#socket = new MessageSocket(fd, vfioUserFraming, RELAY_LIMITS, {
      message: (frame) => this.#message(frame),
      closed: (error) => this.#closed(error),
    });
  }

  /** @throws DEVSTATE_E_CONNECT */
  static async connect(path: string, handler: BackEndHandler): Promise<BackEnd> {
    return new BackEnd(path, await connect(path), handler);
  }

  /** Continues, after {@link thaw}, with a connection that another relay had. Takes `fd`. */
  static adopt(fd: Fd, { path, version, identity }: KnownServer, handler: BackEndHandler): BackEnd {
    const back = new BackEnd(path, fd, handler);
    back.#socket.pause();
    back.version = version;
    back.identity = identity;
    return back;
  }

  get isClosed(): boolean {
    return this.#socket.isClosed;
  }

  /** What the server answered to VERSION. Set once, by who asked. */
  get version(): Version {
    if (this.#version === undefined) throw new DevstateError('DEVSTATE_E_INTERNAL', 'version not negotiated');
    return this.#version;
  }

  set version(version: Version) {
    this.#version = version;
  }

  /** What it serves. Set once, by who asked. */
  get identity(): Identity {
    if (this.#identity === undefined) throw new DevstateError('DEVSTATE_E_INTERNAL', 'server not known yet');
    return this.#identity;
  }

  set identity(identity: Identity) {
    this.#identity = identity;
  }

  /** As far as it has been driven through the relay, by either protocol. */
  get state(): MigrationState {
    return this.#state;
  }

  /** Whether the device is stopped, or not yet run, for a migration: some servers then refuse what is no migration. */
  get isStopped(): boolean {
    const { STOP, STOP_COPY, RESUMING } = MigrationState;
    return this.#state === STOP || this.#state === STOP_COPY || this.#state === RESUMING;
  }

  close(): void {
    this.#socket.close();
  }

  /**
   * Sends a request on. Its reply goes to `origin`, which is not told if there will be none.
   * @param message whose id is overwritten
   * @param fds become this one's
   * @param whole keep all of it, so that it can be sent to another server
   */
  forward(origin: Origin, message: Message, fds: readonly Fd[], whole: boolean): void {
    const { view, bytes, length } = message;
    const flags = messageFlags(view);
    const wantsNone = (flags & HeaderFlag.NO_REPLY) !== 0;
    const silent = wantsNone && this.#table.needsReply;
    const request = this.#table.add(
      {
        origin,
        senderId: messageId(view),
        command: messageCommand(view),
        posted: wantsNone && !silent,
        silent,
        whole,
      },
      bytes,
      length,
      fds,
    );
    view.setUint16(0, request.id, true);
    if (silent) view.setUint32(8, flags & ~HeaderFlag.NO_REPLY, true);
    this.#socket.send(bytes, fds.length === 0 ? { length } : { length, fds });
  }

  /** Passes the VMM's reply to a command of the server on. */
  answer({ bytes, length }: Message): void {
    this.#socket.send(bytes, { length });
  }

  get maxTransfer(): number {
    return Math.min(this.version.capabilities.maxDataXferSize, DEFAULT_MAX_DATA_XFER_SIZE);
  }

  /** A request of the relay's own. It is always answered, and has no time-out: see `withinTime`, `whileItAnswers`. */
  request<T>(
    command: number,
    payload: readonly Uint8Array[],
    take: (frame: Frame) => T,
    { fds = NO_FDS }: Pick<RequestOptions, 'fds'> = {},
  ): Promise<T> {
    if (this.isClosed) return Promise.reject(closedError(this.path));
    return new Promise((resolve, reject) => {
      const origin = new OwnRequest(this, command, take, resolve, reject);
      const message = encodeRequest(command, payload, fds);
      this.forward(origin, message, message.fds, false);
    });
  }

  /** Why the server refused the request with this id, in its own words; empty when it has none, or is gone. */
  whyRefused(id: number, command: number): Promise<string> {
    // Before a version is agreed on it may not even answer.
    if (command === Command.VERSION || this.isClosed) return Promise.resolve('');
    const payload = new Uint8Array(FEATURE_LENGTH + 2);
    const flags = Feature.DEVSTATE_LAST_ERROR | FeatureFlag.GET;
    encodeFeatureHeader(new DataView(payload.buffer), 0, FEATURE_LENGTH + MAX_EXPLANATION_BYTES, flags);
    payload.set(encodeErrorOf(id), FEATURE_LENGTH);
    return new Promise((resolve) => {
      const origin: Origin = {
        reply: (_request, { view, bytes, length }) => {
          const failed = (messageFlags(view) & HeaderFlag.ERROR) !== 0;
          const words = bytes.subarray(HEADER_LENGTH + FEATURE_LENGTH, length);
          resolve(failed ? '' : new TextDecoder().decode(words));
        },
        lost: () => resolve(''),
      };
      const message = encodeRequest(Command.DEVICE_FEATURE, [payload]);
      this.forward(origin, message, message.fds, false);
    });
  }

  /** A manager is gone, and the log with it that it had begun. @throws what the server refuses it with, and as `request` does */
  async endLogOf(manager: Origin): Promise<void> {
    const end = this.log.endOf(manager);
    if (end === undefined) return;
    try {
      await this.request(end.command, [end.payload], () => {});
    } catch (error) {
      this.log.giveUp(manager);
      throw error;
    }
  }

  /** Settles when the server has carried out all that was sent before. */
  async fence(): Promise<void> {
    await this.deviceInfo().catch((error: unknown) => {
      // A server that is stopped may refuse it; the refusal came in its turn all the same.
      if (asDevstateError(error).code !== 'DEVSTATE_E_REFUSED') throw error;
    });
    await this.#table.idle();
  }

  /** Requests that are not known to be done. */
  get unanswered(): number {
    return this.#table.size;
  }

  /** Settles when nothing is under way but what another relay could continue with. */
  onlyLasting(): Promise<void> {
    return this.#table.onlyLasting();
  }

  /** Stops between two messages. @throws DEVSTATE_E_CONNECTION_CLOSED */
  freeze(): Promise<void> {
    return this.#socket.freeze();
  }

  /** Settles when all has left that was to be sent. @throws DEVSTATE_E_CONNECTION_CLOSED */
  drained(): Promise<void> {
    return this.#socket.drained();
  }

  thaw(): void {
    this.#socket.resume();
  }

  /** A second owner of the connected socket. */
  duplicate(): Fd {
    return this.#socket.duplicate();
  }

  /** What is under way, while frozen and {@link onlyLasting}. */
  capture(packer: Packer): CapturedRequests {
    const requests = [...this.#table.requests].map((request): CapturedRequest => {
      const { id, senderId, command, posted, silent, length, fds, origin } = request;
      const packed = packer.message(keptBytes(request), length, fds);
      return { ...packed, id, senderId, command, posted, silent, origin: origin.lasting ?? 'none' };
    });
    return { nextId: this.#table.nextId, requests };
  }

  restore(
    { nextId, requests }: CapturedRequests,
    origins: Readonly<Record<LastingOrigin, Origin>>,
    unpacker: Unpacker,
  ): void {
    for (const { id, origin, ...request } of requests) {
      const { bytes, length, fds } = unpacker.message(request);
      this.#table.restore(id, { ...request, origin: origins[origin] }, bytes, length, fds);
    }
    this.#table.nextId = nextId;
  }

  /** The connection is another relay's: closes what is ours of it, frozen as it is, and sends nothing. */
  relinquish(): void {
    for (const request of this.#table.drain()) this.#table.release(request);
    if (!this.#socket.isClosed) this.#socket.detach().close();
  }

  #message(frame: Frame): void {
    const { view } = frame;
    if ((messageFlags(view) & HeaderFlag.TYPE_MASK) !== HeaderFlag.TYPE_REPLY) {
      this.#handler.serverCommand(this, frame);
      return;
    }
    const request = this.#table.take(messageId(view));
    if (request === undefined || request.command !== messageCommand(view))
      throw new DevstateError('DEVSTATE_E_PROTOCOL', 'the device server answered what it was not asked');
    try {
      const failed = (messageFlags(view) & HeaderFlag.ERROR) !== 0;
      if (!failed) this.#observe(request);
      const what = logCommandOf(request.command, request.view);
      if (what !== undefined) this.log.answered(what, request.command, request.origin, failed);
      if (!request.silent) request.origin.reply(request, frame);
    } finally {
      this.#table.release(request);
    }
  }

  /** What a command that was carried out says of the device's migration state. */
  #observe({ command, view }: InFlight): void {
    if (command === Command.DEVICE_FEATURE) {
      const { INDEX_MASK, SET, PROBE } = FeatureFlag;
      const flags = view.getUint32(HEADER_LENGTH + 4, true);
      const what = flags & (INDEX_MASK | SET | PROBE);
      if (what === (Feature.MIG_DEVICE_STATE | SET))
        this.#enter(view.getUint32(HEADER_LENGTH + FEATURE_LENGTH, true) as MigrationState);
    } else if (command === Command.REGION_WRITE) {
      const region = this.#identity?.migrationRegion;
      if (region === undefined || view.getUint32(HEADER_LENGTH + 8, true) !== region) return;
      if (readU64(view, HEADER_LENGTH) !== MigrationRegister.DEVICE_STATE) return;
      const bits = view.getUint32(HEADER_LENGTH + REGION_ACCESS_LENGTH, true) & DeviceStateBit.MASK;
      this.#enter(migrationStateOf(bits as DeviceState));
    } else if (command === Command.DEVICE_RESET) this.#enter(MigrationState.RUNNING);
  }

  #enter(state: MigrationState): void {
    if (state === this.#state) return;
    this.#state = state;
    this.#handler.stateChanged(this);
  }

  #closed(error: DevstateError | undefined): void {
    const unanswered: InFlight[] = [];
    for (const request of this.#table.drain()) {
      if (request.origin instanceof OwnRequest) {
        request.origin.lost();
        this.#table.release(request);
      } else unanswered.push(request);
    }
    this.#handler.backEndClosed(this, error, unanswered);
  }
}

/** A request that the relay makes for itself. */
class OwnRequest<T> implements Origin {
  constructor(
    readonly back: BackEnd,
    readonly command: number,
    readonly take: (frame: Frame) => T,
    readonly resolve: (value: T) => void,
    readonly fail: (error: unknown) => void,
  ) {}

  lost(): void {
    this.fail(closedError(this.back.path));
  }

  reply({ id }: InFlight, frame: Frame): void {
    this.back.answered++;
    if ((messageFlags(frame.view) & HeaderFlag.ERROR) !== 0) {
      const errno = messageError(frame.view) || Errno.EINVAL;
      const message = `the device server at ${this.back.path} refuses ${commandName(this.command)}: ${errnoName(errno)}`;
      void this.back.whyRefused(id, this.command).then((words) => {
        const text = words === '' ? message : `${message}: ${words}`;
        this.fail(new DevstateError('DEVSTATE_E_REFUSED', text, { errno }));
      });
      return;
    }
    try {
      this.resolve(this.take(frame));
    } catch (error) {
      this.fail(asDevstateError(error, 'DEVSTATE_E_PROTOCOL'));
    }
  }
}

function closedError(path: string): DevstateError {
  return new DevstateError(
    'DEVSTATE_E_CONNECTION_CLOSED',
    `the device server at ${path} closed the connection; see whether it still runs`,
  );
}
