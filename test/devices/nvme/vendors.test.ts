// SPDX-License-Identifier: Apache-2.0
/** A guest cannot tell the vendors apart: the same accesses and commands to each give the same bytes. */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import {
  type CommandFields,
  type Completion,
  createRig,
  DATA,
  Guest,
  imageFolder,
  type MemoryKind,
  PAGE,
  type Rig,
  type RigOptions,
  VENDORS,
} from './rig.js';

const CC = 0x14;
const CSTS = 0x1c;
const ALL_NAMESPACES = 0xffffffff;
/** What no command writes to but by itself. */
const OUTPUT = DATA;
const OUTPUT_SIZE = 16 * PAGE;
const DISK_SIZE = 2 ** 20;

/** Memory of one guest each, which is large and so used again by every pair of controllers. */
const guests = VENDORS.map(() => new Guest());

/** One controller of each vendor, given the same to do. */
class Twins {
  readonly rigs: readonly Rig[];

  constructor(t: Test, options: Omit<RigOptions, 'path' | 'vendor'> = {}) {
    const folder = imageFolder(t);
    this.rigs = VENDORS.map((vendor, index) => {
      const guest = guests[index]!;
      guest.bytes.fill(0);
      guest.nextCid = 0;
      return createRig({ size: DISK_SIZE, ...options, vendor, guest, path: join(folder, vendor) });
    });
    t.teardown(() => Promise.all(this.rigs.map((rig) => rig.image.close())));
  }

  /** Runs `work` on each. @returns what it gave, which must be the same */
  async both<T>(what: string, work: (rig: Rig) => T | Promise<T>): Promise<T> {
    const results: T[] = [];
    for (const rig of this.rigs) results.push(await work(rig));
    const [first, ...others] = results;
    for (const other of others) {
      const [a, b] = [JSON.stringify(first), JSON.stringify(other)];
      if (a !== b) throw new Error(`${what}: ${VENDORS[0]} ${a}, another ${b}`);
    }
    return first as T;
  }

  /** A command by itself: its completion, and what it wrote. */
  command(qid: number, fields: CommandFields): Promise<Omit<Completion, 'sqid'>> {
    const what = `queue ${qid}, ${JSON.stringify(fields)}`;
    return this.both(what, async (rig) => {
      const output = rig.guest.slice(OUTPUT, OUTPUT_SIZE);
      output.fill(0x99);
      const completion = await rig.run(qid, { prp1: OUTPUT, prp2: OUTPUT + PAGE, ...fields });
      return { ...completion, output: Buffer.from(output).toString('latin1') };
    });
  }

  /** All of guest memory and of the disks. */
  same(what: string): void {
    const [first, ...others] = this.rigs;
    const disk = readFileSync(first!.image.path);
    for (const other of others) {
      if (Buffer.compare(first!.guest.bytes, other.guest.bytes) !== 0)
        throw new Error(`${what}: memory differs`);
      if (!disk.equals(readFileSync(other.image.path))) throw new Error(`${what}: disks differ`);
    }
  }
}

/** Everything that can be read of a device without a command. */
function visible(rig: Rig): string {
  const { model, bars, interruptCounts, config } = rig.device;
  const regions = [0, 4].map((region) => {
    const bytes = Buffer.alloc(region === 0 ? 0x1040 : 0x2000);
    rig.device.readRegion(region, 0, bytes);
    return bytes.toString('hex');
  });
  const space = Buffer.from(config.bytes).toString('hex');
  return JSON.stringify({ model, bars, interruptCounts, regions, space });
}

const variants: RigOptions['parameters'][] = [
  {},
  { queues: 1, msix_vectors: 1, queue_entries: 2, mdts: 1, lba_size: 4096, serial: 'B', firmware: '9' },
  { queues: 255, msix_vectors: 256, queue_entries: 65536, mdts: 10, model_number: 'x'.repeat(40) },
];

for (const parameters of variants) {
  t.test(`identity, ${JSON.stringify(parameters)}`, async (t) => {
    const twins = new Twins(t, { parameters: parameters ?? {} });
    await twins.both('power on', visible);
    await twins.both('enabled', async (rig) => {
      await rig.enable();
      return visible(rig);
    });
    let succeeded = 0;
    for (let cns = 0; cns <= 0x20; cns++) {
      for (const nsid of [0, 1, 2, ALL_NAMESPACES - 1, ALL_NAMESPACES]) {
        for (const cdw11 of [0, 0x02000000]) {
          const { status } = await twins.command(0, { opcode: 6, cdw10: cns, nsid, cdw11 });
          if (status === 0) succeeded++;
        }
      }
    }
    t.ok(succeeded > 20, `${succeeded} Identify commands succeeded`);
    twins.same('identify');
  });
}

t.test('features and log pages', async (t) => {
  const twins = new Twins(t);
  for (const rig of twins.rigs) await rig.enable();
  const values = [0, 1, 0x20, 0x10002, 0x100007, 0xf0190, 0x200000, 0x00030003, 0x0000ffff, 0xffffffff];
  for (let id = 0; id <= 0xff; id++) {
    if (id > 0x20 && id % 0x10 !== 0) continue;
    for (let select = 0; select < 8; select++) {
      for (const cdw11 of [0, 2, 5, 0x100000, 0x10000]) {
        await twins.command(0, { opcode: 0x0a, cdw10: id | (select << 8), cdw11 });
      }
    }
    for (const cdw11 of values) {
      await twins.command(0, { opcode: 9, cdw10: id, cdw11 });
      await twins.command(0, { opcode: 9, cdw10: (id | 0x80000000) >>> 0, cdw11 });
      await twins.command(0, { opcode: 0x0a, cdw10: id, cdw11: cdw11 & 0x10ffff });
    }
  }
  for (let id = 0; id <= 0x20; id++) {
    for (const [dwords, cdw12, nsid] of [
      [1, 0, 0],
      [128, 0, ALL_NAMESPACES],
      [1024, 64, ALL_NAMESPACES],
      [16, 4096, 0],
      [16, 4100, 0],
      [16, 2, 0],
      [16, 0, 1],
    ] as const) {
      await twins.command(0, { opcode: 2, nsid, cdw10: id | ((dwords - 1) << 16), cdw12 });
    }
  }
  await twins.both('in the end', visible);
  twins.same('features and log pages');
});

t.test('what a host must not change while the controller is enabled stays as it was', async (t) => {
  const twins = new Twins(t);
  const registers = [0x24, 0x28, 0x2c, 0x30, 0x34];
  const show = (rig: Rig) => registers.map((offset) => rig.read(offset));
  for (const offset of registers) await twins.both('written', (rig) => rig.write(offset, 0x00300000));
  t.ok((await twins.both('disabled', show)).every((value) => value === 0x00300000));
  for (const rig of twins.rigs) await rig.enable();
  const before = await twins.both('enabled', show);
  for (const offset of registers) await twins.both('written', (rig) => rig.write(offset, 0x00300000));
  t.same(await twins.both('after', show), before);
  const cc = await twins.both('CC', (rig) => rig.read(CC));
  await twins.both('CC with another page size, command set and arbitration', (rig) =>
    rig.write(CC, cc ^ 0x3ff0),
  );
  t.equal(await twins.both('CC after', (rig) => rig.read(CC)), cc);
  t.equal((await twins.command(0, { opcode: 6, cdw10: 1 })).status, 0, 'it continues');
  // What it saves it takes back.
  for (const rig of twins.rigs) await rig.load(await rig.save());
  t.same(await twins.both('loaded', show), before);
});

t.test('property: registers', async (t) => {
  const access = fc.record({
    region: fc.constantFrom(0, 0, 0, 4),
    offset: fc.oneof(fc.nat(0x40), fc.integer({ min: 0xff0, max: 0x1040 }), fc.nat(0x1ff8)),
    width: fc.constantFrom(1, 2, 4, 8),
    value: fc.oneof(fc.constantFrom(0, 1, 0xffffffff), fc.nat(0xffffffff)),
    write: fc.boolean(),
  });
  const property = fc.asyncProperty(fc.array(access, { maxLength: 60 }), async (accesses) => {
    const twins = new Twins(t);
    for (const { region, offset, width, value, write } of accesses) {
      // Not CC: what it sets in motion is for the next test.
      if (region === 0 && offset < CC + 4 && offset + width > CC) continue;
      await twins.both(`${write ? 'write' : 'read'} ${region}:0x${offset.toString(16)}+${width}`, (rig) => {
        if (write) rig.write(offset, value, width, region);
        return rig.read(offset, width, region);
      });
    }
    await twins.both('afterwards', visible);
    for (const rig of twins.rigs) await rig.image.close();
  });
  await t.resolves(fc.assert(property, { numRuns: 60 }));
});

/** Waits until nothing more happens by itself: a write to CC has been followed. */
async function settled(rig: Rig): Promise<number> {
  const goal = (cc: number, csts: number) =>
    ((cc & 1) === 0 ? (csts & 3) === 0 : (csts & 3) !== 0) && ((cc & 0xc000) === 0 || (csts & 0xc) !== 4);
  await rig.until('CSTS to follow CC', () => goal(rig.read(CC), rig.read(CSTS)));
  for (let i = 0; i < 20; i++) await turn();
  return rig.read(CSTS);
}

const kinds = fc.constantFrom<MemoryKind>('mapped', 'mapped', 'remote');
const dword = fc.oneof(fc.constantFrom(0, 1, 2, 7, 0x10001, 0xffffffff), fc.nat(0xffff), fc.nat(0xffffffff));
const pointer = fc.oneof(
  fc.constantFrom(OUTPUT, OUTPUT + PAGE, OUTPUT + 4, OUTPUT + 2, OUTPUT + 0x800, 0, 2 ** 52),
  fc.nat(0xffffffff),
);
const commandFields = {
  nsid: fc.constantFrom(0, 1, 1, 1, 1, 1, 2, ALL_NAMESPACES),
  prp1: fc.oneof({ weight: 4, arbitrary: fc.constant(OUTPUT) }, pointer),
  prp2: fc.oneof({ weight: 4, arbitrary: fc.constant(OUTPUT + PAGE) }, pointer),
  cdw11: dword,
  cdw13: fc.constant(0),
  flags: fc.oneof({ weight: 20, arbitrary: fc.constant(0) }, fc.constantFrom(0x100, 0x4000)),
};
const adminCommand = fc.record({
  opcode: fc.constantFrom(2, 6, 8, 9, 9, 0x0a, 0x0a, 0x0d, 0xc0),
  cdw10: fc.oneof(fc.nat(11), fc.constantFrom(0x7f0001, 0x7f0002, 0x7f0003, 0x3ff0005, 0x104, 0x306), dword),
  cdw12: fc.constantFrom(0, 4, 6, 512),
  ...commandFields,
});
const queueCommand = fc.record({
  opcode: fc.constantFrom(0, 1, 4, 5),
  // Queue 1 is the test's.
  cdw10: fc
    .tuple(fc.constantFrom(0, 2, 3, 4, 5, 0x100), fc.constantFrom(0, 1, 15, 15, 1023, 1024))
    .map(([id, entries]) => entries * 0x10000 + id),
  ...commandFields,
  cdw11: fc
    .tuple(fc.constantFrom(0, 1, 2, 3, 3, 5, 7), fc.constantFrom(0, 1, 2, 3, 4, 5, 300))
    .map(([low, high]) => high * 0x10000 + low),
  cdw12: fc.constant(0),
});
const ioCommand = fc.record({
  opcode: fc.constantFrom(0, 1, 1, 2, 2, 5, 8, 9, 0x0d, 0x7f),
  cdw10: fc.oneof(fc.nat(DISK_SIZE / 512), dword),
  ...commandFields,
  cdw11: fc.constantFrom(0, 0, 0, 4, 1),
  cdw12: fc.oneof(fc.nat(15), fc.constantFrom(0x40000003, 0x02000007, 0x42000000, 1024, 0xffff)),
});
const step = fc.oneof(
  { weight: 5, arbitrary: adminCommand.map((fields) => ({ kind: 'command' as const, qid: 0, fields })) },
  { weight: 5, arbitrary: queueCommand.map((fields) => ({ kind: 'command' as const, qid: 0, fields })) },
  { weight: 6, arbitrary: ioCommand.map((fields) => ({ kind: 'command' as const, qid: 1, fields })) },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant('doorbell' as const),
      index: fc.constantFrom(0, 1, 3, 4, 5, 7, 9, 11, 12, 600, 2000, 3071),
      // Beyond every submission queue: what is in one is executed in an order of the vendor's own.
      value: fc.constantFrom(1024, 0xffff, 0xffffffff),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('event request' as const) }) },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant('configuration' as const),
      cc: fc.constantFrom(0, 0x460000, 0x464001, 0x468001, 0x460001, 0x460281, 0x460811, 0x360001),
    }),
  },
);

t.test('property: commands, doorbells, resets', async (t) => {
  let succeeded = 0;
  let failed = 0;
  const property = fc.asyncProperty(
    kinds,
    fc.array(step, { minLength: 15, maxLength: 50 }),
    async (kind, steps) => {
      const twins = new Twins(t, { kind });
      const start = async (rig: Rig) => {
        await rig.enable();
        await rig.createPair(1, 64);
      };
      for (const rig of twins.rigs) await start(rig);
      for (const one of steps) {
        const what = JSON.stringify(one);
        if (one.kind === 'command') {
          const { status } = await twins.both(what, async (rig) => {
            for (const page of [0, 1, 2, 3]) rig.guest.slice(OUTPUT + page * PAGE, PAGE).fill(page);
            const got = await complete(rig, one.qid, one.fields);
            return got;
          });
          if (status === 0) succeeded++;
          else failed++;
        } else if (one.kind === 'doorbell') {
          await twins.both(what, async (rig) => {
            rig.write(0x1000 + 4 * one.index, one.value);
            return arrived(rig);
          });
        } else if (one.kind === 'event request') {
          await twins.both(what, async (rig) => {
            rig.queue(0, { opcode: 0x0c });
            rig.submit(0);
            return arrived(rig);
          });
        } else {
          await twins.both(what, async (rig) => {
            rig.write(CC, one.cc);
            const csts = await settled(rig);
            const seen = visible(rig);
            rig.write(CC, 0);
            await settled(rig);
            return { csts, seen };
          });
          for (const rig of twins.rigs) await start(rig);
        }
        await twins.both(`after ${what}`, (rig) => [rig.read(CSTS), rig.read(0x0c), rig.intx]);
      }
      await twins.both('in the end', visible);
      for (const id of [1, 2]) await twins.both(`log ${id}`, (rig) => logPage(rig, id));
      twins.same('in the end');
      for (const rig of twins.rigs) await rig.image.close();
    },
  );
  await t.resolves(fc.assert(property, { numRuns: 30 }));
  t.ok(succeeded > 50 && failed > 50, `${succeeded} commands succeeded, ${failed} failed`);
});

/** Completions of the admin queue that come by themselves (events), in order of their commands. */
async function arrived(rig: Rig): Promise<Completion[]> {
  for (let i = 0; i < 20; i++) await turn();
  const found: Completion[] = [];
  for (let one = rig.poll(0); one !== undefined; one = rig.poll(0)) found.push(one);
  return found.sort((a, b) => a.cid - b.cid);
}

/** A command to its completion, with whatever events its queue tells beside it. */
async function complete(rig: Rig, qid: number, fields: CommandFields) {
  const cid = rig.queue(qid, fields);
  rig.submit(qid);
  const found: Completion[] = [];
  while (!found.some((completion) => completion.cid === cid)) found.push(await rig.completion(qid));
  const events = qid === 0 ? await arrived(rig) : [];
  const { status } = found.find((completion) => completion.cid === cid)!;
  return { status, all: [...found, ...events].sort((a, b) => a.cid - b.cid) };
}

async function logPage(rig: Rig, id: number): Promise<string> {
  await complete(rig, 0, { opcode: 2, nsid: 0, prp1: OUTPUT, cdw10: id | (127 << 16) });
  return Buffer.from(rig.guest.slice(OUTPUT, 512)).toString('hex');
}
