// SPDX-License-Identifier: Apache-2.0
/** What the VMM does with the device: DMA_MAP, DMA_UNMAP, SET_IRQS, region accesses, DEVICE_RESET. */

import {
  DMA_UNMAP_LENGTH,
  DmaMapFlag,
  DmaUnmapFlag,
  decodeDmaMap,
  decodeDmaUnmap,
  decodeRegionAccess,
  decodeSetIrqs,
  decodeWriteMultiCount,
  decodeWriteMultiEntry,
  Errno,
  encodeDmaUnmap,
  encodeRegionAccess,
  HEADER_LENGTH,
  PciRegion,
  REGION_ACCESS_LENGTH,
  type RegionAccess,
  RegionInfoFlag,
  RequestError,
  SET_IRQS_LENGTH,
  writeU64,
} from '../wire/index.js';
import type { CommandHandler, ServerContext } from './command.js';
import { dmaUnmapWithBitmap } from './dirty-pages-command.js';
import { findRegion, readRegion, writeRegion } from './regions.js';

const DMA_MAP_FLAGS = DmaMapFlag.READ | DmaMapFlag.WRITE | DmaMapFlag.MMAP | DmaMapFlag.FILE_IO;

export const dmaMap: CommandHandler = ({ device }, { view, at, end, fds }) => {
  const request = decodeDmaMap(view, at, end);
  if (
    (request.flags & ~DMA_MAP_FLAGS) !== 0 ||
    (request.flags & (DmaMapFlag.READ | DmaMapFlag.WRITE)) === 0
  ) {
    throw new RequestError(Errno.EINVAL, `DMA_MAP flags 0x${request.flags.toString(16)}`);
  }
  const method = request.flags & (DmaMapFlag.MMAP | DmaMapFlag.FILE_IO);
  if (method === (DmaMapFlag.MMAP | DmaMapFlag.FILE_IO)) {
    throw new RequestError(Errno.EINVAL, 'DMA_MAP cannot be by mmap and by file I/O at once');
  }
  if (fds.length > 1 || (method !== 0 && fds.length === 0)) {
    throw new RequestError(Errno.EINVAL, `DMA_MAP with ${fds.length} fds`);
  }
  if (request.size === 0 || !Number.isSafeInteger(request.address + request.size)) {
    throw new RequestError(
      Errno.EINVAL,
      `DMA_MAP of ${request.size} bytes at 0x${request.address.toString(16)}`,
    );
  }
  device.dmaMap(request, fds[0]);
};

export const dmaUnmap: CommandHandler = (context, message, reply) => {
  const { view, at, end } = message;
  const request = decodeDmaUnmap(view, at, end);
  const withBitmap = (request.flags & DmaUnmapFlag.GET_DIRTY_BITMAP) !== 0;
  if (withBitmap && context.migration?.region !== undefined)
    return dmaUnmapWithBitmap(context, message, reply);
  if ((request.flags & ~DmaUnmapFlag.ALL) !== 0) {
    throw new RequestError(Errno.EINVAL, `DMA_UNMAP flags 0x${request.flags.toString(16)}`);
  }
  if ((request.flags & DmaUnmapFlag.ALL) !== 0 && (request.address !== 0 || request.size !== 0)) {
    throw new RequestError(Errno.EINVAL, 'DMA_UNMAP of all ranges names one');
  }
  reply.allocate(DMA_UNMAP_LENGTH);
  encodeDmaUnmap(reply.view, HEADER_LENGTH, request);
  return context.device.dmaUnmap(request);
};

export const deviceSetIrqs: CommandHandler = ({ device }, { view, bytes, at, end, fds }) => {
  const request = decodeSetIrqs(view, at, end);
  device.setIrqs(request, bytes.subarray(at + SET_IRQS_LENGTH, end), fds);
};

/** Reused: handlers run one at a time up to their first await, and none looks at it after that. */
const access: RegionAccess = { offset: 0, region: 0, count: 0 };

function requireAccess(context: ServerContext, needed: number, limit: number): void {
  const region = findRegion(context, access.region);
  if (region === undefined || (region.flags & needed) === 0) {
    throw new RequestError(Errno.EINVAL, `region ${access.region} cannot be accessed like this`);
  }
  if (access.count > limit) throw new RequestError(Errno.EINVAL, `region access of ${access.count} bytes`);
  if (access.offset + access.count > region.size) {
    throw new RequestError(Errno.EINVAL, `access past the end of region ${access.region}`);
  }
}

export const regionRead: CommandHandler = (context, { view, at, end }, reply) => {
  decodeRegionAccess(view, at, end, access);
  requireAccess(context, RegionInfoFlag.READ, context.maxTransfer);
  const { offset, region, count } = access;
  if (region === PciRegion.CONFIG) context.configReads?.note(offset, count);
  reply.allocate(REGION_ACCESS_LENGTH + count);
  encodeRegionAccess(reply.view, HEADER_LENGTH, offset, region, count);
  if (count === 0) return;
  const start = HEADER_LENGTH + REGION_ACCESS_LENGTH;
  return readRegion(context, region, offset, reply.bytes.subarray(start, start + count));
};

export const regionWrite: CommandHandler = (context, { view, bytes, at, end }, reply) => {
  decodeRegionAccess(view, at, end, access);
  requireAccess(context, RegionInfoFlag.WRITE, context.maxTransfer);
  const { offset, region, count } = access;
  const start = at + REGION_ACCESS_LENGTH;
  if (end - start !== count)
    throw new RequestError(Errno.EINVAL, `region write of ${count} bytes carries ${end - start}`);
  reply.allocate(REGION_ACCESS_LENGTH);
  encodeRegionAccess(reply.view, HEADER_LENGTH, offset, region, count);
  if (count === 0) return;
  return writeRegion(context, region, offset, bytes.subarray(start, end));
};

export const regionWriteMulti: CommandHandler = (context, { view, bytes, at, end }, reply) => {
  if (!context.peer.writeMultiple)
    throw new RequestError(Errno.EINVAL, 'REGION_WRITE_MULTI was not negotiated');
  const count = decodeWriteMultiCount(view, at, end);
  reply.allocate(8);
  writeU64(reply.view, HEADER_LENGTH, count);

  // Synchronous as long as the device is: a promise only from the first write that needs one.
  const writeFrom = (first: number): void | Promise<void> => {
    for (let i = first; i < count; i++) {
      const start = decodeWriteMultiEntry(view, at, i, access) + REGION_ACCESS_LENGTH;
      requireAccess(context, RegionInfoFlag.WRITE, 8);
      if (access.count === 0) continue;
      const done = writeRegion(
        context,
        access.region,
        access.offset,
        bytes.subarray(start, start + access.count),
      );
      if (done !== undefined) return done.then(() => writeFrom(i + 1));
    }
  };
  return writeFrom(0);
};

/** The VMM may always reset its device; a manager must not do it under another one's migration. */
export const deviceReset: CommandHandler = ({ role, device, migration }) =>
  role === 'manager' && migration !== undefined ? migration.reset() : device.reset();
