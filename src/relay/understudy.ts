// SPDX-License-Identifier: Apache-2.0
/**
 * What is served to a VMM while another one has the device: the next one, until it is promoted, and then the first.
 * It meets a device that was just reset. What it says is taken down, and nothing of it reaches the device.
 *
 *     VERSION                        answered as the server has answered the other VMM
 *     GET_INFO and the like          the server's answer
 *     DMA_MAP, DMA_UNMAP, SET_IRQS   into a log of its own
 *     config space                   one of its own
 *     DEVICE_RESET                   counted
 */

import { closeAll, type Fd, type Frame } from '../transport/index.js';
import {
  Command,
  commandName,
  DmaUnmapFlag,
  decodeDmaMap,
  decodeDmaUnmap,
  decodeRegionAccess,
  decodeVersion,
  Errno,
  encodeVersion,
  HEADER_LENGTH,
  messageCommand,
  PciRegion,
  REGION_ACCESS_LENGTH,
  type RegionAccess,
  RequestError,
} from '../wire/index.js';
import type { KnownServer } from './back-end.js';
import type { ResetBit } from './config-log.js';
import type { Front, FrontUser } from './front.js';
import { readConfig } from './identity.js';
import { type Message, payloadOf, takeAll } from './messages.js';
import { withoutIoFds } from './region-filter.js';
import { isPlausible, ReplayLog } from './replay-log.js';
import { ResetConfig } from './reset-config.js';
import type { Servers } from './servers.js';
import { filterVersion, versionDifferences } from './version-filter.js';

export interface UnderstudyHost {
  /** Has the server that the device is behind. */
  readonly servers: Servers;
  /** What that answered to VERSION, and what it serves. */
  readonly known: KnownServer;
  /** The VERSION payload of the VMM that has the device. */
  readonly proposal: Uint8Array;
  /** Pass memory of the server on for the VMM to map. */
  readonly mapping: boolean;
  /** The bits that start a function level reset. */
  readonly resetBits: readonly ResetBit[];
  readonly log: (level: 'info' | 'warn' | 'error', message: string) => void;
}

/** Extended configuration space. */
const MAX_CONFIG_LENGTH = 4096;

const access: RegionAccess = { offset: 0, region: 0, count: 0 };

export class Understudy implements FrontUser {
  readonly log = new ReplayLog();
  readonly absorbed = { resets: 0, configWrites: 0 };
  /** The VERSION payload of the VMM that this one is served to, once it has agreed on one. */
  proposal: Uint8Array | undefined;
  readonly #host: UnderstudyHost;
  readonly #config: ResetConfig;

  private constructor(host: UnderstudyHost, config: ResetConfig) {
    this.#host = host;
    this.#config = config;
    this.log.config.resetBits = host.resetBits;
  }

  /** With a config space like the device's. */
  static async open(host: UnderstudyHost): Promise<Understudy> {
    const { identity } = host.known;
    const length = Math.min(identity.regions[PciRegion.CONFIG]?.size ?? 0, MAX_CONFIG_LENGTH);
    const { back } = host.servers;
    const live =
      back === undefined ? identity.config : await readConfig(back, length).catch(() => identity.config);
    return new Understudy(host, new ResetConfig(live, identity));
  }

  request(front: Front, frame: Frame): void {
    const fds = takeAll(frame.fds);
    try {
      const payload = this.#handle(front, frame, fds);
      if (payload !== undefined) front.answer(frame.view, 0, payload);
    } catch (error) {
      if (!(error instanceof RequestError)) throw error;
      const what = commandName(messageCommand(frame.view));
      this.#host.log('warn', `${what} of a VMM that has not the device: ${error.message}`);
      front.answer(frame.view, error.errno);
    } finally {
      closeAll(fds.filter(({ isOpen }) => isOpen));
    }
  }

  /** @returns the payload of the reply; undefined when it is the server's to make. @throws RequestError */
  #handle(front: Front, frame: Frame, fds: readonly Fd[]): Uint8Array | undefined {
    const command = messageCommand(frame.view);
    if (command === Command.VERSION) return this.#version(frame);
    if (this.proposal === undefined)
      throw new RequestError(Errno.EINVAL, 'the first command must be VERSION');
    switch (command) {
      case Command.DEVICE_GET_REGION_IO_FDS:
        if (!this.#host.mapping) return withoutIoFds(frame);
        this.#ask(front, frame);
        return undefined;
      case Command.DEVICE_GET_INFO:
      case Command.DEVICE_GET_REGION_INFO:
      case Command.DEVICE_GET_IRQ_INFO:
        this.#ask(front, frame);
        return undefined;
      case Command.DMA_MAP:
      case Command.DMA_UNMAP:
      case Command.DEVICE_SET_IRQS:
        this.#requireTakeable(frame, fds);
        this.log.note(frame, fds);
        return command === Command.DMA_UNMAP ? payloadOf(frame) : new Uint8Array(0);
      case Command.REGION_READ:
      case Command.REGION_WRITE:
        return this.#accessConfig(frame, command === Command.REGION_WRITE);
      case Command.DEVICE_RESET:
        this.absorbed.resets++;
        this.#config.reset();
        return new Uint8Array(0);
      case Command.DEVICE_FEATURE:
        throw new RequestError(Errno.ENOTTY, 'it has no device to ask for its features');
      default:
        throw new RequestError(Errno.EBUSY, 'another VMM has the device');
    }
  }

  /** What a server would refuse, as far as it needs none to know. @throws RequestError */
  #requireTakeable(frame: Message, fds: readonly Fd[]): void {
    const { view, length } = frame;
    if (!isPlausible(frame, fds, this.log, this.#host.known.identity.irqs))
      throw new RequestError(Errno.EINVAL, 'it is not one that any server would take');
    const command = messageCommand(view);
    if (command === Command.DMA_MAP && this.log.dma.overlaps(decodeDmaMap(view, HEADER_LENGTH, length)))
      throw new RequestError(Errno.EEXIST, 'a range is mapped there');
    if (command !== Command.DMA_UNMAP) return;
    const request = decodeDmaUnmap(view, HEADER_LENGTH, length);
    const isKnown = (request.flags & DmaUnmapFlag.ALL) !== 0 || this.log.dma.has(request);
    if (!isKnown) throw new RequestError(Errno.ENOENT, 'no range is mapped there');
  }

  #version({ view, bytes, length }: Frame): Uint8Array {
    if (this.proposal !== undefined) throw new RequestError(Errno.EINVAL, 'VERSION was agreed on already');
    const { known, proposal } = this.#host;
    const decode = (payload: Uint8Array) =>
      decodeVersion(new DataView(payload.buffer, payload.byteOffset, payload.length), 0, payload.length);
    const theirs = decodeVersion(view, HEADER_LENGTH, length);
    // The server has been told what the first one takes, and cannot be told again.
    const differences = versionDifferences(decode(proposal), theirs);
    if (differences.length > 0)
      throw new RequestError(
        Errno.EINVAL,
        `it takes less than the VMM that it follows: ${differences.join('; ')}`,
      );
    this.proposal = filterVersion(bytes.slice(HEADER_LENGTH, length));
    return filterVersion(encodeVersion(known.version));
  }

  /** What all VMMs learn alike. */
  #ask(front: Front, frame: Message): void {
    const { back, isOpen } = this.#host.servers;
    if (back === undefined || !isOpen) throw new RequestError(Errno.EBUSY, 'the relay has no device server');
    back.forward(front, frame, [], true);
  }

  #accessConfig(frame: Message, isWrite: boolean): Uint8Array {
    const { view, bytes, length } = frame;
    decodeRegionAccess(view, HEADER_LENGTH, length, access);
    const { region, offset, count } = access;
    if (region !== PciRegion.CONFIG)
      throw new RequestError(
        Errno.EBUSY,
        'another VMM has the device; this one may look at its config space',
      );
    if (offset + count > this.#config.length) throw new RequestError(Errno.EINVAL, 'beyond the config space');
    const start = HEADER_LENGTH + REGION_ACCESS_LENGTH;
    const head = bytes.slice(HEADER_LENGTH, start);
    if (!isWrite) return Buffer.concat([head, this.#config.read(offset, count)]);
    if (length !== start + count)
      throw new RequestError(Errno.EINVAL, 'a write of another length than it says');
    this.absorbed.configWrites++;
    const data = bytes.slice(start, length);
    this.#config.write(offset, data);
    if (this.log.config.resets(offset, data)) {
      this.absorbed.resets++;
      this.#config.reset();
    }
    return head;
  }

  /** The VMM that it was served to has left, and another one may come. */
  vacate(): void {
    this.log.dma.close();
    this.log.interrupts.close();
    this.proposal = undefined;
    this.#config.reset();
  }

  close(): void {
    this.log.close();
  }
}
