// SPDX-License-Identifier: Apache-2.0
/**
 * A manager on the relay's migration socket. Its commands go into the VMM's own connection to the device server, among
 * the VMM's: a server that has no migration socket is migrated by its VMM, and that is who it believes to be asked by.
 *
 *     VERSION                                                        answered here
 *     DEVICE_FEATURE of VFIO, MIG_DATA_*, DIRTY_PAGES, DEVICE_RESET  the server's
 *     GET_INFO, GET_REGION_INFO, access to the region of v1          the server's
 *     DEVSTATE_IMAGES                                                the server's
 *     DMA_READ, DMA_WRITE, DEVSTATE_DMA_MAPS                         answered here: the relay has the memory's fds
 *     DEVSTATE_NOTE                                                  kept here
 *     DEVSTATE_LAST_ERROR                                            of who refused: kept here, or the server's
 *     DEVSTATE_CONFIG_READS                                          answered here: the VMM's messages come through here
 *     DEVSTATE_NEXT_VMM                                              done here: the server keeps its one VMM, the relay
 */

import { asDevstateError, DevstateError } from '../errors.js';
import type { ConfigReadLog } from '../migration/index.js';

import type { Manager, NextVmmSteps } from '../succession/index.js';
import { type Fd, type Frame, MessageSocket } from '../transport/index.js';
import {
  Command,
  commandName,
  DEFAULT_MAX_DMA_MAPS,
  DEFAULT_PAGE_SIZES,
  type DeviceState,
  DeviceStateBit,
  DMA_MAP_ENTRY_LENGTH,
  decodeConfigReadsRequest,
  decodeDmaMapsRequest,
  decodeDmaTransfer,
  decodeFeatureHeader,
  decodeRegionAccess,
  decodeVersion,
  dmaTransferHeaderLength,
  Errno,
  encodeConfigReads,
  encodeDmaMapEntries,
  encodeDmaTransfer,
  encodeFarewell,
  encodeFeatureHeader,
  encodeVersion,
  FEATURE_LENGTH,
  Feature,
  FeatureFlag,
  HEADER_LENGTH,
  HeaderFlag,
  MigrationFlag,
  MigrationRegister,
  MigrationState,
  messageCommand,
  messageFlags,
  PROTOCOL_MAJOR,
  PROTOCOL_MINOR,
  REGION_ACCESS_LENGTH,
  type RegionAccess,
  RequestError,
  DeviceState as StateOfV1,
  vfioUserFraming,
  type WitnessedVmm,
} from '../wire/index.js';
import { type BackEnd, RELAY_LIMITS } from './back-end.js';
import type { DmaMaps } from './dma-maps.js';
import type { InFlight, Origin } from './in-flight.js';
import { encodeReply, type Message, NO_FDS, ownCopy, takeAll } from './messages.js';
import { withoutMapping } from './region-filter.js';
import { logCommandOf } from './server-log.js';

/** Largest note that a manager may leave. */
const MAX_NOTE_LENGTH = 64 * 1024;
/** First of the features that are not VFIO's but ours. */
const FIRST_OWN_FEATURE = 0xd500;
/** A manager that does not agree on a version within this time is sent away. */
const VERSION_TIMEOUT_MS = 5000;
const TRANSFER_LENGTH = dmaTransferHeaderLength(64);

/** What managers work on. */
export interface Managed {
  /** The server that takes commands now. @throws RequestError when there is none, or it is being replaced */
  target(): BackEnd;
  /** Longest transfer that the server and its VMM have agreed on. */
  readonly maxTransfer: number;
  readonly memory: DmaMaps;
  /** Another VMM that is to have the device. */
  readonly nextVmm: NextVmmSteps;
  /** Bytes that one manager leaves for the next. */
  note: Uint8Array;
  /** The reads of configuration space that a VMM has sent; undefined when there is no such VMM. */
  configReadsOf(vmm: WitnessedVmm): ConfigReadLog | undefined;
  /** The device is on its way, or its writes are logged. */
  readonly isDriven: boolean;
  /** The device is about to be asked to stop. */
  stopping(): void;
}

export interface ManagerOptions {
  readonly managed: Managed;
  /** Do not let managers map the data section of the region of v1. */
  readonly trap: boolean;
  /** Do not tell managers that the device has pre-copy. */
  readonly noPreCopy: boolean;
  readonly log: (level: 'info' | 'warn' | 'error', message: string) => void;
  readonly closed: () => void;
}

const access: RegionAccess = { offset: 0, region: 0, count: 0 };

export class ManagerConnection implements Origin, Manager {
  readonly #options: ManagerOptions;
  readonly #managed: Managed;
  readonly #socket: MessageSocket;
  readonly #timer: NodeJS.Timeout;
  #negotiated = false;
  /** Why the last command was refused: in words, or the id by which the server knows the command, and has the words. */
  #lastError: string | number = '';
  /** Commands that are not answered. */
  #pending = 0;
  /** It has changed the device's state, or has it log. */
  #drives = false;
  /** The server that it had log last. */
  #logsAt: BackEnd | undefined;
  activeAt = performance.now();

  constructor(fd: Fd, options: ManagerOptions) {
    this.#options = options;
    this.#managed = options.managed;
    this.#socket = new MessageSocket(fd, vfioUserFraming, RELAY_LIMITS, {
      message: (frame) => this.#message(frame),
      closed: (error) => this.#closed(error),
    });
    this.#timer = setTimeout(() => {
      const why = 'a manager did not send VERSION in time';
      this.#socket.send(encodeFarewell(why));
      this.#socket.close(new DevstateError('DEVSTATE_E_PROTOCOL', why));
    }, VERSION_TIMEOUT_MS);
    this.#timer.unref();
  }

  close(): void {
    this.#socket.close();
  }

  /** Asks for nothing more until {@link resume}; what it has asked for is answered. */
  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }

  #closed(error: DevstateError | undefined): void {
    clearTimeout(this.#timer);
    if (error !== undefined) this.#options.log('warn', `a manager: ${error.message} (${error.code})`);
    this.#endLog();
    this.#options.closed();
  }

  /** What it has begun ends with it. */
  #endLog(): void {
    const back = this.#logsAt;
    if (back === undefined || back.isClosed) return;
    back.endLogOf(this).catch((error: unknown) => {
      const { message, code } = asDevstateError(error);
      this.#options.log('warn', `the DMA log of a manager that has left was not ended: ${message} (${code})`);
    });
  }

  #message(frame: Frame): void {
    this.activeAt = performance.now();
    try {
      const reply = this.#handle(frame);
      if (reply instanceof Promise) this.#replyLater(ownCopy(frame, NO_FDS), reply);
      else if (reply !== undefined) this.#reply(frame, 0, reply);
    } catch (error) {
      this.#refuse(frame, error);
    }
  }

  #replyLater(request: Message, reply: Promise<Uint8Array>): void {
    this.#pending++;
    reply
      .finally(() => this.#pending--)
      .then(
        (payload) => this.#reply(request, 0, payload),
        (error: unknown) => this.#refuse(request, error),
      )
      .catch((error: unknown) => this.#socket.close(asDevstateError(error)));
  }

  /** @throws what is no RequestError */
  #refuse(request: Message, error: unknown): void {
    if (!(error instanceof RequestError)) throw error;
    this.#lastError = error.message;
    // It gets the words in answer, and tries what it need not succeed with.
    this.#options.log('info', `${commandName(messageCommand(request.view))} of a manager: ${error.message}`);
    this.#reply(request, error.errno);
  }

  #reply({ view }: Message, errno: number, payload?: Uint8Array): void {
    if ((messageFlags(view) & HeaderFlag.NO_REPLY) === 0)
      this.#socket.send(encodeReply(view, errno, payload));
  }

  /** @returns the payload of the reply; undefined when it is the server's to make. @throws RequestError */
  #handle(frame: Frame): Uint8Array | Promise<Uint8Array> | undefined {
    const { view, length } = frame;
    if ((messageFlags(view) & HeaderFlag.TYPE_MASK) !== HeaderFlag.TYPE_COMMAND)
      throw new RequestError(Errno.EINVAL, 'managers are asked nothing');
    const command = messageCommand(view);
    if (command === Command.VERSION) return this.#version(frame);
    if (!this.#negotiated) throw new RequestError(Errno.EINVAL, 'the first command must be VERSION');
    switch (command) {
      case Command.DMA_READ:
        return this.#readMemory(frame);
      case Command.DMA_WRITE:
        return this.#writeMemory(frame);
      case Command.DEVICE_FEATURE:
        return this.#feature(frame);
      case Command.REGION_READ:
      case Command.REGION_WRITE:
        decodeRegionAccess(view, HEADER_LENGTH, length, access);
        this.#regionAccess(frame, command);
        return undefined;
      case Command.DEVICE_GET_INFO:
      case Command.DEVICE_GET_REGION_INFO:
      case Command.DEVICE_RESET:
      case Command.DIRTY_PAGES:
      case Command.MIG_DATA_READ:
      case Command.MIG_DATA_WRITE:
        this.#forward(frame);
        return undefined;
      default:
        throw new RequestError(Errno.EINVAL, `${commandName(command)} is not for managers`);
    }
  }

  #forward(frame: Frame): void {
    const back = this.#managed.target();
    if (back.isClosed) throw new RequestError(Errno.ENOTCONN, 'the device server is gone');
    const what = logCommandOf(messageCommand(frame.view), frame.view);
    if (what !== undefined) back.log.admit(what, this);
    if (what === 'start') this.#logsAt = back;
    if ((messageFlags(frame.view) & HeaderFlag.NO_REPLY) === 0) this.#pending++;
    back.forward(this, frame, takeAll(frame.fds), false);
  }

  /** What it was doing has come to nothing, and that is how the manager notices. */
  lost(_request: InFlight, why: string): void {
    this.sendAway(why);
  }

  sendAway(why: string): void {
    this.#socket.send(encodeFarewell(why));
    this.close();
  }

  get isBusy(): boolean {
    return this.#pending > 0 || (this.#drives && this.#managed.isDriven);
  }

  /** A reply of the server. */
  reply(request: InFlight, frame: Frame): void {
    const { view, bytes } = frame;
    let { length, fds } = frame;
    this.#pending--;
    const failed = (messageFlags(view) & HeaderFlag.ERROR) !== 0;
    if (failed) this.#lastError = request.id;
    else if (request.command === Command.DEVICE_GET_REGION_INFO && !this.#mayMap(request)) {
      length = withoutMapping(frame, request.view.getUint32(HEADER_LENGTH, true));
      fds = NO_FDS;
    } else if (this.#options.noPreCopy && isFlagsReply(request, length)) {
      const at = HEADER_LENGTH + FEATURE_LENGTH;
      view.setUint32(at, view.getUint32(at, true) & ~MigrationFlag.PRE_COPY, true);
    }
    view.setUint16(0, request.senderId, true);
    this.#socket.send(bytes, fds.length === 0 ? { length } : { length, fds });
  }

  /** A manager moves state; it never plays the guest. */
  #mayMap({ view }: InFlight): boolean {
    if (this.#options.trap) return false;
    return view.getUint32(HEADER_LENGTH + 8, true) === this.#managed.target().identity.migrationRegion;
  }

  #version(frame: Frame): Uint8Array {
    if (this.#negotiated) throw new RequestError(Errno.EINVAL, 'VERSION was agreed on already');
    const proposal = decodeVersion(frame.view, HEADER_LENGTH, frame.length);
    if (proposal.major !== PROTOCOL_MAJOR)
      throw new RequestError(Errno.EINVAL, `protocol ${proposal.major}.${proposal.minor}`);
    this.#managed.target();
    this.#negotiated = true;
    clearTimeout(this.#timer);
    return encodeVersion({
      major: PROTOCOL_MAJOR,
      minor: Math.min(proposal.minor, PROTOCOL_MINOR),
      capabilities: {
        maxMsgFds: 0,
        maxDataXferSize: this.#managed.maxTransfer,
        maxDmaMaps: DEFAULT_MAX_DMA_MAPS,
        pageSizes: DEFAULT_PAGE_SIZES,
        writeMultiple: false,
        twinSocket: false,
      },
    });
  }

  #regionAccess(frame: Frame, command: number): void {
    const { view, length } = frame;
    const { migrationRegion } = this.#managed.target().identity;
    if (access.region !== migrationRegion)
      throw new RequestError(Errno.EINVAL, `region ${access.region} is not for managers`);
    if (command === Command.REGION_WRITE) this.#drives = true;
    const setsState = command === Command.REGION_WRITE && access.offset === MigrationRegister.DEVICE_STATE;
    if (setsState && length >= HEADER_LENGTH + REGION_ACCESS_LENGTH + 4) {
      const state = view.getUint32(HEADER_LENGTH + REGION_ACCESS_LENGTH, true) & DeviceStateBit.MASK;
      if ((state as DeviceState) === StateOfV1.STOP_COPY) this.#managed.stopping();
    }
    this.#forward(frame);
  }

  #feature(frame: Frame): Uint8Array | Promise<Uint8Array> | undefined {
    const { view, bytes, length } = frame;
    const { argsz, flags } = decodeFeatureHeader(view, HEADER_LENGTH, length);
    const { INDEX_MASK, GET, SET, PROBE } = FeatureFlag;
    const feature = flags & INDEX_MASK;
    const data = HEADER_LENGTH + FEATURE_LENGTH;
    // The images are the server's, if it is one of ours.
    if (feature < FIRST_OWN_FEATURE || feature === Feature.DEVSTATE_IMAGES) {
      const sets = (flags & (SET | PROBE)) === SET && feature === Feature.MIG_DEVICE_STATE;
      if ((flags & (SET | PROBE)) === SET) this.#drives = true;
      if (sets && length >= data + 4 && view.getUint32(data, true) === MigrationState.STOP_COPY)
        this.#managed.stopping();
      this.#forward(frame);
      return undefined;
    }
    const mayBeSet = feature === Feature.DEVSTATE_NOTE || feature === Feature.DEVSTATE_NEXT_VMM;
    const isKnown =
      mayBeSet ||
      feature === Feature.DEVSTATE_DMA_MAPS ||
      feature === Feature.DEVSTATE_LAST_ERROR ||
      feature === Feature.DEVSTATE_CONFIG_READS;
    if (!isKnown || ((flags & SET) !== 0 && !mayBeSet))
      throw new RequestError(Errno.ENOTTY, `the relay has no device feature 0x${feature.toString(16)}`);
    if ((flags & PROBE) !== 0) return bytes.slice(HEADER_LENGTH, length);
    if ((flags & SET) !== 0 && feature === Feature.DEVSTATE_NEXT_VMM) {
      const echo = bytes.slice(HEADER_LENGTH, length);
      const text = new TextDecoder().decode(bytes.subarray(data, length));
      return this.#managed.nextVmm.request(text).then(() => echo);
    }
    if ((flags & SET) !== 0) {
      if (length - data > MAX_NOTE_LENGTH)
        throw new RequestError(Errno.E2BIG, `note of ${length - data} bytes`);
      this.#managed.note = bytes.slice(data, length);
      return bytes.slice(HEADER_LENGTH, length);
    }
    if ((flags & GET) === 0) throw new RequestError(Errno.EINVAL, 'DEVICE_FEATURE neither GET nor SET');
    const value = feature === Feature.DEVSTATE_LAST_ERROR ? this.#explanation() : this.#value(feature, frame);
    return value instanceof Promise
      ? value.then((bytes) => featureReply(bytes, argsz, flags))
      : featureReply(value, argsz, flags);
  }

  #explanation(): Uint8Array | Promise<Uint8Array> {
    const { target } = this.#managed;
    if (typeof this.#lastError === 'string') return new TextEncoder().encode(this.#lastError);
    return target()
      .whyRefused(this.#lastError, Command.DEVICE_FEATURE)
      .then((words) => new TextEncoder().encode(words));
  }

  #value(feature: number, { view, length }: Frame): Uint8Array {
    if (feature === Feature.DEVSTATE_NOTE) return this.#managed.note;
    if (feature === Feature.DEVSTATE_NEXT_VMM)
      return new TextEncoder().encode(this.#managed.nextVmm.status());
    if (feature === Feature.DEVSTATE_CONFIG_READS) {
      const { since, vmm } = decodeConfigReadsRequest(view, HEADER_LENGTH + FEATURE_LENGTH, length);
      const log = this.#managed.configReadsOf(vmm);
      if (log === undefined) throw new RequestError(Errno.ENOTCONN, 'no such VMM is connected');
      return encodeConfigReads(log.report(since));
    }
    const asked = decodeDmaMapsRequest(view, HEADER_LENGTH + FEATURE_LENGTH, length);
    const entries = this.#managed.memory.entries(asked);
    const value = new Uint8Array(entries.length * DMA_MAP_ENTRY_LENGTH);
    encodeDmaMapEntries(new DataView(value.buffer), 0, entries);
    return value;
  }

  #readMemory({ view, length }: Frame): Uint8Array {
    const transfer = decodeDmaTransfer(view, HEADER_LENGTH, length, 64);
    if (transfer.count > this.#managed.maxTransfer)
      throw new RequestError(Errno.E2BIG, `DMA_READ of ${transfer.count} bytes`);
    const payload = new Uint8Array(TRANSFER_LENGTH + transfer.count);
    encodeDmaTransfer(new DataView(payload.buffer), 0, transfer, 64);
    this.#managed.memory.read(transfer.address, payload.subarray(TRANSFER_LENGTH));
    return payload;
  }

  #writeMemory({ view, bytes, length }: Frame): Uint8Array {
    const { address, count } = decodeDmaTransfer(view, HEADER_LENGTH, length, 64);
    const start = HEADER_LENGTH + TRANSFER_LENGTH;
    if (length - start !== count)
      throw new RequestError(Errno.EINVAL, `DMA_WRITE of ${count} bytes carries ${length - start}`);
    this.#managed.memory.write(address, bytes.subarray(start, length));
    return bytes.slice(HEADER_LENGTH, start);
  }
}

/** Whether a reply has the device's `MigrationFlag`s. */
function isFlagsReply({ command, view }: InFlight, length: number): boolean {
  if (command !== Command.DEVICE_FEATURE || length < HEADER_LENGTH + FEATURE_LENGTH + 8) return false;
  const { INDEX_MASK, GET, PROBE } = FeatureFlag;
  const flags = view.getUint32(HEADER_LENGTH + 4, true);
  return (flags & (INDEX_MASK | GET | PROBE)) === (Feature.MIGRATION | GET);
}

/** The payload of a GET's reply. @throws RequestError EINVAL if there is no room for it */
function featureReply(value: Uint8Array, argsz: number, flags: number): Uint8Array {
  if (argsz < FEATURE_LENGTH + value.length)
    throw new RequestError(Errno.EINVAL, `argsz ${argsz}: ${FEATURE_LENGTH + value.length} are needed`);
  const payload = new Uint8Array(FEATURE_LENGTH + value.length);
  encodeFeatureHeader(new DataView(payload.buffer), 0, payload.length, flags);
  payload.set(value, FEATURE_LENGTH);
  return payload;
}
