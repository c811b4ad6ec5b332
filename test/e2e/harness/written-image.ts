// SPDX-License-Identifier: Apache-2.0
/**
 * Compares a disk image with what the guest's `blockwriter` says it wrote. The layout of a block is defined in
 * test/e2e/guest/blockwriter.c: every block names its sequence number, its position and its checksum.
 */
import { open } from 'node:fs/promises';

const BLOCK_BYTES = 4096;
const MAGIC = 0x6b6c62737665640an;
const CRC_OFFSET = 28;

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, index) => {
  let value = index;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

/** CRC-32 (the one of zlib), as blockwriter prints it in `hash` and `rehash` lines. */
export function crc32(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 0xff]! ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** What blockwriter's `done <last> <first> <errors>` line says. */
export interface WrittenRange {
  /** Sequence number of the last block written. */
  readonly last: number;
  /** Sequence number of the oldest block that is still there. */
  readonly first: number;
}

/**
 * Reads every block that must be on the image and says what is wrong with it, one line per bad block; empty if all is
 * as the guest said.
 *
 * @param blocks BLOCKS of blockwriter's command line: positions in use
 */
export async function checkWrittenImage(
  path: string,
  blocks: number,
  range: WrittenRange,
): Promise<string[]> {
  const problems: string[] = [];
  const file = await open(path);
  try {
    const block = Buffer.alloc(BLOCK_BYTES);
    for (let sequence = range.first; sequence <= range.last; sequence++) {
      const position = sequence % blocks;
      const { bytesRead } = await file.read(block, 0, BLOCK_BYTES, position * BLOCK_BYTES);
      const problem = bytesRead < BLOCK_BYTES ? 'beyond the end' : checkBlock(block, sequence, position);
      if (problem !== undefined) problems.push(`block ${sequence} at position ${position}: ${problem}`);
    }
  } finally {
    await file.close();
  }
  return problems;
}

function checkBlock(block: Buffer, sequence: number, position: number): string | undefined {
  if (block.readBigUInt64LE(0) !== MAGIC) return 'never written';
  if (block.readBigUInt64LE(8) !== BigInt(sequence)) return `holds block ${block.readBigUInt64LE(8)}`;
  if (block.readBigUInt64LE(16) !== BigInt(position))
    return `was meant for position ${block.readBigUInt64LE(16)}`;
  const stored = block.readUInt32LE(CRC_OFFSET);
  block.writeUInt32LE(0, CRC_OFFSET);
  return crc32(block) === stored ? undefined : 'checksum wrong';
}
