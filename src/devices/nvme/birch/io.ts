// SPDX-License-Identifier: Apache-2.0
/**
 * The NVM command set (NVMe 1.4, section 6). What the page cache and mapped guest memory allow is done at once, and only
 * what has to wait makes promises.
 */

import type { GuestMemory } from '../../../device/index.js';
import { DevstateError } from '../../../errors.js';
import type { Extent } from '../image-file.js';
import {
  CDW0_FUSE_PSDT,
  CDW11_ATTRIBUTE_DEALLOCATE,
  CDW12_DEALLOCATE,
  CDW12_FUA,
  DSM_RANGE_SIZE,
  Dword,
  IoOpcode,
  MIN_PAGE_SIZE,
  NSID,
  NSID_ALL,
  Status,
} from '../spec/index.js';
import type { Birch } from './birch.js';
import { DataPointer } from './data-pointer.js';
import { PENDING } from './engine-owner.js';
import { HealthCounter, WRITE_CACHE_AT } from './layout.js';
import { Mode } from './mode.js';
import { statusOf } from './status-of.js';
import { copyFromGuest, locate, type Outcome } from './transfer.js';

/** Longer transfers wait for the thread pool even where they need not: copying them would hold up everything else. */
const AT_ONCE_MAX = 256 * 1024;

/** Carries out the command in a slot. @returns its status, or `PENDING`. @throws DmaFault */
export function executeIo(birch: Birch, slot: number): number {
  const { image, disk } = birch;
  if ((image.dword(slot, Dword.CDW0) & CDW0_FUSE_PSDT) !== 0) return Status.INVALID_FIELD;
  const opcode = image.opcode(slot);
  const nsid = image.dword(slot, Dword.NSID);
  const addressed = nsid === NSID || (opcode === IoOpcode.FLUSH && nsid === NSID_ALL);
  switch (opcode) {
    case IoOpcode.READ:
      return addressed ? read(birch, slot) : Status.INVALID_NAMESPACE;
    case IoOpcode.WRITE:
      return addressed ? write(birch, slot) : Status.INVALID_NAMESPACE;
    case IoOpcode.FLUSH:
      if (!addressed) return Status.INVALID_NAMESPACE;
      return later(birch, slot, disk.flush().then(success), Status.WRITE_FAULT);
    case IoOpcode.COMPARE:
      return addressed ? compare(birch, slot) : Status.INVALID_NAMESPACE;
    case IoOpcode.WRITE_ZEROES:
      return addressed ? writeZeroes(birch, slot) : Status.INVALID_NAMESPACE;
    case IoOpcode.DATASET_MANAGEMENT:
      return addressed ? datasetManagement(birch, slot) : Status.INVALID_NAMESPACE;
    default:
      return Status.INVALID_OPCODE;
  }
}

const success = () => Status.SUCCESS;

/** The pointer of the command being started. One whose list takes time to come is left to its command. */
let current = new DataPointer();

function read(birch: Birch, slot: number): number {
  const { image, disk } = birch;
  const length = dataLength(birch, slot);
  const wrong = extentStatus(birch, slot, length, maximumTransfer(birch));
  if (wrong !== Status.SUCCESS) return wrong;
  image.count(HealthCounter.READ_COMMANDS);
  image.count(HealthCounter.BYTES_READ, length);
  const position = dataPosition(birch, slot);
  const pointer = current;
  const status = locate(birch, slot, length, pointer);
  if (typeof status !== 'number') {
    current = new DataPointer();
    const work = status.then((found) => found || transferRead(birch, pointer, position));
    return later(birch, slot, work, Status.UNRECOVERED_READ_ERROR);
  }
  if (status !== Status.SUCCESS) return status;
  if (length <= AT_ONCE_MAX) {
    const { memory } = birch.host;
    const buffers = views(memory, pointer, 'write');
    if (buffers !== undefined && disk.readNow(buffers, position, length)) {
      for (let i = 0; i < pointer.count; i++) memory.written(pointer.address(i), pointer.length(i));
      return Status.SUCCESS;
    }
  }
  return later(birch, slot, transferRead(birch, pointer, position), Status.UNRECOVERED_READ_ERROR);
}

async function transferRead({ host, disk }: Birch, pointer: DataPointer, position: number): Promise<number> {
  const pin = await host.memory.pin(pointer.ranges(), 'write');
  try {
    await disk.read(pin.buffers, position);
  } finally {
    await pin.release();
  }
  return Status.SUCCESS;
}

function write(birch: Birch, slot: number): number {
  const { image, disk, host } = birch;
  const length = dataLength(birch, slot);
  const wrong = extentStatus(birch, slot, length, maximumTransfer(birch));
  if (wrong !== Status.SUCCESS) return wrong;
  image.count(HealthCounter.WRITE_COMMANDS);
  image.count(HealthCounter.BYTES_WRITTEN, length);
  const position = dataPosition(birch, slot);
  const durable = isDurable(birch, slot);
  const pointer = current;
  const status = locate(birch, slot, length, pointer);
  if (typeof status !== 'number') {
    current = new DataPointer();
    const work = status.then((found) => found || transferWrite(birch, pointer, position, durable));
    return later(birch, slot, work, Status.WRITE_FAULT);
  }
  if (status !== Status.SUCCESS) return status;
  if (!durable && length <= AT_ONCE_MAX) {
    const buffers = views(host.memory, pointer, 'read');
    if (buffers !== undefined && disk.writeNow(buffers, position, length)) return Status.SUCCESS;
  }
  return later(birch, slot, transferWrite(birch, pointer, position, durable), Status.WRITE_FAULT);
}

async function transferWrite(
  { host, disk }: Birch,
  pointer: DataPointer,
  position: number,
  durable: boolean,
): Promise<number> {
  const pin = await host.memory.pin(pointer.ranges(), 'read');
  try {
    await disk.write(pin.buffers, position);
  } finally {
    await pin.release();
  }
  if (durable) await disk.flush();
  return Status.SUCCESS;
}

function compare(birch: Birch, slot: number): number {
  const length = dataLength(birch, slot);
  const wrong = extentStatus(birch, slot, length, maximumTransfer(birch));
  if (wrong !== Status.SUCCESS) return wrong;
  birch.image.count(HealthCounter.READ_COMMANDS);
  const position = dataPosition(birch, slot);
  const pointer = new DataPointer();
  const located = locate(birch, slot, length, pointer);
  if (typeof located === 'number' && located !== Status.SUCCESS) return located;
  return later(birch, slot, compareWith(birch, pointer, located, position), Status.UNRECOVERED_READ_ERROR);
}

async function compareWith(
  { host, comparing }: Birch,
  pointer: DataPointer,
  located: number | Promise<number>,
  position: number,
): Promise<number> {
  const status = await located;
  if (status !== Status.SUCCESS) return status;
  const equal = await comparing.equals(() => host.memory.pin(pointer.ranges(), 'read'), position);
  return equal ? Status.SUCCESS : Status.COMPARE_FAILURE;
}

function writeZeroes(birch: Birch, slot: number): number {
  const { image, disk } = birch;
  const length = dataLength(birch, slot);
  // No data are transferred, so MDTS is no bound.
  const wrong = extentStatus(birch, slot, length, Number.MAX_SAFE_INTEGER);
  if (wrong !== Status.SUCCESS) return wrong;
  image.count(HealthCounter.WRITE_COMMANDS);
  const position = dataPosition(birch, slot);
  const deallocate = (image.dword(slot, Dword.CDW12) & CDW12_DEALLOCATE) !== 0;
  const durable = isDurable(birch, slot);
  const work = async () => {
    if (!deallocate || !(await disk.punchHole(position, length))) await disk.writeZeroes(position, length);
    if (durable) await disk.flush();
    return Status.SUCCESS;
  };
  return later(birch, slot, work(), Status.WRITE_FAULT);
}

function datasetManagement(birch: Birch, slot: number): number {
  const { image } = birch;
  const count = (image.dword(slot, Dword.CDW10) & 0xff) + 1;
  const deallocate = (image.dword(slot, Dword.CDW11) & CDW11_ATTRIBUTE_DEALLOCATE) !== 0;
  const list = new Uint8Array(count * DSM_RANGE_SIZE);
  return afterCopy(birch, slot, copyFromGuest(birch, slot, list), Status.WRITE_FAULT, async () =>
    deallocateRanges(birch, list, deallocate),
  );
}

/** The attributes are hints; where holes cannot be punched, the blocks keep their data. */
async function deallocateRanges(
  { parameters, disk, engine }: Birch,
  list: Uint8Array,
  deallocate: boolean,
): Promise<number> {
  const { lba_size: blockSize, namespace_size: size } = parameters;
  const view = new DataView(list.buffer);
  const lengthAt = (at: number) => view.getUint32(at + 4, true);
  const firstAt = (at: number) => view.getUint32(at + 8, true) + view.getUint32(at + 12, true) * 2 ** 32;
  for (let at = 0; at < list.length; at += DSM_RANGE_SIZE) {
    if (firstAt(at) + lengthAt(at) > size / blockSize) return Status.LBA_OUT_OF_RANGE;
  }
  const extents: Extent[] = [];
  for (let at = 0; at < list.length; at += DSM_RANGE_SIZE) {
    const [position, length] = [firstAt(at) * blockSize, lengthAt(at) * blockSize];
    if (length > 0) extents.push({ position, length });
  }
  if (deallocate) await disk.deallocate(extents, () => engine.mode === Mode.RUNNING);
  return Status.SUCCESS;
}

/** Bytes that NLB of dword 12 stands for. */
function dataLength({ image, parameters }: Birch, slot: number): number {
  return ((image.dword(slot, Dword.CDW12) & 0xffff) + 1) * parameters.lba_size;
}

/** Where in the disk SLBA is. */
function dataPosition({ image, parameters }: Birch, slot: number): number {
  return image.qword(slot, Dword.CDW10) * parameters.lba_size;
}

function maximumTransfer({ parameters }: Birch): number {
  return MIN_PAGE_SIZE << parameters.mdts;
}

function extentStatus({ image, parameters }: Birch, slot: number, length: number, maximum: number): number {
  if (length > maximum) return Status.INVALID_FIELD;
  const end = image.qword(slot, Dword.CDW10) + length / parameters.lba_size;
  return end > parameters.namespace_size / parameters.lba_size ? Status.LBA_OUT_OF_RANGE : Status.SUCCESS;
}

/** Whether data must be on stable storage before the command ends: FUA, or the write cache is off. */
function isDurable({ image }: Birch, slot: number): boolean {
  return image.u32(WRITE_CACHE_AT) === 0 || (image.dword(slot, Dword.CDW12) & CDW12_FUA) !== 0;
}

/** Continues with `work` when the data have come. */
function afterCopy(
  birch: Birch,
  slot: number,
  copied: Outcome,
  ioStatus: number,
  work: () => Promise<number>,
): number {
  if (copied === Status.SUCCESS) return later(birch, slot, work(), ioStatus);
  if (typeof copied === 'number') return copied;
  return later(
    birch,
    slot,
    copied.then((status) => status || work()),
    ioStatus,
  );
}

/** Ends the command when `work` settles; a failed system call becomes `ioStatus`. */
function later(birch: Birch, slot: number, work: Promise<number>, ioStatus: number): number {
  work.then(
    (status) => birch.engine.finish(slot, status),
    (error: unknown) => birch.engine.finish(slot, failure(birch, error, ioStatus)),
  );
  return PENDING;
}

function failure(birch: Birch, error: unknown, ioStatus: number): number {
  if (!(error instanceof DevstateError)) return statusOf(birch.host, error);
  birch.image.count(HealthCounter.MEDIA_ERRORS);
  birch.host.log('error', `a command of the guest has failed: ${error.message} (${error.code})`);
  return ioStatus;
}

/** Guest memory itself, if every segment is mapped as one piece. @throws DmaFault */
function views(
  memory: GuestMemory,
  pointer: DataPointer,
  access: 'read' | 'write',
): Uint8Array[] | undefined {
  const buffers: Uint8Array[] = [];
  for (let i = 0; i < pointer.count; i++) {
    const view = memory.view(pointer.address(i), pointer.length(i), access);
    if (view === undefined) return undefined;
    buffers.push(view);
  }
  return buffers;
}
