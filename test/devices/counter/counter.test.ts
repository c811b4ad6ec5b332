// SPDX-License-Identifier: Apache-2.0
/** The counter device: its registers, its rings, its state. */

import fc from 'fast-check';
import t from 'tap';
import {
  CounterDevice,
  CounterRegister,
  CounterStatus,
  counterDescription,
  IDENTITY,
} from '../../../src/devices/counter/index.js';
import {
  CounterRecord,
  type CounterState,
  decodeState,
  encodeState,
  initialState,
  STATE_LENGTH,
} from '../../../src/devices/counter/state.js';
import { CounterDriver, GuestMachine } from '../../../src/guest-driver/index.js';
import { DeviceRuntime } from '../../../src/runtime/index.js';
import { Server } from '../../../src/server/index.js';
import { socketFolder, type Test } from '../../support/served.js';

async function served(t: Test) {
  const device = new CounterDevice();
  const logs: string[] = [];
  const socketPath = `${socketFolder(t)}/s`;
  const log = (_level: string, message: string): void => void logs.push(message);
  const server = new Server({ device: new DeviceRuntime(device, { name: 'counter', log }), socketPath, log });
  t.teardown(() => server.close());
  const machine = await GuestMachine.start(socketPath);
  t.teardown(() => machine.close());
  return { device, machine, logs };
}

t.test('registers', async (t) => {
  const { machine } = await served(t);
  const driver = await CounterDriver.start(machine);
  t.equal(await machine.read32(CounterRegister.IDENTITY), IDENTITY);
  await driver.add(0xffffffff);
  await driver.post(2);
  t.equal(await driver.value(), 0x1_0000_0001n);
  t.equal(await driver.additions(), 2n);
  t.equal(await driver.compareAndSwap(1n, 2n), false);
  t.equal(await driver.compareAndSwap(0x1_0000_0001n, 2n ** 64n - 1n), true);
  await driver.add(3);
  t.equal(await driver.value(), 2n, 'it counts round');
  t.equal(await driver.exchanges(), 1n);
  await machine.client.request(13, [], () => {});
  t.equal(await driver.value(), 2n, 'a reset leaves the counter');
  t.equal(await machine.read32(CounterRegister.ENTRIES), 0, 'and takes the rings');
});

t.test('rings: in order, round and round, each command once', async (t) => {
  const { machine } = await served(t);
  const driver = await CounterDriver.start(machine, 4);
  const completions = await Promise.all(Array.from({ length: 50 }, (_, n) => driver.submitAdd(n)));
  let sum = 0n;
  for (const [n, { status, value }] of completions.entries()) {
    sum += BigInt(n);
    t.same([status, value], [CounterStatus.DONE, sum]);
  }
  t.equal((await driver.submitCompareAndSwap(7n, 8n)).status, CounterStatus.DIFFERENT);
  t.equal((await driver.submitCompareAndSwap(sum, 8n)).status, CounterStatus.DONE);
  t.equal(await driver.value(), 8n);
});

t.test('rings that cannot be: nothing is taken, and it is said', async (t) => {
  const { machine, logs } = await served(t);
  await machine.write32(CounterRegister.TAIL, 1);
  t.equal(await machine.read32(CounterRegister.HEAD), 0, 'there are none');
  for (const entries of [1, 257, 0xffffffff]) {
    await machine.write32(CounterRegister.ENTRIES, entries);
    t.equal(await machine.read32(CounterRegister.ENTRIES), 0, `${entries} entries`);
  }
  await machine.write32(CounterRegister.ENTRIES, 8);
  await machine.write32(CounterRegister.TAIL, 8);
  await machine.write32(CounterRegister.COMMANDS, 4096);
  t.equal(await machine.read32(CounterRegister.COMMANDS), 0, 'a ring in use stays where it is');
  await machine.write32(CounterRegister.TAIL, 1);
  while (!logs.some((line) => line.startsWith('ring: '))) await machine.fence();
  t.equal(await machine.read32(CounterRegister.HEAD), 0);
});

const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
const state: fc.Arbitrary<CounterState> = fc
  .record({
    value: u64,
    additions: fc.maxSafeNat(),
    exchanges: fc.maxSafeNat(),
    expected: u64,
    desired: u64,
    result: fc.nat(1),
    entries: fc.integer({ min: 2, max: 256 }),
    commands: fc.maxSafeNat(),
    completions: fc.maxSafeNat(),
    head: fc.nat(255),
    tail: fc.nat(255),
    phase: fc.nat(1),
    interrupt: fc.boolean(),
  })
  .map((one) => ({ ...one, head: one.head % one.entries, tail: one.tail % one.entries }));

t.test('state: there and back, and what cannot be is refused', async (t) => {
  fc.assert(
    fc.property(state, (one) => t.same(decodeState(encodeState(one)), one)),
    { numRuns: 50 },
  );
  fc.assert(
    fc.property(fc.uint8Array({ minLength: STATE_LENGTH, maxLength: STATE_LENGTH }), (bytes) => {
      try {
        decodeState(bytes);
      } catch (error) {
        if (!(error as Error).message.startsWith('counter state refused')) throw error;
      }
    }),
  );
  const sound = { ...initialState(), entries: 4 };
  for (const wrong of [{ entries: 257 }, { head: 4 }, { tail: 4 }, { phase: 2 }, { result: 2 }])
    t.throws(() => decodeState(encodeState({ ...sound, ...wrong })), { message: /counter state refused/ });
  t.throws(() => decodeState(new Uint8Array(STATE_LENGTH - 1)), { message: /87 bytes/ });

  const [from, to] = [new CounterDevice(), new CounterDevice()];
  from.restoreState({ ...sound, value: 9n }, from.config.bytes);
  const records = [...from.formats[0]!.save('final')];
  const loader = to.formats[0]!.load();
  for (const record of records) loader.record(record);
  loader.commit();
  t.same(to.captureState(), from.captureState());
  const { payload } = records[0]!;
  const described = counterDescription.describe?.(CounterRecord.STATE, payload, { major: 1, minor: 0 });
  t.match(described, { value: '9', entries: 4 });
  t.throws(() => to.formats[0]!.load().commit(), { message: /the counter is missing/ });
  t.throws(() => to.formats[0]!.load().record({ type: 1, payload: new Uint8Array(0) }), {
    message: /unknown/,
  });
  t.throws(() => to.formats[0]!.load().record({ type: CounterRecord.CONFIG, payload: new Uint8Array(1) }));
});
