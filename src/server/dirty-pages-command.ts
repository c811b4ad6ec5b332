// SPDX-License-Identifier: Apache-2.0
/** What migration v1 has of dirty pages: DIRTY_PAGES, and the bitmap that a DMA_UNMAP ends with. Both on the one log. */

import {
  Command,
  commandName,
  DEFAULT_PAGE_SIZES,
  DIRTY_BITMAP_OFFSET,
  DIRTY_PAGES_LENGTH,
  type DirtyBitmapRange,
  DirtyPagesFlag,
  DmaUnmapFlag,
  decodeDirtyPages,
  decodeDmaUnmap,
  decodeUnmapBitmap,
  Errno,
  encodeDirtyPages,
  encodeDmaUnmap,
  encodeUnmapBitmap,
  HEADER_LENGTH,
  RequestError,
  requireDirtyBitmap,
} from '../wire/index.js';
import type { CommandHandler, ServerContext } from './command.js';
import type { Reply } from './reply.js';
import type { MigrationPort } from './served-device.js';

/** The page size of DIRTY_PAGES: "the smallest supported", and the one that VERSION tells as migration.pgsize. */
const PAGE_SIZE = DEFAULT_PAGE_SIZES;

/** @throws RequestError EINVAL where v1 is not served: to this client the command does not exist */
function requireV1({ migration }: ServerContext): MigrationPort {
  if (migration?.region === undefined)
    throw new RequestError(Errno.EINVAL, `${commandName(Command.DIRTY_PAGES)} is not served here`);
  return migration;
}

/** @throws RequestError EINVAL for an impossible bitmap or a log that is off, E2BIG for one that fits no transfer */
function requireBitmap(context: ServerContext, migration: MigrationPort, range: DirtyBitmapRange): void {
  requireDirtyBitmap(range, PAGE_SIZE);
  if (range.bitmapLength > context.maxTransfer)
    throw new RequestError(
      Errno.E2BIG,
      `dirty bitmap of ${range.bitmapLength} bytes: ask for less at a time`,
    );
  if (!migration.logs) throw new RequestError(Errno.EINVAL, 'dirty pages are not logged: START first');
}

/** The bitmap goes behind the 40 bytes that both commands have before it. */
function report(migration: MigrationPort, reply: Reply, range: DirtyBitmapRange): void | Promise<void> {
  const at = HEADER_LENGTH + DIRTY_BITMAP_OFFSET;
  return migration.reportLogging(range, reply.bytes.subarray(at, at + range.bitmapLength));
}

export const dirtyPages: CommandHandler = (context, { view, at, end }, reply) => {
  const migration = requireV1(context);
  const { argsz, flags, range } = decodeDirtyPages(view, at, end);
  if (argsz < DIRTY_PAGES_LENGTH) throw new RequestError(Errno.EINVAL, `DIRTY_PAGES: argsz ${argsz}`);
  switch (flags) {
    case DirtyPagesFlag.START:
      // Again is no error, and keeps what has been logged.
      if (!migration.logs) migration.startLogging({ pageSize: PAGE_SIZE, ranges: [] });
      return undefined;
    case DirtyPagesFlag.STOP:
      migration.stopLogging();
      return undefined;
    default:
      if (range === undefined) throw new RequestError(Errno.EINVAL, `DIRTY_PAGES flags ${flags}`);
  }
  requireBitmap(context, migration, range);
  const needed = DIRTY_BITMAP_OFFSET + range.bitmapLength;
  // A client that has no room for the answer learns how much it takes, and loses no page.
  const fits = argsz >= needed;
  reply.allocate(fits ? needed : DIRTY_PAGES_LENGTH);
  encodeDirtyPages(reply.view, HEADER_LENGTH, { argsz: needed, flags, ...(fits ? { range } : {}) });
  return fits ? report(migration, reply, range) : undefined;
};

/** DMA_UNMAP with GET_DIRTY_BITMAP: what was written of a range by the time that nothing refers to it any more. */
export const dmaUnmapWithBitmap: CommandHandler = async (context, { view, at, end }, reply) => {
  const migration = requireV1(context);
  const request = decodeDmaUnmap(view, at, end);
  if (request.flags !== DmaUnmapFlag.GET_DIRTY_BITMAP)
    throw new RequestError(Errno.EINVAL, `DMA_UNMAP flags 0x${request.flags.toString(16)}`);
  const range = decodeUnmapBitmap(view, at, end);
  requireBitmap(context, migration, range);
  const needed = DIRTY_BITMAP_OFFSET + range.bitmapLength;
  if (view.getUint32(at, true) < needed)
    throw new RequestError(Errno.EINVAL, `DMA_UNMAP: argsz is less than ${needed}`);
  await context.device.dmaUnmap({ ...request, flags: 0 });
  reply.allocate(needed);
  encodeDmaUnmap(reply.view, HEADER_LENGTH, request);
  encodeUnmapBitmap(reply.view, HEADER_LENGTH, needed, range);
  await report(migration, reply, range);
};
