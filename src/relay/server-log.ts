// SPDX-License-Identifier: Apache-2.0
/**
 * A device server's log of what it writes to memory, and whose it is. The server takes all managers, who come through the
 * relay, for its VMM: it would report one manager's pages to another, and keep logging after that manager is gone.
 */

import {
  Command,
  DIRTY_PAGES_LENGTH,
  DirtyPagesFlag,
  Errno,
  encodeDirtyPages,
  encodeFeatureHeader,
  FEATURE_LENGTH,
  Feature,
  FeatureFlag,
  HEADER_LENGTH,
  RequestError,
} from '../wire/index.js';
import type { Origin } from './in-flight.js';

export type LogCommand = 'start' | 'stop' | 'report';

/** A command that ends the log. */
export interface LogEnd {
  readonly command: number;
  readonly payload: Uint8Array;
}

/** What a command, whose message is `view`, does with the log; undefined if it has nothing to do with it. */
export function logCommandOf(command: number, view: DataView): LogCommand | undefined {
  if (command !== Command.DEVICE_FEATURE && command !== Command.DIRTY_PAGES) return undefined;
  const flags = view.getUint32(HEADER_LENGTH + 4, true);
  if (command === Command.DIRTY_PAGES) {
    if ((flags & DirtyPagesFlag.START) !== 0) return 'start';
    return (flags & DirtyPagesFlag.STOP) !== 0 ? 'stop' : 'report';
  }
  const { INDEX_MASK, SET, GET, PROBE } = FeatureFlag;
  switch (flags & (INDEX_MASK | SET | GET | PROBE)) {
    case Feature.DMA_LOGGING_START | SET:
      return 'start';
    case Feature.DMA_LOGGING_STOP | SET:
      return 'stop';
    case Feature.DMA_LOGGING_REPORT | GET:
      return 'report';
    default:
      return undefined;
  }
}

export class ServerLog {
  /** Who has started it, or has asked to and waits for the answer. */
  #owner: Origin | undefined;
  #isOn = false;
  #isV1 = false;

  /** The server logs. */
  get isOn(): boolean {
    return this.#isOn;
  }

  /** A manager's command is about to be sent on. @throws RequestError EBUSY when the log is another one's */
  admit(what: LogCommand, manager: Origin): void {
    if (this.#owner !== undefined && this.#owner !== manager)
      throw new RequestError(Errno.EBUSY, 'another connection logs the DMA of this device');
    if (what === 'start') this.#owner = manager;
  }

  /** The server has answered. */
  answered(what: LogCommand, command: number, origin: Origin, failed: boolean): void {
    if (what === 'start' && !failed) {
      this.#isOn = true;
      this.#owner = origin;
      this.#isV1 = command === Command.DIRTY_PAGES;
    } else if (what === 'start' && !this.#isOn && this.#owner === origin) this.#owner = undefined;
    else if (what === 'stop' && !failed) {
      this.#isOn = false;
      this.#owner = undefined;
    }
  }

  /** A manager is gone. @returns what ends its log, if it has one: the server has carried out what came before */
  endOf(manager: Origin): LogEnd | undefined {
    if (this.#owner !== manager) return undefined;
    if (this.#isV1) {
      const payload = new Uint8Array(DIRTY_PAGES_LENGTH);
      const stop = { argsz: payload.length, flags: DirtyPagesFlag.STOP };
      encodeDirtyPages(new DataView(payload.buffer), 0, stop);
      return { command: Command.DIRTY_PAGES, payload };
    }
    const payload = new Uint8Array(FEATURE_LENGTH);
    const flags = Feature.DMA_LOGGING_STOP | FeatureFlag.SET;
    encodeFeatureHeader(new DataView(payload.buffer), 0, payload.length, flags);
    return { command: Command.DEVICE_FEATURE, payload };
  }

  /** The server does not end the log of a manager that is gone: it answers for itself whether another may begin. */
  giveUp(manager: Origin): void {
    if (this.#owner === manager) this.#owner = undefined;
  }
}
