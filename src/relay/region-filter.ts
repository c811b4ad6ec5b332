// SPDX-License-Identifier: Apache-2.0
/** DEVICE_GET_REGION_INFO without memory to map: what a client has mapped could not be taken from it when the server changes. */

import {
  decodeRegionInfo,
  encodeRegionInfo,
  HEADER_LENGTH,
  type RegionInfo,
  RegionInfoFlag,
} from '../wire/index.js';
import type { Message } from './messages.js';

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
