// SPDX-License-Identifier: Apache-2.0
/** A state format of many records: memory in chunks that pre-copy sends while they change, and registers at the end. */

import type { SaveRound, StateFormat, StateLoader, StateRecord } from '../../src/device/index.js';
import { FORMAT_RECORD_TYPES, parseUuid } from '../../src/formats/index.js';
import { Errno, RequestError } from '../../src/wire/index.js';

const CHUNK = FORMAT_RECORD_TYPES + 1;
const REGISTERS = FORMAT_RECORD_TYPES + 2;
const REMARK = FORMAT_RECORD_TYPES + 3;

export interface ScratchStateOptions {
  /** Bytes of memory. */
  readonly size: number;
  /** Bytes in one record of it. */
  readonly chunk: number;
  /** Called at each named step; what it throws, that step throws. */
  readonly hook: (step: string) => void | Promise<void>;
}

export class ScratchState implements StateFormat {
  readonly uuid = parseUuid('6f0b2b52-2b0e-4f3c-9f62-0c7f5a1d8e11');
  readonly name = 'org.devstate.test.scratch';
  readonly version = { major: 1, minor: 0 };
  memory: Uint8Array;
  registers = new Uint8Array(16);
  /** Bytes of payload that sessions have pulled so far. */
  yielded = 0;
  commits = 0;
  /** None, unless a test gives it some. */
  practice?: () => Iterable<StateRecord>;
  readonly #options: ScratchStateOptions;
  /** Chunks that have changed since they were last sent. */
  readonly #dirty = new Set<number>();

  constructor(options: ScratchStateOptions) {
    this.#options = options;
    this.memory = new Uint8Array(options.size);
    this.touchAll();
  }

  touchAll(): void {
    for (let i = 0; i * this.#options.chunk < this.#options.size; i++) this.#dirty.add(i);
  }

  write(offset: number, data: Uint8Array): void {
    this.memory.set(data, offset);
    const { chunk } = this.#options;
    for (let i = Math.floor(offset / chunk); i * chunk < offset + data.length; i++) this.#dirty.add(i);
  }

  begin(): void {
    this.touchAll();
  }

  async *save(round: SaveRound): AsyncGenerator<StateRecord> {
    await this.#options.hook(`save ${round}`);
    const { chunk } = this.#options;
    for (const index of [...this.#dirty]) {
      const data = this.memory.subarray(index * chunk, (index + 1) * chunk);
      const payload = new Uint8Array(4 + data.length);
      new DataView(payload.buffer).setUint32(0, index, true);
      payload.set(data, 4);
      this.#dirty.delete(index);
      this.yielded += payload.length;
      yield { type: CHUNK, payload };
      await this.#options.hook('saved a chunk');
    }
    if (round === 'pre-copy') return;
    yield { type: REMARK, optional: true, payload: new Uint8Array(0) };
    yield { type: REGISTERS, payload: this.registers.slice() };
  }

  estimate(): number {
    return this.#dirty.size * this.#options.chunk + this.registers.length;
  }

  load(): StateLoader {
    const memory = new Uint8Array(this.#options.size);
    const { chunk } = this.#options;
    const missing = new Set(Array.from({ length: Math.ceil(memory.length / chunk) }, (_, i) => i));
    let registers: Uint8Array<ArrayBuffer> | undefined;
    return {
      record: ({ type, optional, payload }) => {
        if (type === REGISTERS) registers = new Uint8Array(payload);
        else if (type === CHUNK) {
          const index = new DataView(payload.buffer, payload.byteOffset, payload.length).getUint32(0, true);
          if (index * chunk + payload.length - 4 > memory.length)
            throw new RequestError(Errno.EINVAL, `chunk ${index} does not exist`);
          memory.set(payload.subarray(4), index * chunk);
          missing.delete(index);
        } else if (optional !== true) throw new RequestError(Errno.EINVAL, `record ${type}`);
      },
      commit: async () => {
        await this.#options.hook('commit');
        if (registers === undefined || missing.size > 0)
          throw new RequestError(Errno.EINVAL, 'the state is not all there');
        this.memory = memory;
        this.registers = registers;
        this.commits++;
        this.touchAll();
      },
    };
  }
}
