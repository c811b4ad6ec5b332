// SPDX-License-Identifier: Apache-2.0
/**
 * The client's end of vfio-user: what a VMM does to a device server, or a manager on a migration socket.
 *
 * Commands may be sent without waiting for the replies of earlier ones. A refused command rejects with
 * DEVSTATE_E_REFUSED and the server's errno; a lost connection rejects everything with DEVSTATE_E_CONNECTION_CLOSED.
 */

import { asDevstateError, DevstateError } from '../errors.js';
import { closeAll, connect, Fd, type Frame, MessageSocket, RequestTable } from '../transport/index.js';
import {
  type Capabilities,
  Command,
  commandName,
  DEFAULT_MAX_DATA_XFER_SIZE,
  DEFAULT_MAX_DMA_MAPS,
  DMA_MAP_LENGTH,
  DMA_UNMAP_LENGTH,
  type DmaMapRequest,
  type DmaUnmapRequest,
  decodeFarewell,
  decodeRegionIoFds,
  decodeVersion,
  Errno,
  encodeDmaMap,
  encodeDmaUnmap,
  encodeHeader,
  encodeRegionAccess,
  encodeRegionIoFds,
  encodeSetIrqs,
  encodeVersion,
  errnoName,
  HEADER_LENGTH,
  HeaderFlag,
  IrqSetFlag,
  messageCommand,
  messageError,
  messageFlags,
  messageId,
  PROTOCOL_MAJOR,
  PROTOCOL_MINOR,
  REGION_ACCESS_LENGTH,
  REGION_IO_FDS_LENGTH,
  RequestError,
  SET_IRQS_LENGTH,
  type SetIrqs,
  type SubRegionIoFd,
  type Version,
  vfioUserFraming,
  WRITE_MULTI_DATA_LENGTH,
  WRITE_MULTI_ENTRY_LENGTH,
  writeU64,
} from '../wire/index.js';
import { type DmaHandler, serveDma } from './dma-service.js';
import {
  ignore,
  MAX_INFO_LENGTH,
  Requester,
  type RequestOptions,
  type SendOptions,
  structure,
} from './requester.js';

export interface ClientOptions {
  /** What we offer; anything left out has its default. */
  readonly capabilities?: Partial<Capabilities>;
  readonly dma?: DmaHandler;
  /** After this the server is given up: DEVSTATE_E_REQUEST_TIMEOUT. Milliseconds, default 30,000. */
  readonly timeoutMs?: number;
}

/** One write of REGION_WRITE_MULTI: at most 8 bytes. */
export interface RegionWrite {
  readonly region: number;
  readonly offset: number;
  readonly data: Uint8Array;
}

/** Longest transfer that we ask for, whatever the server would take: it bounds what a reply makes us hold. */
const MAX_TRANSFER = DEFAULT_MAX_DATA_XFER_SIZE;
const LIMITS = {
  maxMessageLength: MAX_TRANSFER + MAX_INFO_LENGTH,
  maxFds: 253,
  maxQueuedBytes: 64 * 1024 * 1024,
};
const DEFAULT_TIMEOUT_MS = 30_000;
/** A server answers VERSION at once, or serves somebody else. */
const VERSION_TIMEOUT_MS = 5000;

const offeredCapabilities: Capabilities = {
  maxMsgFds: 16,
  maxDataXferSize: DEFAULT_MAX_DATA_XFER_SIZE,
  maxDmaMaps: DEFAULT_MAX_DMA_MAPS,
  pageSizes: 4096,
  writeMultiple: true,
  twinSocket: false,
  migrationPageSize: 4096,
};

export class Client extends Requester {
  readonly explainsRefusals = false;
  readonly #socket: MessageSocket;
  #twin: MessageSocket | undefined;
  readonly #pending = new RequestTable<Frame>();
  readonly #timeoutMs: number;
  readonly #dma: DmaHandler | undefined;
  #version: Version | undefined;
  #closed: DevstateError | undefined;
  /** Why the server closes the connection, as it says itself. */
  #farewell: string | undefined;
  readonly #closeWaiters: (() => void)[] = [];

  private constructor(fd: Fd, options: ClientOptions) {
    super();
    this.#timeoutMs = options.timeoutMs ?? DEFAULT_TIMEOUT_MS;
    this.#dma = options.dma;
    this.#socket = new MessageSocket(fd, vfioUserFraming, LIMITS, {
      message: (frame) => this.#message(this.#socket, frame),
      closed: (error) => this.#onClosed(error),
    });
  }

  /** Connects to a path, or takes a connected socket, and negotiates the version. */
  static async connect(where: string | Fd, options: ClientOptions = {}): Promise<Client> {
    const client = new Client(where instanceof Fd ? where : await connect(where), options);
    try {
      await client.#negotiate({ ...offeredCapabilities, ...options.capabilities });
    } catch (error) {
      client.close();
      throw error;
    }
    return client;
  }

  /** What the server answered to VERSION. */
  get version(): Version {
    if (this.#version === undefined) throw new DevstateError('DEVSTATE_E_INTERNAL', 'version not negotiated');
    return this.#version;
  }

  get maxTransfer(): number {
    return Math.min(this.version.capabilities.maxDataXferSize, MAX_TRANSFER);
  }

  get isClosed(): boolean {
    return this.#closed !== undefined || this.#socket.isClosed;
  }

  /** Why the server has closed the connection, if it said so. */
  get farewell(): string | undefined {
    return this.#farewell;
  }

  /** Settles when the connection has ended, by either end. */
  closed(): Promise<void> {
    if (this.#closed !== undefined) return Promise.resolve();
    return new Promise((resolve) => this.#closeWaiters.push(resolve));
  }

  close(): void {
    this.#twin?.close();
    this.#socket.close();
  }

  async #negotiate(capabilities: Capabilities): Promise<void> {
    const proposal = encodeVersion({ major: PROTOCOL_MAJOR, minor: PROTOCOL_MINOR, capabilities });
    const take = (frame: Frame): void => {
      const version = decodeVersion(frame.view, HEADER_LENGTH, frame.length);
      if (version.major !== PROTOCOL_MAJOR || version.minor > PROTOCOL_MINOR) {
        throw new DevstateError(
          'DEVSTATE_E_PROTOCOL',
          `the server chose protocol ${version.major}.${version.minor}`,
        );
      }
      if (version.capabilities.maxDataXferSize === 0)
        throw new DevstateError('DEVSTATE_E_PROTOCOL', 'the server takes no transfer of any size');
      this.#version = version;
      if (!version.capabilities.twinSocket) return;
      const twin = frame.fds[version.capabilities.twinSocketFdIndex ?? -1];
      if (twin === undefined)
        throw new DevstateError('DEVSTATE_E_PROTOCOL', 'the server chose a twin socket and sent none');
      this.#useTwin(twin.take());
    };
    try {
      await this.request(Command.VERSION, [proposal], take, {
        timeoutMs: Math.min(VERSION_TIMEOUT_MS, this.#timeoutMs),
      });
    } catch (cause) {
      if (!(cause instanceof DevstateError) || cause.code !== 'DEVSTATE_E_REQUEST_TIMEOUT') throw cause;
      const message = 'the server does not answer: is another client connected, as a VMM is to its socket?';
      throw new DevstateError('DEVSTATE_E_CONNECT', message, { cause });
    }
  }

  #useTwin(fd: Fd): void {
    const twin = new MessageSocket(fd, vfioUserFraming, LIMITS, {
      message: (frame) => this.#message(twin, frame),
      closed: ignore,
    });
    this.#twin = twin;
  }

  #message(socket: MessageSocket, frame: Frame): void {
    const flags = messageFlags(frame.view);
    if ((flags & HeaderFlag.TYPE_MASK) !== HeaderFlag.TYPE_REPLY) {
      this.#serve(socket, frame);
      return;
    }
    const id = messageId(frame.view);
    if ((flags & HeaderFlag.ERROR) === 0) this.#pending.resolve(id, frame);
    else {
      const errno = messageError(frame.view) || Errno.EINVAL;
      const command = this.#pending.whatOf(id) ?? commandName(messageCommand(frame.view));
      this.#pending.reject(
        id,
        new DevstateError('DEVSTATE_E_REFUSED', `the device server refuses ${command}: ${errnoName(errno)}`, {
          errno,
        }),
      );
    }
  }

  /** Carries out a command of the server's: DMA_READ, DMA_WRITE, or its last word. */
  #serve(socket: MessageSocket, frame: Frame): void {
    const command = messageCommand(frame.view);
    if (command === Command.DEVICE_FEATURE) this.#farewell ??= decodeFarewell(frame.view, frame.length);
    const noReply = (messageFlags(frame.view) & HeaderFlag.NO_REPLY) !== 0;
    let reply: Uint8Array = new Uint8Array(HEADER_LENGTH);
    let errno = 0;
    try {
      reply = serveDma(command, frame, this.#dma);
    } catch (error) {
      errno = error instanceof RequestError ? error.errno : Errno.EIO;
    }
    if (noReply) return;
    const size = errno === 0 ? reply.length : HEADER_LENGTH;
    const type = HeaderFlag.TYPE_REPLY | (errno === 0 ? 0 : HeaderFlag.ERROR);
    encodeHeader(new DataView(reply.buffer), 0, messageId(frame.view), command, size, type, errno);
    socket.send(reply, { length: size });
  }

  #onClosed(error: DevstateError | undefined): void {
    const why = this.#farewell === undefined ? '' : `: ${this.#farewell}`;
    const closed = new DevstateError(
      'DEVSTATE_E_CONNECTION_CLOSED',
      `the device server closed the connection${why}`,
    );
    // What it said itself is more than what we make of the end.
    this.#closed = this.#farewell === undefined ? (error ?? closed) : closed;
    this.#pending.rejectAll(this.#closed);
    this.#twin?.close();
    for (const resolve of this.#closeWaiters.splice(0)) resolve();
  }

  request<T>(
    command: number,
    payload: readonly Uint8Array[],
    take: (frame: Frame) => T,
    options: RequestOptions = {},
  ): Promise<T> {
    if (this.#closed !== undefined) return Promise.reject(this.#closed);
    return new Promise<T>((resolve, reject) => {
      const header = new Uint8Array(HEADER_LENGTH);
      let size = HEADER_LENGTH;
      for (const part of payload) size += part.length;
      let id = 0;
      let flags: number = HeaderFlag.TYPE_COMMAND;
      if (options.noReply === true) flags |= HeaderFlag.NO_REPLY;
      else {
        id = this.#pending.add(commandName(command), options.timeoutMs ?? this.#timeoutMs, (error, frame) => {
          if (frame === undefined) {
            reject(error);
            return;
          }
          try {
            resolve(take(frame));
          } catch (failure) {
            // A decoder's refusal is for the peer that sent a request; of a reply it means that the server is at fault.
            reject(asDevstateError(failure, 'DEVSTATE_E_PROTOCOL'));
          }
        });
      }
      encodeHeader(new DataView(header.buffer), 0, id, command, size, flags);
      const parts = [header, ...payload];
      try {
        this.#socket.send(parts, options.fds === undefined ? {} : { fds: options.fds });
      } catch (failure) {
        // An fd that is closed already: nothing was sent.
        reject(failure);
        if (options.noReply !== true) this.#pending.reject(id, asDevstateError(failure));
        return;
      }
      if (options.noReply === true) resolve(undefined as T);
    });
  }

  /** Sub-regions with an fd for their accesses; `fds` are the caller's to close. */
  async regionIoFds(index: number): Promise<{ entries: SubRegionIoFd[]; fds: Fd[] }> {
    const first = await this.#regionIoFds(index, REGION_IO_FDS_LENGTH);
    if (first.argsz <= REGION_IO_FDS_LENGTH || first.argsz > MAX_INFO_LENGTH) return first;
    closeAll(first.fds);
    return this.#regionIoFds(index, first.argsz);
  }

  #regionIoFds(
    index: number,
    argsz: number,
  ): Promise<{ argsz: number; entries: SubRegionIoFd[]; fds: Fd[] }> {
    const payload = structure(REGION_IO_FDS_LENGTH, (view) =>
      encodeRegionIoFds(view, 0, { argsz, flags: 0, index, count: 0 }),
    );
    return this.request(Command.DEVICE_GET_REGION_IO_FDS, [payload], (frame) => {
      const needed = frame.view.getUint32(HEADER_LENGTH, true);
      const entries = needed > argsz ? [] : decodeRegionIoFds(frame.view, HEADER_LENGTH, frame.length);
      return { argsz: needed, entries, fds: frame.fds.map((fd) => fd.take()) };
    });
  }

  /** Maps guest memory for the device; `fd` stays the caller's. */
  dmaMap(request: DmaMapRequest, fd?: Fd, options: SendOptions = {}): Promise<void> {
    const payload = structure(DMA_MAP_LENGTH, (view) => encodeDmaMap(view, 0, request));
    return this.request(
      Command.DMA_MAP,
      [payload],
      ignore,
      fd === undefined ? options : { ...options, fds: [fd] },
    );
  }

  dmaUnmap(request: DmaUnmapRequest, options: SendOptions = {}): Promise<void> {
    const payload = structure(DMA_UNMAP_LENGTH, (view) => encodeDmaUnmap(view, 0, request));
    return this.request(Command.DMA_UNMAP, [payload], ignore, options);
  }

  /** SET_IRQS as it stands; `fds` stay the caller's. `assignEventfds` is the convenient way to assign many. */
  setIrqs(
    request: SetIrqs,
    rest: { data?: Uint8Array; fds?: readonly Fd[]; noReply?: boolean } = {},
  ): Promise<void> {
    const data = rest.data ?? new Uint8Array(0);
    const head = structure(SET_IRQS_LENGTH, (view) => encodeSetIrqs(view, 0, request, data.length));
    const { data: _, ...options } = rest;
    return this.request(Command.DEVICE_SET_IRQS, [head, data], ignore, options);
  }

  /** Assigns an eventfd to each vector from 0, in as many messages as the server's `max_msg_fds` asks for. */
  async assignEventfds(index: number, fds: readonly Fd[]): Promise<void> {
    const step = Math.max(1, this.version.capabilities.maxMsgFds);
    const flags = IrqSetFlag.DATA_EVENTFD | IrqSetFlag.ACTION_TRIGGER;
    for (let start = 0; start < fds.length; start += step) {
      const part = fds.slice(start, start + step);
      await this.setIrqs({ flags, index, start, count: part.length }, { fds: part });
    }
  }

  /** Several small writes in one message. */
  regionWriteMulti(writes: readonly RegionWrite[], options: SendOptions = {}): Promise<void> {
    const payload = structure(8 + writes.length * WRITE_MULTI_ENTRY_LENGTH, (view) => {
      writeU64(view, 0, writes.length);
      writes.forEach(({ region, offset, data }, i) => {
        const at = 8 + i * WRITE_MULTI_ENTRY_LENGTH;
        encodeRegionAccess(view, at, offset, region, data.length);
        new Uint8Array(view.buffer, at + REGION_ACCESS_LENGTH, WRITE_MULTI_DATA_LENGTH).set(data);
      });
    });
    return this.request(Command.REGION_WRITE_MULTI, [payload], ignore, options);
  }
}
