// SPDX-License-Identifier: Apache-2.0
/**
 * Any sequence of legal and illegal accesses to the v1 region, against a model of its own: what each access answers,
 * which state the device is in, that a chunk is staged once, and that none is lost or comes twice.
 */

import fc from 'fast-check';
import t from 'tap';
import { DATA_OFFSET, RegionFront } from '../../../src/migration/index.js';
import { Errno, RequestError, readU64, writeU64 } from '../../../src/wire/index.js';
import { TestLifeCycle } from './life-cycle-model.js';

const SECTION = 4;

type Step =
  | { readonly kind: 'read'; readonly offset: number; readonly length: number }
  | { readonly kind: 'write'; readonly offset: number; readonly length: number; readonly value: number }
  | { readonly kind: 'produce'; readonly count: number }
  | { readonly kind: 'reset' };

/**
 * The text of the kernel, as short as it can be said. Bytes of the stream are numbered from 1, so that a byte that comes
 * twice or never shows.
 */
class Model {
  constructor(readonly shared: boolean) {}

  state = 1;
  /** Of the saving: produced by the device, and not yet in a chunk. */
  stream: number[] = [];
  /** The chunk at hand; empty for none. */
  chunk: number[] = [];
  known = false;
  staged = false;
  sized = false;
  placed = false;
  section: number[] = Array(SECTION).fill(0);
  loadedSize = 0;
  loaded: number[] = [];

  #begin(): void {
    Object.assign(this, { stream: [], chunk: [], known: false, staged: false, sized: false, placed: false });
    this.loadedSize = 0;
  }

  reset(): void {
    this.state = 1;
    this.#begin();
  }

  /** The value or bytes read, or a negative errno. */
  read(offset: number, length: number): number | number[] {
    const saves = this.state === 2 || this.state === 3;
    if (offset >= DATA_OFFSET && offset + length <= DATA_OFFSET + SECTION) {
      const at = offset - DATA_OFFSET;
      if (!saves || !this.staged || at + length > this.chunk.length) return -Errno.EINVAL;
      return this.chunk.slice(at, at + length);
    }
    switch (`${offset}+${length}`) {
      case '0+4':
        return this.state;
      case '4+4':
        return 0;
      case '8+8':
        if (!saves) return 0;
        if (!this.known || (this.staged && this.sized)) {
          this.chunk = this.stream.splice(0, SECTION);
          this.known = this.chunk.length > 0;
          this.staged = false;
          this.sized = false;
        }
        return this.known ? this.chunk.length + this.stream.length : 0;
      case '16+8':
        if (this.state === 4) this.placed = true;
        else if (!saves || !this.known) return -Errno.EINVAL;
        else {
          // The section keeps what was there where no one sees it.
          if (this.shared) this.section.splice(0, this.chunk.length, ...this.chunk);
          this.staged = true;
        }
        return DATA_OFFSET;
      case '24+8':
        if (this.state === 4) return this.loadedSize;
        if (!saves || !this.staged) return -Errno.EINVAL;
        this.sized = true;
        return this.chunk.length;
      default:
        return -Errno.EINVAL;
    }
  }

  /** 0 or a negative errno. */
  write(offset: number, length: number, value: number): number {
    if (offset >= DATA_OFFSET && offset + length <= DATA_OFFSET + SECTION) {
      if (this.state !== 4 || !this.placed) return -Errno.EINVAL;
      this.section.fill(value & 0xff, offset - DATA_OFFSET, offset - DATA_OFFSET + length);
      return 0;
    }
    switch (`${offset}+${length}`) {
      case '0+4':
        return this.#transition(value);
      case '4+4':
        return 0;
      case '24+8':
        if (this.state !== 4 || !this.placed || value > SECTION) return -Errno.EINVAL;
        this.placed = false;
        this.loadedSize = value;
        this.loaded.push(...this.section.slice(0, value));
        return 0;
      default:
        return -Errno.EINVAL;
    }
  }

  #transition(value: number): number {
    const legal: Record<number, number[]> = {
      0: [0, 1, 2],
      1: [0, 1, 2, 3, 4],
      2: [0, 1, 2],
      3: [1, 2, 3],
      4: [1, 4],
    };
    if (legal[this.state]?.includes(value) !== true) return -Errno.EINVAL;
    const goesOn = value === this.state || (this.state === 3 && value === 2);
    this.state = value;
    if (!goesOn) this.#begin();
    if (!goesOn && value === 4) this.loaded = [];
    return 0;
  }
}

const registers = fc.constantFrom([0, 4], [4, 4], [8, 8], [16, 8], [24, 8]);
const place = fc.oneof(
  { weight: 12, arbitrary: registers },
  {
    weight: 4,
    arbitrary: fc.tuple(
      fc.integer({ min: DATA_OFFSET - 1, max: DATA_OFFSET + SECTION }),
      fc.integer({ min: 1, max: 5 }),
    ),
  },
  { weight: 1, arbitrary: fc.tuple(fc.nat(40), fc.constantFrom(1, 2, 4, 8, 16)) },
);
const states = fc.oneof(fc.constantFrom(0, 1, 2, 3, 4), fc.constantFrom(5, 6, 7, 8, 9, 0xffffffff));
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 10,
    arbitrary: place.map(([offset = 0, length = 0]): Step => ({ kind: 'read', offset, length })),
  },
  {
    weight: 3,
    arbitrary: states.map((value): Step => ({ kind: 'write', offset: 0, length: 4, value })),
  },
  {
    weight: 4,
    arbitrary: fc
      .tuple(place, fc.nat(SECTION + 1))
      .map(([[offset = 0, length = 0], value]): Step => ({ kind: 'write', offset, length, value })),
  },
  {
    weight: 3,
    arbitrary: fc.integer({ min: 1, max: 10 }).map((count): Step => ({ kind: 'produce', count })),
  },
  { weight: 1, arbitrary: fc.constant<Step>({ kind: 'reset' }) },
);

async function attempt(access: () => void | Promise<void>): Promise<number> {
  try {
    await access();
    return 0;
  } catch (error) {
    if (error instanceof RequestError) return -error.errno;
    throw error;
  }
}

/** Plays a sequence on both, and says where they part. */
async function play(steps: readonly Step[], shared: boolean): Promise<void> {
  const device = new TestLifeCycle();
  const section = new Uint8Array(SECTION);
  const front = new RegionFront(device, { size: SECTION, shared, bytes: () => section });
  const model = new Model(shared);
  let produced = 0;
  for (const [i, one] of steps.entries()) {
    const fail = (what: string): never => {
      throw new Error(`step ${i}, ${JSON.stringify(one)}: ${what}`);
    };
    const readsBefore = device.reads;
    if (one.kind === 'reset') {
      device.reset();
      model.reset();
    } else if (one.kind === 'produce') {
      // As far as a device makes state: while it is saved.
      if (model.state !== 2 && model.state !== 3) continue;
      for (let n = 0; n < one.count; n++) {
        produced = (produced % 255) + 1;
        device.stream.push(produced);
        model.stream.push(produced);
      }
    } else if (one.kind === 'read') {
      const target = new Uint8Array(one.length);
      const errno = await attempt(() => front.read(one.offset, target));
      const expected = model.read(one.offset, one.length);
      const found = errno !== 0 ? errno : typeof expected === 'number' ? numberIn(target) : [...target];
      if (String(found) !== String(expected)) fail(`${found} instead of ${expected}`);
      if (one.offset !== 8 && device.reads !== readsBefore) fail('it fetched data');
    } else {
      const bytes = new Uint8Array(one.length);
      const view = new DataView(bytes.buffer);
      if (one.offset >= DATA_OFFSET) bytes.fill(one.value);
      else if (one.length === 4) view.setUint32(0, one.value, true);
      else if (one.length === 8) writeU64(view, 0, one.value);
      const errno = await attempt(() => front.write(one.offset, bytes));
      const expected = model.write(one.offset, one.length, one.value);
      if (errno !== expected) fail(`${errno} instead of ${expected}`);
    }
    if (front.deviceState !== model.state) fail(`state ${front.deviceState} instead of ${model.state}`);
    if (device.stream.length !== model.stream.length) fail('a chunk was taken too early or too late');
  }
  if (model.state === 4 && device.loaded.length !== model.loaded.length)
    throw new Error('a chunk was loaded twice');
}

function numberIn(bytes: Uint8Array): number {
  const view = new DataView(bytes.buffer);
  return bytes.length === 4 ? view.getUint32(0, true) : readU64(view, 0);
}

for (const shared of [false, true]) {
  t.test(`like the model, ${shared ? 'mapped' : 'trapped'}`, async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 60 }), (steps) => play(steps, shared)),
      { numRuns: 1500, seed: 11 },
    );
  });
}

t.test('one who keeps to the order, whatever else is tried in between, gets every byte once', async () => {
  const noise = fc.array(
    fc.constantFrom<Step>(
      { kind: 'read', offset: 8, length: 8 },
      { kind: 'read', offset: 0, length: 4 },
      { kind: 'read', offset: 0, length: 8 },
      { kind: 'read', offset: DATA_OFFSET, length: 1 },
      { kind: 'write', offset: 8, length: 8, value: 1 },
      { kind: 'write', offset: 24, length: 8, value: 1 },
      { kind: 'write', offset: DATA_OFFSET, length: 1, value: 1 },
      { kind: 'write', offset: 0, length: 4, value: 6 },
      { kind: 'write', offset: 0, length: 4, value: 4 },
    ),
    { maxLength: 4 },
  );
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.integer({ min: 1, max: 9 }), { maxLength: 8 }),
      fc.nat(20),
      fc.array(noise, { minLength: 1, maxLength: 40 }),
      async (rounds, atTheEnd, noises) => {
        const device = new TestLifeCycle();
        const section = new Uint8Array(SECTION);
        const front = new RegionFront(device, { size: SECTION, shared: false, bytes: () => section });
        const all: number[] = [];
        const produce = (count: number, into: number[]): void => {
          for (let i = 0; i < count; i++) {
            into.push((all.length % 255) + 1);
            all.push((all.length % 255) + 1);
          }
        };
        let turn = 0;
        /** Accesses that must not change anything: before the size is read, pending_bytes among them. */
        const disturb = async (told: boolean): Promise<void> => {
          for (const one of noises[turn++ % noises.length] ?? []) {
            if (one.kind === 'read' && !(told && one.offset === 8))
              await attempt(() => front.read(one.offset, new Uint8Array(one.length)));
            if (one.kind !== 'write') continue;
            const bytes = new Uint8Array(one.length);
            bytes[0] = one.value;
            if ((await attempt(() => front.write(one.offset, bytes))) === 0) throw new Error('taken');
          }
        };
        const register = async (offset: number): Promise<number> => {
          const bytes = new Uint8Array(8);
          await front.read(offset, bytes);
          return numberIn(bytes);
        };
        const taken: number[] = [];
        const drain = async (): Promise<void> => {
          while ((await register(8)) > 0) {
            await disturb(false);
            const offset = await register(16);
            await disturb(false);
            const bytes = new Uint8Array(await register(24));
            await disturb(true);
            await front.read(offset, bytes);
            taken.push(...bytes);
          }
        };
        await front.write(0, Uint8Array.of(3, 0, 0, 0));
        for (const count of rounds) {
          produce(count, device.stream);
          await drain();
        }
        produce(atTheEnd, device.final);
        await front.write(0, Uint8Array.of(2, 0, 0, 0));
        await drain();
        if (taken.join() !== all.join()) throw new Error(`[${taken}] of [${all}]`);
      },
    ),
    { numRuns: 500, seed: 12 },
  );
});
