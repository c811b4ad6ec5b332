// SPDX-License-Identifier: Apache-2.0
/** Whatever state a controller accepts, it can save again after any commands, and another of either vendor takes that. */

import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import fc from 'fast-check';
import t from 'tap';
import type { DeviceValues } from '../../../src/device/index.js';
import { checkNvmeState, type NvmeState } from '../../../src/formats/index.js';
import { ConfigAccess } from '../../../src/runtime/config-access.js';
import { type CommandFields, createRig, DATA, Guest, imageFolder, type Rig, VENDORS } from './rig.js';

const COMMANDS = 1000;
const WHOLE_MAX = Number.MAX_SAFE_INTEGER;

interface Standard {
  captureStandard(): NvmeState;
  restoreStandard(state: NvmeState): void;
  readonly values: DeviceValues;
}

const standardOf = (rig: Rig): Standard => rig.device as unknown as Standard;

/** A number of a range, mostly at its ends. */
const edge = (max: number) =>
  fc.oneof(fc.constantFrom(0, 1, max - 1, max), fc.integer({ min: 0, max: Math.min(max, 2 ** 31 - 1) }));
const counter = edge(WHOLE_MAX);
const u16 = edge(0xffff);
const upTo = <T>(most: number, item: fc.Arbitrary<T>) =>
  fc.oneof(
    fc.array(item, { maxLength: most }),
    fc.array(item, { minLength: most, maxLength: most, size: 'max' }),
  );

const health = fc.record({
  bytesRead: counter,
  bytesWritten: counter,
  readCommands: counter,
  writeCommands: counter,
  mediaErrors: counter,
  errorCount: counter,
  errors: upTo(
    8,
    fc.record({
      count: edge(WHOLE_MAX - 1).map((count) => count + 1),
      submissionQueue: u16,
      commandId: u16,
      status: edge(0x7fff),
      lba: counter,
      namespace: edge(0xffffffff),
    }),
  ),
});
const events = fc.record({
  requests: fc.uniqueArray(u16, { maxLength: 4 }),
  pending: upTo(8, fc.record({ type: edge(7), information: edge(255), logPage: edge(255) })),
  masked: upTo(8, edge(7)),
});
/** Dword 11 of features; what a controller does not have it refuses, and then its own stays. */
const features = fc.uniqueArray(fc.tuple(fc.constantFrom(1, 2, 4, 5, 6, 8, 9, 10, 11), edge(0xffffffff)), {
  selector: ([id]) => id,
});
const registers = fc.record({ interruptMask: edge(0xffffffff) });

const command: fc.Arbitrary<CommandFields> = fc.record({
  opcode: fc.oneof(edge(255), fc.constantFrom(0, 1, 2, 5, 6, 8, 9, 10, 12)),
  nsid: fc.constantFrom(0, 1, 2, 0xffffffff),
  prp1: fc.oneof(fc.constantFrom(0, DATA, DATA + 4096, 2 ** 53 - 4096), counter),
  prp2: fc.constantFrom(0, DATA + 8192),
  cdw10: fc.oneof(edge(0xff), edge(0xffffffff), fc.constantFrom(0x7f0002, 0x7f0001, 0x3f0003)),
  cdw11: fc.oneof(edge(0xff), edge(0xffffffff), fc.constantFrom(1, 3, 0x20003, 0x30001)),
  cdw12: fc.oneof(edge(7), edge(0xffffffff)),
  cdw13: edge(0xffffffff),
});
type Step =
  | { kind: 'command'; qid: number; fields: CommandFields }
  | { kind: 'write'; region: number; offset: number; value: number };
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 20,
    arbitrary: fc.record({
      kind: fc.constant('command' as const),
      qid: fc.integer({ min: 0, max: 2 }),
      fields: command,
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant('write' as const),
      region: fc.constantFrom(0, 4),
      // Interrupt masks, doorbells of queues that are not there, and the MSI-X table.
      offset: fc.constantFrom(0x0c, 0x10, 0x1030, 0x1034),
      value: edge(0xffffffff),
    }),
  },
);

/** An enabled controller with two pairs of I/O queues, quiesced. */
async function enabled(path: string, vendor: Rig['vendor']): Promise<Rig> {
  const rig = createRig({ vendor, path, guest: new Guest() });
  rig.useMsix(5);
  await rig.enable();
  await rig.createPair(1);
  await rig.createPair(2);
  await rig.device.quiesce();
  return rig;
}

/** Whether `work` did, and not refused. */
function accepted(work: () => void): boolean {
  try {
    work();
    return true;
  } catch {
    return false;
  }
}

async function apply(rig: Rig, steps: readonly Step[]): Promise<void> {
  let number = 0;
  for (const one of steps) {
    if (one.kind === 'write') rig.write(one.offset, one.value, 4, one.region);
    else {
      // Not so many that a queue is full, and none that deletes the queues that are used.
      const { fields, qid } = one;
      const deletes = qid === 0 && (fields.opcode === 0 || fields.opcode === 4);
      rig.queue(qid, deletes ? { ...fields, cdw10: 7 } : fields);
      rig.submit(qid);
    }
    if (++number % 16 === 0) {
      await rig.device.quiesce();
      for (const qid of [0, 1, 2]) while (rig.poll(qid) !== undefined);
      await rig.device.resume();
    }
  }
}

for (const vendor of VENDORS) {
  const other = VENDORS.find((name) => name !== vendor) ?? vendor;
  t.test(`${vendor}: a state that was loaded can be saved after ${COMMANDS} commands`, async (t) => {
    const folder = imageFolder(t);
    const path = join(folder, vendor);
    const first = await enabled(path, vendor);
    const base = standardOf(first).captureStandard();
    await first.image.close();
    const twins = [vendor, other].map((name) => createRig({ vendor: name, path, lock: false }));
    let loads = 0;
    await fc.assert(
      fc.asyncProperty(
        fc.record({ health, events, features, registers }),
        fc.array(step, { minLength: COMMANDS, maxLength: COMMANDS }),
        async (parts, steps) => {
          const rig = await enabled(path, vendor);
          try {
            const changed = parts.features.map(([id, value]) => ({
              id,
              namespace: 0,
              value,
              data: new Uint8Array(0),
            }));
            const state = (withFeatures: boolean): NvmeState => ({
              ...base,
              health: parts.health,
              events: parts.events,
              registers: { ...base.registers, ...parts.registers },
              features: withFeatures ? changed : base.features,
            });
            const took =
              accepted(() => standardOf(rig).restoreStandard(checkNvmeState(state(true)))) ||
              accepted(() => standardOf(rig).restoreStandard(checkNvmeState(state(false))));
            if (took) loads++;
            await rig.device.resume();
            await apply(rig, steps);
            await rig.device.quiesce();

            const records = await rig.save();
            const standard = standardOf(rig).captureStandard();
            const values = standardOf(rig).values.capture();
            const [twin, stranger] = twins as [Rig, Rig];
            await twin.load(records);
            if (JSON.stringify(await twin.save()) !== JSON.stringify(records))
              throw new Error('saved otherwise');
            standardOf(stranger).restoreStandard(checkNvmeState(standard));
            const there = standardOf(stranger).captureStandard();
            standardOf(twin).restoreStandard(checkNvmeState(there));
            t.same(standardOf(twin).captureStandard(), there, 'to the other vendor and back');
            await twin.load(records);
            standardOf(twin).values.restore(values);
            t.same(standardOf(twin).values.capture(), values, 'value by value');
          } finally {
            await rig.image.close();
          }
        },
      ),
      { numRuns: 6, endOnFailure: true },
    );
    t.ok(loads > 2, `${loads} states were accepted`);
    for (const { image } of twins) await image.close();
  });
}

t.test('what a guest can write before it enables the controller can be loaded', async (t) => {
  const folder = imageFolder(t);
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom(...VENDORS),
      fc.array(fc.tuple(fc.constantFrom(0x14, 0x20, 0x24, 0x28, 0x2c, 0x30, 0x34), edge(0xffffffff))),
      fc.array(fc.tuple(fc.integer({ min: 0, max: 0xff }), edge(0xff)), { maxLength: 40 }),
      async (vendor, writes, configWrites) => {
        const path = join(folder, vendor);
        const source = createRig({ vendor, path });
        const copies = VENDORS.map((name) => createRig({ vendor: name, path, lock: false }));
        try {
          for (const [offset, value] of writes) source.write(offset, value);
          for (const [offset, value] of configWrites)
            new ConfigAccess(source.device.config).write(offset, Uint8Array.of(value));
          await source.device.quiesce();
          const records = await source.save();
          const copy = copies[VENDORS.indexOf(vendor)]!;
          await copy.load(records);
          const same = JSON.stringify(await copy.save()) === JSON.stringify(records);
          if (!same) throw new Error('saved otherwise');
          const standard = standardOf(source).captureStandard();
          for (const other of copies) {
            standardOf(other).restoreStandard(checkNvmeState(standard));
            const there = standardOf(other).captureStandard();
            if (!isDeepStrictEqual(there, standard)) throw new Error('another state');
          }
        } finally {
          for (const rig of [source, ...copies]) await rig.image.close();
        }
      },
    ),
    { numRuns: 60, endOnFailure: true },
  );
});

t.test('alder: lists with one entry twice are refused, or loaded as if it were there once', async (t) => {
  const path = join(imageFolder(t), 'image');
  const rig = await enabled(path, 'alder');
  const state = standardOf(rig).captureStandard();
  const vector = { id: 9, namespace: 0, value: 0x10001, data: new Uint8Array(0) };
  standardOf(rig).restoreStandard({
    ...state,
    events: { ...state.events, masked: [1, 0, 1, 1, 1, 1, 1, 1] },
    features: [vector, vector],
  });
  t.same(standardOf(rig).captureStandard().events.masked, [0, 1]);
  await rig.load(await rig.save());
  for (const value of [0xff, 0x55]) {
    const feature = { id: 6, namespace: 0, value, data: new Uint8Array(0) };
    t.throws(() => standardOf(rig).restoreStandard({ ...state, features: [feature] }), {
      message: /features.volatileWriteCache/,
    });
  }
  await rig.image.close();
});
