// SPDX-License-Identifier: Apache-2.0
/** Whatever state the counter and the sample device accept, they can save again after any accesses. */

import { deepStrictEqual } from 'node:assert';
import fc from 'fast-check';
import t from 'tap';
import type { Device, StateRecord } from '../../src/device/index.js';
import { CounterDevice } from '../../src/devices/counter/index.js';
import { CounterRegister } from '../../src/devices/counter/registers.js';
import { CounterRecord, type CounterState, encodeState } from '../../src/devices/counter/state.js';
import { SampleDevice } from '../../src/devices/sample/index.js';
import { encodeTimer, SampleRecord } from '../../src/devices/sample/state.js';

const ACCESSES = 1000;
const WHOLE_MAX = Number.MAX_SAFE_INTEGER;

async function saved(device: Device): Promise<StateRecord[]> {
  const records: StateRecord[] = [];
  const [format] = device.formats;
  format?.begin?.();
  for await (const record of format?.save('final') ?? []) {
    records.push({ ...record, payload: record.payload.slice() });
  }
  return records;
}

async function load(device: Device, records: readonly StateRecord[]): Promise<void> {
  const loader = device.formats[0]!.load({ major: 1, minor: 0 });
  for (const record of records) await loader.record(record);
  await loader.commit();
}

/** Loads, makes the accesses, saves, loads into another, saves: equal. */
async function holds(make: () => Device, records: StateRecord[], use: (device: Device) => void) {
  const [first, second] = [make(), make()];
  await load(first, records);
  use(first);
  const state = await saved(first);
  await load(second, state);
  deepStrictEqual(await saved(second), state);
  return [first, second];
}

const dword = (value: number) => new Uint8Array(Uint32Array.of(value).buffer);
const edge = (max: number) => fc.constantFrom(0, 1, max - 1, max);
const u64 = fc.constantFrom(0n, 1n, 2n ** 53n, 2n ** 64n - 1n);
const flag = fc.integer({ min: 0, max: 1 });

t.test('counter', async (t) => {
  const config = new CounterDevice().config.bytes.slice();
  const state: fc.Arbitrary<CounterState> = fc.record({
    value: u64,
    additions: edge(WHOLE_MAX),
    exchanges: edge(WHOLE_MAX),
    expected: u64,
    desired: u64,
    result: flag,
    entries: fc.constantFrom(0, 2, 256),
    commands: edge(WHOLE_MAX),
    completions: edge(WHOLE_MAX),
    head: fc.constant(0),
    tail: fc.constant(0),
    phase: flag,
    interrupt: fc.constant(false),
  });
  const access = fc.tuple(
    fc.constantFrom(...Object.values(CounterRegister), CounterRegister.ADD, CounterRegister.CAS),
    fc.constantFrom(0, 1, 2, 256, 0x1fffff, 0xffffffff),
  );
  await fc.assert(
    fc.asyncProperty(
      state,
      fc.array(access, { minLength: ACCESSES, maxLength: ACCESSES }),
      async (from, use) => {
        const records = [
          { type: CounterRecord.STATE, payload: encodeState(from) },
          { type: CounterRecord.CONFIG, payload: config },
        ];
        await holds(
          () => new CounterDevice(),
          records,
          (device) => {
            for (const [register, value] of use) device.writeRegion(0, register, dword(value));
          },
        );
      },
    ),
    { numRuns: 20, endOnFailure: true },
  );
  t.pass('every state could be saved again');
});

t.test('sample', async (t) => {
  const timer = fc.record({
    second: fc.constantFrom(-(2n ** 63n), -1n, 0n, 1n, 2n ** 53n, 2n ** 63n - 1n),
    armed: fc.boolean(),
    interrupt: fc.boolean(),
  });
  const access = fc.tuple(fc.constantFrom(0, 1), u64);
  await fc.assert(
    fc.asyncProperty(timer, fc.array(access, { maxLength: ACCESSES }), async (from, use) => {
      const blank = new SampleDevice();
      await blank.quiesce();
      const records = (await saved(blank)).map((record) =>
        record.type === SampleRecord.TIMER ? { ...record, payload: encodeTimer(from) } : record,
      );
      const make = () => {
        const device = new SampleDevice();
        void device.quiesce();
        return device;
      };
      const devices = await holds(make, records, (device) => {
        for (const [region, value] of use)
          device.writeRegion(region, 0, new Uint8Array(BigUint64Array.of(value).buffer));
      });
      for (const device of [blank, ...devices]) (device as SampleDevice).close();
    }),
    { numRuns: 20, endOnFailure: true },
  );
  t.pass('every state could be saved again');
});
