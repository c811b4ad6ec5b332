// SPDX-License-Identifier: Apache-2.0
/** What is said of regions, without what a client could keep of one server when another takes its place: memory and ioeventfds. */

import {
  decodeRegionInfo,
  encodeRegionInfo,
  HEADER_LENGTH,
  REGION_IO_FDS_LENGTH,
  type RegionInfo,
  RegionInfoFlag,
} from '../wire/index.js';
import { type Message, payloadOf } from './messages.js';

/**
 * Rewrites a reply in place; its fds are not to be passed on.
 * @param argsz of the request: capabilities that did not fit are asked for once more
 * @returns the length of the message
 * @throws RequestError for a reply that cannot be read
 */
export function withoutMapping({ view, length }: Message, argsz: number): number {
  const { MMAP, CAPS } = RegionInfoFlag;
  const { sparseAreas: _, ...info }: RegionInfo = decodeRegionInfo(view, HEADER_LENGTH, length);
  if (info.argsz > argsz) {
    view.setUint32(HEADER_LENGTH + 4, info.flags & ~MMAP, true);
    return length;
  }
  const flags = info.flags & ~(MMAP | CAPS);
  const left = HEADER_LENGTH + encodeRegionInfo(view, HEADER_LENGTH, { ...info, flags, offset: 0 }, argsz);
  view.setUint32(4, left, true);
  return left;
}

/**
 * The payload of the answer to DEVICE_GET_REGION_IO_FDS: none. An ioeventfd would belong to one server for ever, and the
 * client cannot be told of another.
 */
export function withoutIoFds(request: Message): Uint8Array {
  const payload = new Uint8Array(REGION_IO_FDS_LENGTH);
  payload.set(payloadOf(request).subarray(0, payload.length));
  const view = new DataView(payload.buffer);
  view.setUint32(0, payload.length, true);
  view.setUint32(12, 0, true);
  return payload;
}
