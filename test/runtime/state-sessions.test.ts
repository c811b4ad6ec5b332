// SPDX-License-Identifier: Apache-2.0
/** Savings and loadings of a device on real sockets: which format each connection gets, what is refused when, what is left behind. */

import t from 'tap';
import type { MigrationClient } from '../../src/client/index.js';
import type { Device, StateRecord } from '../../src/device/index.js';
import { decodeEnvelope, type FormatOffer, uuidToBytes } from '../../src/formats/index.js';
import { DeviceRuntime, type RuntimeOptions } from '../../src/runtime/index.js';
import { Errno, MigrationState } from '../../src/wire/index.js';
import { ScratchDevice } from '../support/scratch-device.js';
import { outcome, Served, until } from '../support/served.js';
import { manyFormats, onlyValues, SECOND_UUID, scratchValues, VALUES_UUID } from './many-formats.js';

const { STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY, PRE_COPY_P2P, ERROR } = MigrationState;
const SECOND = { uuid: SECOND_UUID, version: { major: 1, minor: 0 } };

function serve(
  t: { teardown(work: () => unknown): void },
  device: Device,
  options: Partial<RuntimeOptions> = {},
): Served {
  return new Served(t, new DeviceRuntime(device, { name: 'scratch', ...options }));
}

async function readAll(manager: MigrationClient): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  const chunk = new Uint8Array(1000);
  for (;;) {
    const size = await manager.readData(chunk);
    if (size === 0) return Buffer.concat(parts);
    parts.push(chunk.slice(0, size));
  }
}

/** What a manager saves: the blob; the device runs again afterwards. */
async function save(manager: MigrationClient): Promise<Buffer> {
  await manager.setState(STOP_COPY);
  const blob = await readAll(manager);
  await manager.setState(RUNNING);
  return blob;
}

/** `name major.minor` of the format of a blob. */
function kindOf(blob: Uint8Array, offers: readonly FormatOffer[] | undefined): string | undefined {
  const { format, version } = decodeEnvelope(blob).header;
  const offer = offers?.find(({ uuid }) => uuid === format);
  return `${offer?.name} ${version.major}.${version.minor}`;
}

t.test('each connection has its own selection', async (t) => {
  const device = manyFormats();
  const served = serve(t, device);
  const [one, two] = [await served.manager(), await served.manager()];
  const offers = await one.formats();
  t.strictSame(offers, await two.formats());
  const [v2, v1, second] = offers!;
  const kind = async (manager: MigrationClient): Promise<string | undefined> =>
    kindOf(await save(manager), offers);

  t.equal(await kind(one), 'org.devstate.test.scratch 2.3', 'the first, unless told otherwise');
  await one.selectFormat(second!, 'save');
  t.equal(await kind(two), 'org.devstate.test.scratch 2.3', "another's selection is another's");
  t.equal(await kind(one), 'org.devstate.test.second 1.0');
  await two.selectFormat(v1!, 'save');
  t.equal(await kind(two), 'org.devstate.test.scratch 1.1');
  t.equal(await kind(one), 'org.devstate.test.second 1.0', 'it stays selected');
  await one.selectFormat(v2!, 'save');
  t.equal(await kind(one), 'org.devstate.test.scratch 2.3');
  await one.selectFormat(v1!, 'load');
  t.equal(await kind(one), 'org.devstate.test.scratch 2.3', 'what is loaded does not say what is saved');

  one.close();
  const three = await served.manager();
  t.equal(await kind(three), 'org.devstate.test.scratch 2.3', 'who comes anew has selected nothing');
});

t.test('a selection is refused while the connection saves or loads', async (t) => {
  const served = serve(t, manyFormats());
  const [driver, other] = [await served.manager(), await served.manager()];
  const select = (manager: MigrationClient, use: 'save' | 'load' = 'save'): Promise<number | string> =>
    outcome(manager.selectFormat(SECOND, use));
  for (const state of [PRE_COPY, PRE_COPY_P2P, STOP_COPY, RESUMING]) {
    await driver.setState(state);
    t.equal(await select(driver), Errno.EBUSY, `save, in ${state}`);
    t.equal(await select(driver, 'load'), Errno.EBUSY, `load, in ${state}`);
    t.equal(await select(other), 0, 'another connection may, for later');
    if (state === RESUMING) await driver.reset();
    else await driver.setState(RUNNING);
    t.equal(await select(driver), 0, 'afterwards');
  }
  await driver.setState(STOP);
  t.equal(await select(driver), 0, 'stopped is not saving');
  t.match(
    await outcome(driver.selectFormat({ ...SECOND, version: { major: 2, minor: 0 } }, 'save')),
    Errno.ENOTSUP,
  );
  await t.rejects(driver.selectFormat({ ...SECOND, version: { major: 2, minor: 0 } }, 'save'), {
    code: 'DEVSTATE_E_REFUSED',
    message: /second 2\.0 is not offered here, but 1\.0/,
  });
  t.equal(kindOf(await save(driver), await driver.formats()), 'org.devstate.test.second 1.0');
});

t.test('a blob is loaded with the format that was selected, or not at all', async (t) => {
  const source = manyFormats();
  source.state.memory.fill(0x5a);
  const from = await serve(t, source).manager();
  const [v2, v1, second] = (await from.formats())!;
  await from.selectFormat(second!, 'save');
  const blob = await save(from);
  await from.selectFormat(v1!, 'save');
  const old = await save(from);

  const target = manyFormats();
  const served = serve(t, target);
  const manager = await served.manager();
  const load = async (bytes: Uint8Array, select?: FormatOffer): Promise<void> => {
    if (select !== undefined) await manager.selectFormat(select, 'load');
    await manager.setState(RESUMING);
    for (let at = 0; at < bytes.length; at += 777) await manager.writeData(bytes.subarray(at, at + 777));
    await manager.setState(RUNNING);
  };
  await load(blob);
  t.equal(target.state.memory[4095], 0x5a, 'unless one is selected, any that is known');
  target.state.memory.fill(0);
  await load(old);
  t.equal(target.state.memory[4095], 0x5a, 'of an older major version');
  target.state.memory.fill(0);
  await t.rejects(load(blob, v2), {
    code: 'DEVSTATE_E_REFUSED',
    errno: Errno.EINVAL,
    message: /the state is org\.devstate\.test\.second, but org\.devstate\.test\.scratch was selected/,
  });
  t.equal(await manager.state(), RESUMING);
  await manager.reset();
  t.equal(target.state.memory[4095], 0, 'nothing was taken');
  await load(blob, second);
  t.equal(target.state.memory[4095], 0x5a);

  await manager.setState(RESUMING);
  await manager.writeData(blob.subarray(0, blob.length - 1));
  await t.rejects(
    manager.setState(STOP),
    { errno: Errno.EINVAL, message: /stops here/ },
    'a blob that was cut',
  );
  t.equal(await manager.state(), ERROR);
  await manager.reset();
  await manager.setState(RESUMING);
  t.equal(await outcome(manager.setState(STOP)), Errno.EINVAL, 'no blob at all');
  await manager.reset();
  t.equal(await outcome(manager.writeData(blob)), Errno.EINVAL, 'not while it runs');
  t.equal(await outcome(manager.readData(new Uint8Array(10))), Errno.EINVAL, 'nor is anything read');
});

t.test('a destination makes sure that it can load what it has itself', async (t) => {
  const device = manyFormats();
  const served = serve(t, device);
  const manager = await served.manager();
  device.state.memory.fill(7);
  device.hook = (step) => {
    if (step === 'commit') throw new Error('no room');
  };
  await t.rejects(manager.setState(RESUMING), { code: 'DEVSTATE_E_REFUSED', message: /no room/ });
  t.equal(await manager.state(), STOP, 'it was not begun');
  device.hook = () => {};
  device.takeCalls();
  await manager.setState(RESUMING);
  t.strictSame(
    device.takeCalls().filter((step) => /^save final|^commit/.test(step)),
    ['save final', 'commit'],
  );
  t.equal(device.state.memory[0], 7, 'it is what it was');

  const large = new ScratchDevice({ stateSize: 2 ** 21 });
  await (await serve(t, large).manager()).setState(RESUMING);
  t.notOk(
    large.takeCalls().some((step) => step.startsWith('save')),
    'unless that would take long',
  );
});

t.test('value by value', async (t) => {
  const device = onlyValues();
  device.state.memory.set([11, 22, 33]);
  const served = serve(t, device);
  const manager = await served.manager();
  const empty = { uuid: uuidToBytes(VALUES_UUID), major: 1, minor: 4, names: [] as string[] };

  t.equal(await manager.hasValues(), true);
  t.strictSame(await manager.formats(), []);
  t.strictSame(await manager.valueNames(), empty, 'which format names them is always told');
  t.equal(await outcome(manager.value('flavour')), Errno.EINVAL, 'no values while it runs');
  t.equal(await outcome(manager.setValue('flavour', 'sweet')), Errno.EINVAL);
  t.equal(await outcome(manager.selectFormat(SECOND, 'save')), Errno.ENOTSUP, 'there is nothing to select');

  await manager.setState(STOP_COPY);
  const { names } = await manager.valueNames();
  t.equal(names.length, 102);
  t.equal(await manager.value('byte[1]'), 22);
  t.equal(await manager.value('flavour'), 'plain');
  t.equal(await outcome(manager.value('colour')), Errno.ENOENT);
  await t.rejects(manager.value('colour'), { message: /no value "colour"/ });
  t.equal(await outcome(manager.setValue('flavour', 'sweet')), Errno.EINVAL, 'they are set in RESUMING');
  t.equal((await readAll(manager)).length, 0, 'there is no stream');
  const other = await served.manager();
  t.equal(await outcome(other.valueNames()), Errno.EBUSY, 'for who drives');
  t.equal(await outcome(other.value('flavour')), Errno.EBUSY);
  const values = new Map(
    await Promise.all(names.map(async (name) => [name, await manager.value(name)] as const)),
  );
  await manager.setState(RUNNING);
  t.strictSame(await manager.valueNames(), empty, 'they are of the moment');

  await manager.setState(RESUMING);
  t.equal(await outcome(other.setValue('flavour', 'sweet')), Errno.EBUSY);
  t.equal(await outcome(manager.value('flavour')), Errno.EINVAL, 'not read in RESUMING');
  for (const [name, value] of values) await manager.setValue(name, name === 'byte[1]' ? 99 : value);
  await manager.setValue('byte[2]', 44);
  t.equal(device.state.memory[1], 22, 'nothing before the end');
  await manager.setState(STOP);
  t.strictSame([...device.state.memory.subarray(0, 3)], [11, 99, 44], 'of two values the later one');

  await manager.setState(RESUMING);
  const long = new Uint8Array(60_000);
  let taken = 0;
  while ((await outcome(manager.setValue(`more[${taken}]`, long))) !== Errno.E2BIG) taken++;
  t.ok(taken > 1000 && taken < 1200, `${taken} values of 60 kB are held, and no more`);
  await manager.reset();
  await manager.setState(RESUMING);
  for (const [name, value] of values) await manager.setValue(name, value);
  await manager.setValue('flavour', 'sour');
  await t.rejects(manager.setState(STOP), { errno: Errno.EINVAL, message: /a sour state/ });
  t.equal(await manager.state(), ERROR);
});

t.test('values and formats of one device', async (t) => {
  const device = Object.assign(manyFormats(), { values: undefined as never });
  device.values = scratchValues(device) as never;
  const plain = await serve(t, device).manager();
  t.equal(await plain.hasValues(), false, 'a device that has formats has no need of values');
  const pinned = manyFormats();
  const manager = await serve(t, Object.assign(pinned, { values: scratchValues(pinned) }), {
    formats: ['values', 'org.devstate.test.second'],
  }).manager();
  t.strictSame(
    (await manager.formats())?.map(({ name }) => name),
    ['org.devstate.test.second'],
  );
  t.equal(await manager.hasValues(), true, 'unless they are asked for');
  pinned.state.memory.fill(5);
  await manager.setState(STOP_COPY);
  t.equal(await manager.value('byte[99]'), 5);
  t.equal(decodeEnvelope(await readAll(manager)).header.format, SECOND_UUID, 'both of the same moment');
});

t.test('who leaves leaves nothing behind', async (t) => {
  const device = onlyValues();
  const served = serve(t, device);
  const first = await served.manager();
  await first.setState(RESUMING);
  await first.setValue('flavour', 'sour');
  device.takeCalls();
  first.close();
  const second = await served.manager();
  await until(async () => (await second.state()) === RUNNING);
  t.match(device.takeCalls(), ['reset aborted', 'resume'], 'the load was given up');
  await second.setState(RESUMING);
  t.equal(await outcome(second.setState(STOP)), Errno.EINVAL, 'the values of the other are gone');
  await second.reset();

  const formats = manyFormats();
  const other = serve(t, formats);
  const saver = await other.manager();
  await saver.selectFormat(SECOND, 'save');
  await saver.setState(PRE_COPY);
  await saver.readData(new Uint8Array(10));
  saver.close();
  const next = await other.manager();
  await until(async () => (await next.state()) === RUNNING);
  t.equal(await outcome(next.selectFormat(SECOND, 'load')), 0, 'nothing is under way');
  t.equal(
    kindOf(await save(next), await next.formats()),
    'org.devstate.test.scratch 2.3',
    'and nothing selected',
  );
});

t.test('how much is to come', async (t) => {
  const device = manyFormats();
  const manager = await serve(t, device).manager();
  const [, v1] = (await manager.formats())!;
  t.equal(await manager.dataSize(), 4112, 'of the first format');
  await manager.selectFormat(v1!, 'save');
  await manager.setState(STOP_COPY);
  const header = (await manager.dataSize())! - 77;
  t.ok(header > 48 && header < 1000, 'of the one that is saved: its estimate, and the header that waits');
  await readAll(manager);
  t.equal(await manager.dataSize(), 0, 'all has been read');
  const valued = await serve(t, onlyValues()).manager();
  t.equal(await valued.dataSize(), 0, 'values are no stream');
});

t.test('a destination tries its own loading in turns with others, and is what it was', async (t) => {
  const device = new ScratchDevice();
  const manager = await serve(t, device).manager();
  const imagined = new ScratchDevice();
  imagined.state.memory.fill(0xee);
  const records: StateRecord[] = [];
  for await (const record of imagined.state.save('final')) records.push(record);
  let turns = 0;
  let turnsBefore = -1;
  device.state.practice = function* () {
    for (const record of records) {
      setImmediate(() => turns++);
      yield record;
    }
  };
  device.hook = (step) => {
    if (step === 'save final') turnsBefore = turns;
  };
  device.state.memory.fill(7);
  await manager.setState(RESUMING);
  t.equal(turnsBefore, records.length, 'a turn for each record, and none after the device was saved');
  t.equal(device.state.commits, 2, 'the imagined one, and its own');
  t.ok(device.state.memory.every((byte) => byte === 7));
  await manager.reset();
});
