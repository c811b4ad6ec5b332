// SPDX-License-Identifier: Apache-2.0
/** The v1 region in front of a device of v2: registers, transitions and the arcs behind them, what failures leave, chunks. */

import t from 'tap';
import { DATA_OFFSET, RegionFront } from '../../../src/migration/index.js';
import {
  DeviceState,
  deviceStateName,
  Errno,
  MigrationState,
  migrationStateName,
  RequestError,
  readU64,
  writeU64,
} from '../../../src/wire/index.js';
import { TestLifeCycle } from './life-cycle-model.js';

const { STOP, RUNNING, STOP_COPY, PRE_COPY, RESUMING, ERROR } = DeviceState;
const STATE = 0;
const RESERVED = 4;
const PENDING = 8;
const OFFSET = 16;
const SIZE = 24;
const SECTION = 8;

/** A region as its client sees it: what each access answers, or the errno it is refused with. */
class Region {
  readonly device: TestLifeCycle;
  readonly front: RegionFront;
  readonly section = new Uint8Array(SECTION);

  constructor(flags = 7, shared = false) {
    this.device = new TestLifeCycle(flags);
    this.front = new RegionFront(this.device, { size: SECTION, shared, bytes: () => this.section });
  }

  async raw(offset: number, length: number): Promise<Uint8Array | number> {
    const target = new Uint8Array(length).fill(0xee);
    const errno = await errnoOf(async () => this.front.read(offset, target));
    return errno === 0 ? target : -errno;
  }

  /** The register's value, or the negative errno. */
  async read(register: number): Promise<number> {
    const bytes = await this.raw(register, register < 8 ? 4 : 8);
    if (typeof bytes === 'number') return bytes;
    const view = new DataView(bytes.buffer);
    return bytes.length === 4 ? view.getUint32(0, true) : readU64(view, 0);
  }

  /** 0, or the negative errno. */
  async write(register: number, value: number): Promise<number> {
    const bytes = new Uint8Array(register < 8 ? 4 : 8);
    const view = new DataView(bytes.buffer);
    if (bytes.length === 4) view.setUint32(0, value, true);
    else writeU64(view, 0, value);
    return -(await errnoOf(async () => this.front.write(register, bytes))) + 0;
  }

  /** A whole chunk, by the book; undefined when nothing is pending. */
  async chunk(): Promise<number[] | undefined> {
    if ((await this.read(PENDING)) === 0) return undefined;
    const offset = await this.read(OFFSET);
    const bytes = await this.raw(offset, await this.read(SIZE));
    if (typeof bytes === 'number') throw new Error(`errno ${-bytes}`);
    return [...bytes];
  }

  /** Brings the device to a state by legal writes. */
  async goTo(state: DeviceState): Promise<void> {
    if (state === ERROR) {
      await this.write(STATE, RESUMING);
      this.device.hook = () => TestLifeCycle.broken();
      await this.write(STATE, RUNNING);
      this.device.hook = () => {};
    } else if (state !== RUNNING) await this.write(STATE, state);
    if ((await this.read(STATE)) !== state) throw new Error(`not in ${deviceStateName(state)}`);
    this.device.takeArcs();
  }
}

async function errnoOf(work: () => Promise<unknown>): Promise<number> {
  try {
    await work();
    return 0;
  } catch (error) {
    if (error instanceof RequestError) return error.errno;
    throw error;
  }
}

const STATES = Object.values(DeviceState);
const short: Record<string, string> = {
  RUNNING: 'R',
  RUNNING_P2P: 'Rp',
  STOP: 'S',
  STOP_COPY: 'SC',
  RESUMING: 'L',
  PRE_COPY: 'P',
  PRE_COPY_P2P: 'Pp',
};
const path = (arcs: readonly string[]): string =>
  arcs.length === 0 ? '-' : arcs.map((arc) => short[arc.split(' ')[1]!]).join('>');

/** Arcs of the device for each legal write; `.` where it is EINVAL. Columns: 000 001 010 011 100. */
const ARCS: Record<string, readonly (readonly [from: DeviceState, row: string])[]> = {
  'with P2P and pre-copy': [
    [STOP, '     -        Rp>R         SC       .  .'],
    [RUNNING, '  Rp>S     -            Rp>S>SC  P  Rp>S>L'],
    [STOP_COPY, 'S        S>Rp>R       -        .  .'],
    [PRE_COPY, ' .        R            Pp>SC    -  .'],
    [RESUMING, ' .        S>Rp>R       .        .  -'],
    [ERROR, '    .        .            .        .  .'],
  ],
  'without either': [
    [STOP, '     -        R            SC       .  .'],
    [RUNNING, '  S        -            S>SC     -  S>L'],
    [STOP_COPY, 'S        S>R          -        .  .'],
    [PRE_COPY, ' .        -            S>SC     -  .'],
    [RESUMING, ' .        S>R          .        .  -'],
    [ERROR, '    .        .            .        .  .'],
  ],
};

for (const [what, flags] of [
  ['with P2P and pre-copy', 7],
  ['without either', 1],
] as const) {
  t.test(`every state × every value, a device ${what}`, async (t) => {
    for (const [from, row] of ARCS[what]!) {
      const cells = [...row.trim().split(/\s+/), '.', '.', '.'];
      for (const [written, cell] of cells.entries()) {
        const region = new Region(flags);
        await region.goTo(from);
        const name = `${deviceStateName(from)} ← ${written.toString(2)}`;
        t.equal(await region.write(STATE, written), cell === '.' ? -Errno.EINVAL : 0, name);
        t.equal(path(region.device.takeArcs()), cell === '.' ? '-' : cell, `${name}: arcs`);
        t.equal(await region.read(STATE), cell === '.' ? from : written, `${name}: state`);
        t.equal(await region.write(STATE, written | 8), -Errno.EINVAL, 'reserved bits');
      }
    }
  });

  t.test(`every arc failing, a device ${what}: the previous state or ERROR`, async (t) => {
    let failures = 0;
    for (const [from, row] of ARCS[what]!) {
      for (const [written, cell] of row.trim().split(/\s+/).entries()) {
        const arcs = cell === '.' || cell === '-' ? 0 : cell.split('>').length;
        for (let failing = 0; failing < arcs; failing++) {
          for (const undoing of ['works', 'fails', 'broken'] as const) {
            const region = new Region(flags);
            await region.goTo(from);
            let step = 0;
            region.device.hook = () => {
              const at = step++;
              if (at === failing && undoing === 'broken') TestLifeCycle.broken();
              if (at === failing || (at > failing && undoing === 'fails'))
                throw new RequestError(Errno.ENOSPC, 'no');
            };
            const name = `${deviceStateName(from)} → ${written.toString(2)}, arc ${failing} (undoing ${undoing})`;
            t.equal(await region.write(STATE, written), -Errno.ENOSPC, name);
            // Nothing is to be undone of the first arc; of a load that was taken, nothing can.
            const spent = from === RESUMING && failing > 0;
            const left = undoing === 'broken' || spent || (undoing === 'fails' && failing > 0) ? ERROR : from;
            t.equal(await region.read(STATE), left, `${name}: left in`);
            failures++;
            if (left !== ERROR) continue;
            t.equal(await region.read(PENDING), -Errno.EIO);
            t.equal(await region.write(STATE, RUNNING), -Errno.EINVAL, 'only a reset helps');
            region.device.reset();
            t.equal(await region.read(STATE), RUNNING);
          }
        }
      }
    }
    t.ok(failures > 20);
  });
}

t.test('P2P states are not seen', async (t) => {
  for (const [state, seen] of [
    [MigrationState.RUNNING_P2P, RUNNING],
    [MigrationState.PRE_COPY_P2P, PRE_COPY],
  ] as const) {
    const region = new Region();
    await region.device.setState(state);
    t.equal(await region.read(STATE), seen);
    t.equal(await region.write(STATE, seen), 0);
    t.equal(region.device.runs, true, `${migrationStateName(state)}: written back, it runs`);
  }
});

t.test('widths and alignments', async (t) => {
  const registers = new Map([
    [STATE, 4],
    [RESERVED, 4],
    [PENDING, 8],
    [OFFSET, 8],
    [SIZE, 8],
  ]);
  for (let offset = 0; offset <= 40; offset++) {
    for (const length of [1, 2, 3, 4, 8, 12, 16, 32]) {
      const region = new Region();
      region.device.final = [1];
      await region.goTo(STOP_COPY);
      await region.read(PENDING);
      await region.read(OFFSET);
      const found = await region.raw(offset, length);
      const legal = registers.get(offset) === length;
      if (typeof found === 'number' ? legal || found !== -Errno.EINVAL : !legal)
        t.fail(`a read of ${length} bytes at ${offset}`);
      if (!legal) {
        const errno = await errnoOf(async () => region.front.write(offset, new Uint8Array(length)));
        if (errno !== Errno.EINVAL) t.fail(`a write of ${length} bytes at ${offset}`);
      }
    }
  }
  const region = new Region();
  for (const [offset, length] of [
    [32, 8],
    [4095, 1],
    [4092, 8],
    [DATA_OFFSET + SECTION, 1],
    [DATA_OFFSET + SECTION - 1, 2],
    [DATA_OFFSET - 1, 1],
    [0, DATA_OFFSET + SECTION],
  ] as const)
    t.equal(await region.raw(offset, length), -Errno.EINVAL, `${length} at ${offset}`);
});

t.test('what each register takes, in each state', async (t) => {
  const writable: [DeviceState, number[]][] = STATES.map((state) => [state, [RESERVED]]);
  for (const [state, taken] of writable) {
    const region = new Region();
    await region.goTo(state);
    t.equal(await region.read(RESERVED), 0);
    for (const register of [RESERVED, PENDING, OFFSET, SIZE]) {
      const errno = await region.write(register, 0);
      const io = state === ERROR && register === SIZE;
      t.equal(
        errno,
        taken.includes(register) ? 0 : io ? -Errno.EIO : -Errno.EINVAL,
        `${deviceStateName(state)}: register ${register}`,
      );
    }
    const pending = await region.read(PENDING);
    t.equal(pending, state === ERROR ? -Errno.EIO : 0, 'nothing is pending');
    if (state !== RESUMING) {
      const refused = state === ERROR ? -Errno.EIO : -Errno.EINVAL;
      t.equal(await region.read(OFFSET), refused);
      t.equal(await region.read(SIZE), refused);
      t.equal(await region.raw(DATA_OFFSET, 1), refused, 'no data');
    }
  }
});

t.test('one chunk after the other', async (t) => {
  const region = new Region();
  const { device } = region;
  await region.goTo(PRE_COPY);
  device.stream = [1, 2, 3, 4, 5, 6, 7, 8, 9];
  t.equal(await region.read(PENDING), 9, 'the chunk and what comes after it');
  t.equal(await region.read(PENDING), 9, 'again, without effect');
  t.equal(await region.read(SIZE), -Errno.EINVAL, 'not before data_offset');
  t.equal(await region.raw(DATA_OFFSET, 1), -Errno.EINVAL);
  t.equal(device.reads, 1);
  t.equal(await region.read(OFFSET), DATA_OFFSET);
  t.equal(await region.read(PENDING), 9, 'a client that does not know its size has not taken the chunk');
  t.equal(await region.read(OFFSET), DATA_OFFSET, 'the same');
  t.equal(await region.read(SIZE), 8);
  t.equal(await region.read(SIZE), 8);
  t.strictSame(await region.raw(DATA_OFFSET, 8), Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8));
  t.strictSame(await region.raw(DATA_OFFSET + 3, 2), Uint8Array.of(4, 5), 'in pieces, and again');
  t.equal(device.reads, 1);
  t.equal(await region.read(PENDING), 1, 'taken');
  t.equal(device.reads, 2);
  await region.read(OFFSET);
  t.equal(await region.read(SIZE), 1);
  t.equal(await region.raw(DATA_OFFSET, 2), -Errno.EINVAL, 'beyond the chunk');
  t.equal(await region.read(PENDING), 0);
  t.equal(await region.read(OFFSET), -Errno.EINVAL, 'nothing there');
  device.stream = [10];
  t.strictSame(await region.chunk(), [10], 'in PRE_COPY there may be more later');
});

t.test('from PRE_COPY to STOP_COPY with a chunk under way, at each step of it', async (t) => {
  for (const steps of [0, 1, 2, 3]) {
    const region = new Region();
    await region.goTo(PRE_COPY);
    region.device.stream = [1, 2];
    region.device.final = [3, 4];
    for (const register of [PENDING, OFFSET, SIZE].slice(0, steps)) await region.read(register);
    t.equal(await region.write(STATE, STOP_COPY), 0);
    const chunks: number[][] = [];
    for (let chunk = await region.chunk(); chunk !== undefined; chunk = await region.chunk())
      chunks.push(chunk);
    const all = chunks.flat();
    // Of a chunk whose size it was told the client has the data, or does not want them.
    t.strictSame(all, steps === 3 ? [3, 4] : [1, 2, 3, 4], `after ${steps} steps`);
    t.equal(await region.read(PENDING), 0, 'the end stays the end');
  }
});

t.test('a device without pre-copy: PRE_COPY has nothing, STOP_COPY everything', async (t) => {
  const region = new Region(1);
  region.device.final = [1, 2, 3];
  t.equal(await region.write(STATE, PRE_COPY), 0);
  t.equal(region.device.state, MigrationState.RUNNING);
  t.equal(await region.read(PENDING), 0);
  t.equal(await region.read(OFFSET), -Errno.EINVAL);
  t.equal(await region.write(STATE, STOP_COPY), 0);
  t.strictSame(await region.chunk(), [1, 2, 3]);
  t.equal(await region.write(STATE, STOP), 0);
  t.equal(await region.write(STATE, RUNNING), 0);
  await region.write(STATE, PRE_COPY);
  region.device.reset();
  t.equal(await region.read(STATE), RUNNING, 'a reset ends it');
});

t.test(
  'a reset in the middle, by whomever: the chunk is gone, and so is the saving or loading',
  async (t) => {
    for (const state of [PRE_COPY, STOP_COPY]) {
      for (const steps of [0, 1, 2, 3]) {
        const region = new Region();
        await region.goTo(state);
        region.device.stream = [1, 2];
        for (const register of [PENDING, OFFSET, SIZE].slice(0, steps)) await region.read(register);
        region.device.reset();
        t.equal(await region.read(STATE), RUNNING);
        t.equal(await region.raw(DATA_OFFSET, 1), -Errno.EINVAL);
        t.equal(await region.read(OFFSET), -Errno.EINVAL);
        await region.write(STATE, state);
        t.equal(await region.chunk(), undefined, 'nothing of the old');
      }
    }
    const region = new Region();
    await region.goTo(RESUMING);
    await region.read(OFFSET);
    region.device.reset();
    await region.write(STATE, RESUMING);
    t.equal(await region.write(DATA_OFFSET, 1), -Errno.EINVAL, 'data_offset is to be read again');
  },
);

for (const shared of [false, true]) {
  t.test(`loading, ${shared ? 'mapped' : 'trapped'}`, async (t) => {
    const region = new Region(7, shared);
    const { device } = region;
    await region.goTo(RESUMING);
    const data = (at: number, ...bytes: number[]) =>
      errnoOf(async () => region.front.write(DATA_OFFSET + at, Uint8Array.from(bytes)));
    t.equal(await data(0, 1), Errno.EINVAL, 'data before data_offset');
    t.equal(await region.write(SIZE, 1), -Errno.EINVAL, 'and data_size');
    t.equal(await region.read(SIZE), 0);
    t.equal(await region.read(OFFSET), DATA_OFFSET);
    t.equal(await data(0, 1, 2, 3), 0);
    t.equal(await data(3, 4), 0, 'in pieces');
    t.equal(await region.raw(DATA_OFFSET, 1), -Errno.EINVAL, 'not to be read back');
    t.equal(await region.read(OFFSET), DATA_OFFSET, 'again, without effect');
    t.equal(await region.write(SIZE, SECTION + 1), -Errno.EINVAL, 'more than there is room for');
    t.strictSame(device.loaded, []);
    t.equal(await region.write(SIZE, 4), 0);
    t.strictSame(device.loaded, [1, 2, 3, 4]);
    t.equal(await region.read(SIZE), 4);
    t.equal(await region.write(SIZE, 4), -Errno.EINVAL, 'not twice');
    t.equal(await data(0, 9), Errno.EINVAL);
    await region.read(OFFSET);
    t.equal(await region.write(SIZE, 0), 0, 'a chunk of nothing');
    await region.read(OFFSET);
    await data(0, 5);
    t.equal(await region.write(SIZE, 1), 0);
    t.equal(await region.write(STATE, RUNNING), 0);
    t.strictSame(device.committed, [1, 2, 3, 4, 5]);
  });
}

t.test('what the device refuses comes to the access that caused it', async (t) => {
  const region = new Region();
  await region.goTo(STOP_COPY);
  region.device.read = async () => {
    throw new RequestError(Errno.ENODATA, 'gone');
  };
  t.equal(await region.read(PENDING), -Errno.ENODATA);
  t.equal(await region.read(OFFSET), -Errno.EINVAL);
  await region.write(STATE, RUNNING);
  await region.write(STATE, RESUMING);
  region.device.write = () => {
    throw new RequestError(Errno.ENODATA, 'wrong');
  };
  await region.read(OFFSET);
  t.equal(await region.write(SIZE, 1), -Errno.ENODATA);
  t.equal(await region.read(STATE), RESUMING);
});
