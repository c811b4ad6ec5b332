// SPDX-License-Identifier: Apache-2.0
/** What the device consists of: DEVICE_GET_INFO, _REGION_INFO, _REGION_IO_FDS, _IRQ_INFO. */

import type { Fd } from '../transport/index.js';
import {
  DEVICE_INFO_LENGTH,
  decodeDeviceInfo,
  decodeIrqInfo,
  decodeRegionInfoRequest,
  decodeRegionIoFdsHeader,
  Errno,
  encodeDeviceInfo,
  encodeIrqInfo,
  encodeRegionInfo,
  encodeRegionIoFds,
  HEADER_LENGTH,
  IRQ_INFO_LENGTH,
  REGION_INFO_LENGTH,
  REGION_IO_FDS_LENGTH,
  type RegionInfo,
  RegionInfoFlag,
  RequestError,
  regionInfoLength,
  regionIoFdsLength,
} from '../wire/index.js';
import type { CommandHandler } from './command.js';
import { findRegion, regionCount } from './regions.js';
import type { ServedRegion } from './served-device.js';

function requireArgsz(argsz: number, needed: number): void {
  if (argsz < needed) throw new RequestError(Errno.EINVAL, `argsz ${argsz} is less than ${needed}`);
}

export const deviceGetInfo: CommandHandler = (context, { view, at, end }, reply) => {
  const { device } = context;
  const request = decodeDeviceInfo(view, at, end);
  requireArgsz(request.argsz, DEVICE_INFO_LENGTH);
  reply.allocate(DEVICE_INFO_LENGTH);
  encodeDeviceInfo(reply.view, HEADER_LENGTH, {
    argsz: DEVICE_INFO_LENGTH,
    flags: device.flags,
    regions: regionCount(context),
    irqs: device.irqs.length,
  });
};

export const deviceGetRegionInfo: CommandHandler = (context, { view, at, end }, reply) => {
  const request = decodeRegionInfoRequest(view, at, end);
  requireArgsz(request.argsz, REGION_INFO_LENGTH);
  if (request.index >= regionCount(context)) {
    throw new RequestError(Errno.EINVAL, `region ${request.index} does not exist`);
  }
  const region = findRegion(context, request.index);
  const info = describeRegion(request.index, region);
  const needed = regionInfoLength(info);
  reply.allocate(Math.min(needed, Math.max(request.argsz, REGION_INFO_LENGTH)));
  reply.length = encodeRegionInfo(reply.view, HEADER_LENGTH, info, request.argsz);
  // The fd goes with the areas: a client that must ask again with a larger argsz gets it then, once.
  if (region?.memory !== undefined && request.argsz >= needed) reply.fds = [region.memory.fd];
};

function describeRegion(index: number, region: ServedRegion | undefined): RegionInfo {
  if (region === undefined) return { argsz: REGION_INFO_LENGTH, flags: 0, index, size: 0, offset: 0 };
  const { memory } = region;
  return {
    argsz: REGION_INFO_LENGTH,
    flags: region.flags | (memory === undefined ? 0 : RegionInfoFlag.MMAP),
    index,
    size: region.size,
    offset: memory?.offset ?? 0,
    ...(memory?.areas === undefined ? {} : { sparseAreas: memory.areas }),
    ...(region.type === undefined ? {} : { type: region.type }),
  };
}

export const deviceGetRegionIoFds: CommandHandler = (context, { view, at, end }, reply) => {
  const { peer } = context;
  const request = decodeRegionIoFdsHeader(view, at, end);
  requireArgsz(request.argsz, REGION_IO_FDS_LENGTH);
  if (request.flags !== 0 || request.count !== 0) {
    throw new RequestError(Errno.EINVAL, 'GET_REGION_IO_FDS: flags and count must be 0');
  }
  const region = findRegion(context, request.index);
  if (region === undefined) throw new RequestError(Errno.EINVAL, `region ${request.index} does not exist`);
  const ioFds = region.ioFds ?? [];
  const header = {
    argsz: regionIoFdsLength(ioFds.length),
    flags: 0,
    index: request.index,
    count: ioFds.length,
  };
  if (request.argsz < header.argsz) {
    reply.allocate(REGION_IO_FDS_LENGTH);
    encodeRegionIoFds(reply.view, HEADER_LENGTH, header);
    return;
  }
  const fds: Fd[] = [...new Set(ioFds.map((ioFd) => ioFd.fd))];
  if (fds.length > peer.maxMsgFds)
    throw new RequestError(
      Errno.E2BIG,
      `the client takes ${peer.maxMsgFds} fds, the region has ${fds.length}`,
    );
  reply.allocate(header.argsz);
  encodeRegionIoFds(
    reply.view,
    HEADER_LENGTH,
    header,
    ioFds.map(({ fd, ...ioFd }) => ({ ...ioFd, fdIndex: fds.indexOf(fd) })),
  );
  reply.fds = fds;
};

export const deviceGetIrqInfo: CommandHandler = ({ device }, { view, at, end }, reply) => {
  const request = decodeIrqInfo(view, at, end);
  requireArgsz(request.argsz, IRQ_INFO_LENGTH);
  const irq = device.irqs[request.index];
  if (irq === undefined)
    throw new RequestError(Errno.EINVAL, `interrupt index ${request.index} does not exist`);
  reply.allocate(IRQ_INFO_LENGTH);
  encodeIrqInfo(reply.view, HEADER_LENGTH, {
    argsz: IRQ_INFO_LENGTH,
    flags: irq.flags,
    index: request.index,
    count: irq.count,
  });
};
