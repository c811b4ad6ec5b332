// SPDX-License-Identifier: Apache-2.0
/** What a device server is asked, by a connection of the client's own or by another's: a relay asks by that of its VMM. */

import { DevstateError } from '../errors.js';
import type { Fd, Frame } from '../transport/index.js';
import {
  Command,
  DEVICE_INFO_LENGTH,
  type DeviceInfo,
  decodeDeviceInfo,
  decodeIrqInfo,
  decodeRegionInfo,
  encodeDeviceInfo,
  encodeIrqInfo,
  encodeRegionAccess,
  encodeRegionInfo,
  HEADER_LENGTH,
  IRQ_INFO_LENGTH,
  type IrqInfo,
  REGION_ACCESS_LENGTH,
  REGION_INFO_LENGTH,
  type RegionInfo,
} from '../wire/index.js';

export interface SendOptions {
  /** Ask for no reply: the promise settles when the command is sent. */
  readonly noReply?: boolean;
}

export interface RequestOptions extends SendOptions {
  /** Sent along; they stay the caller's. */
  readonly fds?: readonly Fd[];
  readonly timeoutMs?: number;
}

/** Most areas or capabilities that we ask the server for again when the first answer was too small. */
export const MAX_INFO_LENGTH = 128 * 1024;

export abstract class Requester {
  /** Most bytes in one region access or migration data transfer: what the server says, as far as we go along. */
  abstract readonly maxTransfer: number;
  abstract readonly isClosed: boolean;
  /** A refusal has the server's own words already: there is no need to ask for DEVSTATE_LAST_ERROR. */
  abstract readonly explainsRefusals: boolean;

  /**
   * Sends any command. `take` reads the reply while its bytes are valid. The building block of everything else here;
   * for tests and tools it is also the way to say what no method says.
   * @throws DEVSTATE_E_REFUSED with the server's errno, DEVSTATE_E_CONNECTION_CLOSED, DEVSTATE_E_REQUEST_TIMEOUT
   */
  abstract request<T>(
    command: number,
    payload: readonly Uint8Array[],
    take: (frame: Frame) => T,
    options?: RequestOptions,
  ): Promise<T>;

  abstract close(): void;

  deviceInfo(): Promise<DeviceInfo> {
    const payload = structure(DEVICE_INFO_LENGTH, (view) =>
      encodeDeviceInfo(view, 0, { argsz: DEVICE_INFO_LENGTH, flags: 0, regions: 0, irqs: 0 }),
    );
    return this.request(Command.DEVICE_GET_INFO, [payload], (frame) =>
      decodeDeviceInfo(frame.view, HEADER_LENGTH, frame.length),
    );
  }

  /** The region's description, with its fd when it can be mapped (the caller's to close). */
  async regionInfo(index: number): Promise<RegionInfo & { fd?: Fd }> {
    let info = await this.#regionInfo(index, REGION_INFO_LENGTH);
    if (info.argsz > REGION_INFO_LENGTH && info.argsz <= MAX_INFO_LENGTH) {
      info.fd?.close();
      info = await this.#regionInfo(index, info.argsz);
    }
    return info;
  }

  #regionInfo(index: number, argsz: number): Promise<RegionInfo & { fd?: Fd }> {
    const payload = structure(REGION_INFO_LENGTH, (view) => {
      encodeRegionInfo(view, 0, { argsz, flags: 0, index, size: 0, offset: 0 }, 0);
      view.setUint32(0, argsz, true);
    });
    return this.request(Command.DEVICE_GET_REGION_INFO, [payload], (frame) => {
      const info: RegionInfo & { fd?: Fd } = decodeRegionInfo(frame.view, HEADER_LENGTH, frame.length);
      if (frame.fds[0] !== undefined) info.fd = frame.fds[0].take();
      return info;
    });
  }

  irqInfo(index: number): Promise<IrqInfo> {
    const payload = structure(IRQ_INFO_LENGTH, (view) =>
      encodeIrqInfo(view, 0, { argsz: IRQ_INFO_LENGTH, flags: 0, index, count: 0 }),
    );
    return this.request(Command.DEVICE_GET_IRQ_INFO, [payload], (frame) =>
      decodeIrqInfo(frame.view, HEADER_LENGTH, frame.length),
    );
  }

  /** Fills `target`, in several messages if it is longer than a transfer may be. */
  async regionRead(region: number, offset: number, target: Uint8Array): Promise<void> {
    for (let done = 0; done < target.length; done += this.maxTransfer) {
      await this.#readPart(region, offset + done, target.subarray(done, done + this.maxTransfer));
    }
  }

  #readPart(region: number, offset: number, target: Uint8Array): Promise<void> {
    const payload = structure(REGION_ACCESS_LENGTH, (view) =>
      encodeRegionAccess(view, 0, offset, region, target.length),
    );
    return this.request(Command.REGION_READ, [payload], (frame) => {
      const start = HEADER_LENGTH + REGION_ACCESS_LENGTH;
      if (frame.length !== start + target.length) {
        throw new DevstateError(
          'DEVSTATE_E_PROTOCOL',
          `REGION_READ of ${target.length} bytes got ${frame.length - start}`,
        );
      }
      target.set(frame.bytes.subarray(start, frame.length));
    });
  }

  async regionWrite(
    region: number,
    offset: number,
    data: Uint8Array,
    options: SendOptions = {},
  ): Promise<void> {
    for (let done = 0; done < data.length; done += this.maxTransfer) {
      const part = data.subarray(done, done + this.maxTransfer);
      const head = structure(REGION_ACCESS_LENGTH, (view) =>
        encodeRegionAccess(view, 0, offset + done, region, part.length),
      );
      await this.request(Command.REGION_WRITE, [head, part], ignore, options);
    }
  }

  reset(): Promise<void> {
    return this.request(Command.DEVICE_RESET, [], ignore);
  }
}

/** Nothing of a reply is of interest. */
export const ignore = (): void => {};

/** A zeroed buffer of `length` bytes that `encode` has written. */
export function structure(length: number, encode: (view: DataView) => void): Uint8Array {
  const bytes = new Uint8Array(length);
  encode(new DataView(bytes.buffer));
  return bytes;
}
