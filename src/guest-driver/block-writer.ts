// SPDX-License-Identifier: Apache-2.0
/**
 * The program that the built-in guest runs: writes numbered, checksummed blocks and reads earlier ones back, several at a
 * time and without end, so that a block that is lost, torn, stale or misplaced cannot go unnoticed.
 *
 *     magic u32, crc32c u32 (of all that follows), position u32, number u32, then words that follow from both
 */

import { DevstateError } from '../errors.js';
import { native } from '../native/index.js';
import type { DmaBuffer } from './dma-buffer.js';
import type { NvmeDriver } from './nvme-driver.js';

export const BLOCK_BYTES = 4096;
const MAGIC = 0x64767362;
const CHECKED_FROM = 8;
/** Odd factors spread positions over the device, and every position gets its turn when their number is a power of two. */
const STRIDE = 7919;

export interface BlockWriterOptions {
  /** Blocks of 4096 bytes to use, from the start of the device. A power of two. */
  readonly blocks: number;
  /** Operations in flight. */
  readonly depth: number;
  /** One operation in so many reads an earlier block and checks it. Odd, so that it is not always the same positions' turn. Default 5. */
  readonly readEvery?: number;
}

export class BlockWriter {
  /** Number of the block that each position holds by the device's word; 0: never written. */
  readonly ledger: Uint32Array;
  /** Operations that have ended. */
  written = 0;
  verified = 0;
  /** Longest time that one operation took, ms. */
  longestMs = 0;
  readonly #driver: NvmeDriver;
  readonly #readEvery: number;
  readonly #busy = new Set<number>();
  readonly #workers: Promise<void>;
  #turn = 0;
  #number = 0;
  #stopping = false;
  /** Who waits for progress, and for how many operations. */
  #waiting: { goal: number; resolve: () => void }[] = [];

  /** Starts at once. */
  constructor(driver: NvmeDriver, options: BlockWriterOptions) {
    if (!Number.isInteger(Math.log2(options.blocks)) || options.depth >= options.blocks) {
      throw new RangeError(`${options.depth} operations in flight on ${options.blocks} blocks`);
    }
    this.#driver = driver;
    this.#readEvery = options.readEvery ?? 5;
    this.ledger = new Uint32Array(options.blocks);
    this.#workers = Promise.all(Array.from({ length: options.depth }, () => this.#work())).then(() => {});
    // Resolves those who wait for progress or for the end.
    this.#workers.catch(() => {});
  }

  get operations(): number {
    return this.written + this.verified;
  }

  async #work(): Promise<void> {
    const buffer = this.#driver.allocate(BLOCK_BYTES);
    while (!this.#stopping) {
      const turn = this.#turn++;
      const position = this.#free((turn * STRIDE) % this.ledger.length);
      this.#busy.add(position);
      const start = performance.now();
      if (turn % this.#readEvery === 0) await this.#check(position, buffer);
      else await this.#write(position, buffer);
      this.longestMs = Math.max(this.longestMs, performance.now() - start);
      this.#busy.delete(position);
      this.#tell();
    }
    buffer.free();
  }

  /** The first position from `position` on that no one else works on. */
  #free(position: number): number {
    while (this.#busy.has(position)) position = (position + 1) % this.ledger.length;
    return position;
  }

  async #write(position: number, buffer: DmaBuffer): Promise<void> {
    const number = ++this.#number;
    buffer.fill(blockContent(position, number));
    await this.#driver.write(this.#lba(position), buffer);
    this.ledger[position] = number;
    this.written++;
  }

  async #check(position: number, buffer: DmaBuffer): Promise<void> {
    await this.#driver.read(this.#lba(position), buffer);
    requireBlock(buffer.bytes(), position, this.ledger[position]!);
    this.verified++;
  }

  #lba(position: number): number {
    return position * (BLOCK_BYTES / this.#driver.namespace.blockSize);
  }

  #tell(): void {
    this.#waiting = this.#waiting.filter(({ goal, resolve }) => {
      if (this.operations < goal) return true;
      resolve();
      return false;
    });
  }

  /** Settles when `count` more operations have ended. @throws what an operation failed with */
  progress(count: number): Promise<void> {
    const goal = this.operations + count;
    const reached = new Promise<void>((resolve) => this.#waiting.push({ goal, resolve }));
    return Promise.race([reached, this.#workers]);
  }

  /** Lets what is in flight end, and flushes. @throws what an operation failed with */
  async stop(): Promise<void> {
    this.#stopping = true;
    await this.#workers;
    await this.#driver.flush();
  }

  /** Reads every position back and checks it; call it stopped. @returns blocks checked */
  async readBack(): Promise<number> {
    const buffer = this.#driver.allocate(BLOCK_BYTES);
    for (let position = 0; position < this.ledger.length; position++) await this.#check(position, buffer);
    buffer.free();
    return this.ledger.length;
  }

  /** Checks an image's content against the ledger; call it stopped. @returns blocks that had been written */
  checkImage(image: Uint8Array): number {
    let written = 0;
    this.ledger.forEach((number, position) => {
      requireBlock(image.subarray(position * BLOCK_BYTES, (position + 1) * BLOCK_BYTES), position, number);
      if (number > 0) written++;
    });
    return written;
  }
}

/** What is written to a position under a number. */
function blockContent(position: number, number: number): Uint8Array {
  const bytes = new Uint8Array(BLOCK_BYTES);
  const words = new Uint32Array(bytes.buffer);
  words[0] = MAGIC;
  words[2] = position;
  words[3] = number;
  for (let i = 4; i < words.length; i++) words[i] = Math.imul(number, 0x9e3779b1) ^ (position << 12) ^ i;
  words[1] = native.crc32c(bytes, CHECKED_FROM, BLOCK_BYTES - CHECKED_FROM, 0);
  return bytes;
}

function requireBlock(bytes: Uint8Array, position: number, number: number): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, BLOCK_BYTES);
  if (number === 0 && bytes.every((byte) => byte === 0)) return;
  const problem =
    view.getUint32(0, true) !== MAGIC
      ? 'holds no block'
      : native.crc32c(bytes, CHECKED_FROM, BLOCK_BYTES - CHECKED_FROM, 0) !== view.getUint32(4, true)
        ? 'is torn or damaged'
        : view.getUint32(8, true) !== position
          ? `holds the block of position ${view.getUint32(8, true)}`
          : view.getUint32(12, true) !== number
            ? `holds number ${view.getUint32(12, true)}`
            : undefined;
  if (problem !== undefined) {
    throw new DevstateError(
      'DEVSTATE_E_GUEST_DATA',
      `position ${position} should hold number ${number} and ${problem}`,
    );
  }
}
