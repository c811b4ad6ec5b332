// SPDX-License-Identifier: Apache-2.0
/** The server's side of the VERSION negotiation (specification, "Version Negotiation"). Pure. */

import { peerFds, systemLimits } from '../native/index.js';
import {
  type Capabilities,
  DEFAULT_MAX_DATA_XFER_SIZE,
  DEFAULT_MAX_DMA_MAPS,
  Errno,
  PROTOCOL_MAJOR,
  PROTOCOL_MINOR,
  RequestError,
  type Version,
} from '../wire/index.js';

/** Most fds that we take in one message. QEMU refuses servers that say more than 16. */
export const MAX_MESSAGE_FDS = 16;
/** Most bytes of one transfer that we take. QEMU refuses servers that say more than 64 MiB. */
export const MAX_DATA_XFER_SIZE = DEFAULT_MAX_DATA_XFER_SIZE;
/** Longest message that we take: the largest transfer and the longest fixed part before it. */
export const MAX_MESSAGE_LENGTH = MAX_DATA_XFER_SIZE + 4096;
/** Largest note a manager may leave. */
export const MAX_NOTE_LENGTH = 64 * 1024;

/** Mappings that are enough for as many ranges as the protocol has: those of one file share them. */
const ENOUGH_RANGES = 16_384;

/** Most DMA ranges that this process can have. */
export function maxDmaMaps(): number {
  const { ranges } = systemLimits();
  return ranges >= ENOUGH_RANGES ? DEFAULT_MAX_DMA_MAPS : ranges;
}

/** Most fds of one message that this process can take: a quarter of those that peers may have it hold. */
export function maxMessageFds(): number {
  return Math.max(1, Math.min(MAX_MESSAGE_FDS, Math.floor(peerFds() / 4)));
}

/** What we answer to a client's proposal. @throws RequestError EINVAL when there is no common version */
export function negotiate(proposal: Version, offer: { twinSocket: boolean }): Version {
  if (proposal.major !== PROTOCOL_MAJOR) {
    throw new RequestError(
      Errno.EINVAL,
      `client speaks protocol ${proposal.major}.${proposal.minor}, we speak 0.x`,
    );
  }
  const capabilities: Capabilities = {
    maxMsgFds: maxMessageFds(),
    maxDataXferSize: MAX_DATA_XFER_SIZE,
    maxDmaMaps: Math.min(proposal.capabilities.maxDmaMaps, maxDmaMaps()),
    pageSizes: 4096,
    writeMultiple: proposal.capabilities.writeMultiple,
    twinSocket: offer.twinSocket && proposal.capabilities.twinSocket,
  };
  if (capabilities.twinSocket) capabilities.twinSocketFdIndex = 0;
  if (proposal.capabilities.migrationPageSize !== undefined) capabilities.migrationPageSize = 4096;
  return { major: PROTOCOL_MAJOR, minor: Math.min(proposal.minor, PROTOCOL_MINOR), capabilities };
}
