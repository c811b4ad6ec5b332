// SPDX-License-Identifier: Apache-2.0
/**
 * The Controller State data structure of NVMe 2.1, that Migration Receive (Get Controller State) gives and Migration
 * Send (Set Controller State) takes: the I/O queues of a controller and what its vendor adds. Little endian.
 *
 *       0 │ VER │ CSATTR │ reserved │ NVMECSS (dwords) │ VSS (dwords) │
 *      48 │ NVMe Controller State, NVMECSS dwords: VER │ NIOSQ │ NIOCQ │ reserved │ NIOSQ × 24 bytes │ NIOCQ × 24 bytes │
 *         │ vendor specific, VSS dwords │
 *
 * `formats/nvme-controller-state.md` has every field, and where it was read.
 */
import { DevstateError } from '../../errors.js';

export interface NvmeControllerState {
  /** VER of the whole. */
  readonly version: number;
  /** CSATTR bit 0: the controller was suspended when the state was taken. */
  readonly suspended: boolean;
  /** The NVMe Controller State; null if it was not asked for (NVMECSS is 0). */
  readonly nvme: NvmeIoQueues | null;
  /** Vendor specific bytes, a multiple of 4. The structure does not name the vendor. */
  readonly vendor: Uint8Array;
}

/** NVMe Controller State: a list of each kind of I/O queue. */
export interface NvmeIoQueues {
  /** VER of this part. */
  readonly version: number;
  readonly submissionQueues: readonly NvmeIoSubmissionQueue[];
  readonly completionQueues: readonly NvmeIoCompletionQueue[];
}

interface NvmeIoQueue {
  /** PRP Entry 1 of the command that created it: a guest physical address below 2^53. */
  readonly prp1: number;
  /** QSIZE of that command: entries less one. */
  readonly qsize: number;
  readonly id: number;
  readonly head: number;
  readonly tail: number;
  readonly physicallyContiguous: boolean;
}

export interface NvmeIoSubmissionQueue extends NvmeIoQueue {
  readonly completionQueue: number;
  /** QPRIO, 0 to 3. */
  readonly priority: number;
}

export interface NvmeIoCompletionQueue extends NvmeIoQueue {
  readonly interruptsEnabled: boolean;
  readonly vector: number;
  /** S0PT: the Phase Tag bit that slot 0 of the queue has, 0 or 1. */
  readonly slot0Phase: number;
}

/** Versions of which the layout is known to be this one, of the whole and of the NVMe Controller State. */
export const CONTROLLER_STATE_VERSIONS: readonly number[] = [0, 1];

export const CONTROLLER_STATE_HEADER_LENGTH = 48;
export const NVME_STATE_HEADER_LENGTH = 8;
export const IO_QUEUE_LENGTH = 24;

/** Offsets in the header of the whole. */
const Header = { version: 0, attributes: 2, reserved: 3, nvmeSize: 16, vendorSize: 32 } as const;
/** Offsets in the header of the NVMe Controller State. */
const NvmeHeader = { version: 0, submissionQueues: 2, completionQueues: 4, reserved: 6 } as const;
const SubmissionQueue = {
  prp1: 0,
  qsize: 8,
  id: 10,
  completionQueue: 12,
  attributes: 14,
  head: 16,
  tail: 18,
  reserved: 20,
} as const;
const CompletionQueue = {
  prp1: 0,
  qsize: 8,
  id: 10,
  head: 12,
  tail: 14,
  attributes: 16,
  reserved: 20,
} as const;

const DWORD = 4;
const U16_MAX = 0xffff;
const QUEUES_MAX = U16_MAX;

/** What the header of the whole says. */
export interface ControllerStateHeader {
  readonly version: number;
  readonly suspended: boolean;
  /** Bytes of the NVMe Controller State. */
  readonly nvmeLength: number;
  /** Bytes of the vendor specific part. */
  readonly vendorLength: number;
}

/** The whole structure. @throws DevstateError DEVSTATE_E_STATE_VALUE that names what does not fit its field */
export function encodeControllerState({ version, suspended, nvme, vendor }: NvmeControllerState): Uint8Array {
  if (vendor.length % DWORD !== 0) {
    throw unfit(`the vendor specific part has ${vendor.length} bytes, not a number of dwords`);
  }
  const queues = nvme === null ? new Uint8Array(0) : encodeIoQueues(nvme);
  const bytes = Buffer.alloc(CONTROLLER_STATE_HEADER_LENGTH + queues.length + vendor.length);
  bytes.writeUInt16LE(checked('version', version, U16_MAX), Header.version);
  bytes.writeUInt8(suspended ? 1 : 0, Header.attributes);
  bytes.writeBigUInt64LE(BigInt(queues.length / DWORD), Header.nvmeSize);
  bytes.writeBigUInt64LE(BigInt(vendor.length / DWORD), Header.vendorSize);
  bytes.set(queues, CONTROLLER_STATE_HEADER_LENGTH);
  bytes.set(vendor, CONTROLLER_STATE_HEADER_LENGTH + queues.length);
  return plain(bytes);
}

/**
 * Takes a whole structure apart; `encodeControllerState` gives the same bytes again. The vendor's bytes are a copy.
 * @throws DevstateError DEVSTATE_E_FORMAT_VERSION for a version that is not known, DEVSTATE_E_STATE_RECORD for what
 *   cannot be: bytes missing or too many, sizes that contradict each other, reserved bits that are set, PRP1 from 2^53
 */
export function decodeControllerState(bytes: Uint8Array): NvmeControllerState {
  const { version, suspended, nvmeLength, vendorLength } = decodeControllerStateHeader(bytes);
  const vendorStart = CONTROLLER_STATE_HEADER_LENGTH + nvmeLength;
  const length = vendorStart + vendorLength;
  if (bytes.length !== length) {
    throw malformed(`it has ${bytes.length} bytes, its header says ${length}`);
  }
  const nvme = bytes.subarray(CONTROLLER_STATE_HEADER_LENGTH, vendorStart);
  return {
    version,
    suspended,
    nvme: nvmeLength === 0 ? null : decodeIoQueues(nvme),
    // Not `slice`: that of a Buffer shares its memory.
    vendor: new Uint8Array(bytes.subarray(vendorStart)),
  };
}

/** Reads the first 48 bytes. @throws DevstateError as `decodeControllerState` */
export function decodeControllerStateHeader(bytes: Uint8Array): ControllerStateHeader {
  if (bytes.length < CONTROLLER_STATE_HEADER_LENGTH) {
    throw malformed(`it has ${bytes.length} bytes, its header alone ${CONTROLLER_STATE_HEADER_LENGTH}`);
  }
  const header = bufferOf(bytes);
  const version = knownVersion('the structure', header.readUInt16LE(Header.version));
  const attributes = header[Header.attributes]!;
  if (attributes > 1) throw malformed(`reserved bits of CSATTR are set (0x${attributes.toString(16)})`);
  checkZero(header.subarray(Header.reserved, Header.nvmeSize), 'bytes 3 to 15 of the header');
  return {
    version,
    suspended: attributes === 1,
    nvmeLength: lengthAt(header, Header.nvmeSize, 'NVMECSS'),
    vendorLength: lengthAt(header, Header.vendorSize, 'VSS'),
  };
}

/** Versions and counts from the first 8 bytes of an NVMe Controller State. @throws as `decodeControllerState` */
export function decodeIoQueuesHeader(bytes: Uint8Array): {
  version: number;
  submissionQueues: number;
  completionQueues: number;
} {
  if (bytes.length < NVME_STATE_HEADER_LENGTH) {
    throw malformed(`NVMECSS leaves ${bytes.length} bytes for a header of ${NVME_STATE_HEADER_LENGTH}`);
  }
  const header = bufferOf(bytes);
  const version = knownVersion('the NVMe Controller State', header.readUInt16LE(NvmeHeader.version));
  checkZero(header.subarray(NvmeHeader.reserved, NVME_STATE_HEADER_LENGTH), 'bytes 6 and 7 of it');
  return {
    version,
    submissionQueues: header.readUInt16LE(NvmeHeader.submissionQueues),
    completionQueues: header.readUInt16LE(NvmeHeader.completionQueues),
  };
}

/** @param bytes 24 of them. @throws as `decodeControllerState` */
export function decodeIoSubmissionQueue(bytes: Uint8Array): NvmeIoSubmissionQueue {
  const entry = bufferOf(bytes);
  const id = entry.readUInt16LE(SubmissionQueue.id);
  const attributes = entry.readUInt16LE(SubmissionQueue.attributes);
  if (attributes > 7) {
    throw malformed(`submission queue ${id}: reserved attributes are set (0x${attributes.toString(16)})`);
  }
  checkZero(entry.subarray(SubmissionQueue.reserved, IO_QUEUE_LENGTH), `the end of submission queue ${id}`);
  return {
    prp1: addressAt(entry, SubmissionQueue.prp1, `submission queue ${id}`),
    qsize: entry.readUInt16LE(SubmissionQueue.qsize),
    id,
    completionQueue: entry.readUInt16LE(SubmissionQueue.completionQueue),
    head: entry.readUInt16LE(SubmissionQueue.head),
    tail: entry.readUInt16LE(SubmissionQueue.tail),
    physicallyContiguous: (attributes & 1) !== 0,
    priority: attributes >> 1,
  };
}

/** @param bytes 24 of them. @throws as `decodeControllerState` */
export function decodeIoCompletionQueue(bytes: Uint8Array): NvmeIoCompletionQueue {
  const entry = bufferOf(bytes);
  const id = entry.readUInt16LE(CompletionQueue.id);
  const attributes = entry.readUInt32LE(CompletionQueue.attributes);
  if ((attributes & 0xfff8) !== 0) {
    throw malformed(`completion queue ${id}: reserved attributes are set (0x${attributes.toString(16)})`);
  }
  checkZero(entry.subarray(CompletionQueue.reserved, IO_QUEUE_LENGTH), `the end of completion queue ${id}`);
  return {
    prp1: addressAt(entry, CompletionQueue.prp1, `completion queue ${id}`),
    qsize: entry.readUInt16LE(CompletionQueue.qsize),
    id,
    head: entry.readUInt16LE(CompletionQueue.head),
    tail: entry.readUInt16LE(CompletionQueue.tail),
    physicallyContiguous: (attributes & 1) !== 0,
    interruptsEnabled: (attributes & 2) !== 0,
    vector: attributes >>> 16,
    slot0Phase: (attributes >> 2) & 1,
  };
}

/** A whole NVMe Controller State. @throws as `decodeControllerState` */
export function decodeIoQueues(bytes: Uint8Array): NvmeIoQueues {
  const { version, submissionQueues, completionQueues } = decodeIoQueuesHeader(bytes);
  const length = NVME_STATE_HEADER_LENGTH + (submissionQueues + completionQueues) * IO_QUEUE_LENGTH;
  if (length !== bytes.length) {
    throw malformed(
      `NVMECSS is ${bytes.length} bytes, ${submissionQueues} submission and ${completionQueues} completion queues take ${length}`,
    );
  }
  const entry = (index: number) => {
    const start = NVME_STATE_HEADER_LENGTH + index * IO_QUEUE_LENGTH;
    return bytes.subarray(start, start + IO_QUEUE_LENGTH);
  };
  return {
    version,
    submissionQueues: Array.from({ length: submissionQueues }, (_, index) =>
      decodeIoSubmissionQueue(entry(index)),
    ),
    completionQueues: Array.from({ length: completionQueues }, (_, index) =>
      decodeIoCompletionQueue(entry(submissionQueues + index)),
    ),
  };
}

function encodeIoQueues({ version, submissionQueues, completionQueues }: NvmeIoQueues): Uint8Array {
  const count = submissionQueues.length + completionQueues.length;
  const bytes = Buffer.alloc(NVME_STATE_HEADER_LENGTH + count * IO_QUEUE_LENGTH);
  const u16 = (what: string, value: number, offset: number) =>
    bytes.writeUInt16LE(checked(what, value, U16_MAX), offset);
  u16('version', version, NvmeHeader.version);
  bytes.writeUInt16LE(checked('submissionQueues.length', submissionQueues.length, QUEUES_MAX), 2);
  bytes.writeUInt16LE(checked('completionQueues.length', completionQueues.length, QUEUES_MAX), 4);
  let at = NVME_STATE_HEADER_LENGTH;
  for (const queue of submissionQueues) {
    writeAddress(bytes, queue.prp1, at + SubmissionQueue.prp1);
    u16('qsize', queue.qsize, at + SubmissionQueue.qsize);
    u16('id', queue.id, at + SubmissionQueue.id);
    u16('completionQueue', queue.completionQueue, at + SubmissionQueue.completionQueue);
    const priority = checked('priority', queue.priority, 3);
    bytes.writeUInt16LE((priority << 1) | bit(queue.physicallyContiguous), at + SubmissionQueue.attributes);
    u16('head', queue.head, at + SubmissionQueue.head);
    u16('tail', queue.tail, at + SubmissionQueue.tail);
    at += IO_QUEUE_LENGTH;
  }
  for (const queue of completionQueues) {
    writeAddress(bytes, queue.prp1, at + CompletionQueue.prp1);
    u16('qsize', queue.qsize, at + CompletionQueue.qsize);
    u16('id', queue.id, at + CompletionQueue.id);
    u16('head', queue.head, at + CompletionQueue.head);
    u16('tail', queue.tail, at + CompletionQueue.tail);
    const flags =
      bit(queue.physicallyContiguous) |
      (bit(queue.interruptsEnabled) << 1) |
      (checked('slot0Phase', queue.slot0Phase, 1) << 2);
    bytes.writeUInt16LE(flags, at + CompletionQueue.attributes);
    u16('vector', queue.vector, at + CompletionQueue.attributes + 2);
    at += IO_QUEUE_LENGTH;
  }
  return bytes;
}

function plain(bytes: Buffer): Uint8Array {
  return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length);
}

function bufferOf(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
}

function bit(value: boolean): number {
  return value ? 1 : 0;
}

/** A 16-byte number of dwords, in bytes. */
function lengthAt(header: Buffer, offset: number, name: string): number {
  const length = Number(header.readBigUInt64LE(offset)) * DWORD;
  if (header.readBigUInt64LE(offset + 8) !== 0n || !Number.isSafeInteger(length)) {
    throw malformed(`${name} is beyond 2^53 bytes`);
  }
  return length;
}

function addressAt(entry: Buffer, offset: number, of: string): number {
  const address = Number(entry.readBigUInt64LE(offset));
  if (!Number.isSafeInteger(address)) throw malformed(`${of}: PRP1 is 2^53 or more`);
  return address;
}

function writeAddress(bytes: Buffer, address: number, offset: number): void {
  bytes.writeBigUInt64LE(BigInt(checked('prp1', address, Number.MAX_SAFE_INTEGER)), offset);
}

function checkZero(bytes: Uint8Array, what: string): void {
  if (bytes.some((byte) => byte !== 0)) throw malformed(`${what}, which are reserved, are not zero`);
}

function knownVersion(of: string, version: number): number {
  if (CONTROLLER_STATE_VERSIONS.includes(version)) return version;
  throw new DevstateError(
    'DEVSTATE_E_FORMAT_VERSION',
    `${of} is version ${version}, this reader knows ${CONTROLLER_STATE_VERSIONS.join(' and ')}: update devstate`,
  );
}

function checked(name: string, value: number, maximum: number): number {
  if (Number.isInteger(value) && value >= 0 && value <= maximum) return value;
  throw unfit(`${name} is ${value}, not a whole number up to ${maximum}`);
}

function malformed(what: string): DevstateError {
  return new DevstateError('DEVSTATE_E_STATE_RECORD', `not an NVMe Controller State data structure: ${what}`);
}

function unfit(what: string): DevstateError {
  return new DevstateError(
    'DEVSTATE_E_STATE_VALUE',
    `no NVMe Controller State data structure can hold this: ${what}`,
  );
}
