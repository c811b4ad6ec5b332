// SPDX-License-Identifier: Apache-2.0
/** save, load and check by migration v1, v2 or whatever a server has, of devices of our own. */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { checkDevices, load, type ProtocolChoice, save } from '../../src/operations/index.js';
import { Errno, MigrationState, RequestError } from '../../src/wire/index.js';
import { sameBytes } from '../support/hex.js';
import { outcome, serveScratch, socketFolder } from '../support/served.js';

const { RUNNING, STOP } = MigrationState;
const SIZE = 65536;
const MAPPED = { migrationRegion: { mapped: true, dataSize: 8192 } } as const;

t.test('saved by one protocol, loaded by another', async (t) => {
  const file = join(socketFolder(t), 'state');
  for (const from of ['v1', 'v2', 'auto'] as const) {
    for (const to of ['v1', 'v2', 'auto'] as const) {
      const source = serveScratch(t, { stateSize: SIZE, migration: 'both', ...MAPPED });
      const destination = serveScratch(t, { stateSize: SIZE, migration: to === 'auto' ? 'v1' : 'both' });
      for (let i = 0; i < SIZE; i++) source.scratch.state.memory[i] = (i * 13) & 0xff;
      const what = `${from} to ${to}`;
      const saved = await save({
        migrationSocket: source.migrationPath,
        output: file,
        protocol: from,
        afterwards: 'stop',
      });
      t.equal(saved.bytes, readFileSync(file).length);
      const loaded = await load({
        migrationSocket: destination.migrationPath,
        input: file,
        protocol: to,
        afterwards: 'run',
      });
      t.equal(loaded.bytes, saved.bytes);
      t.ok(sameBytes(source.scratch.state.memory, destination.scratch.state.memory), what);
      t.equal(await (await source.manager()).state(), STOP, `${what}: the source is stopped`);
      t.equal(destination.scratch.running, true, `${what}: the destination runs`);
    }
  }
});

t.test('saved while the device runs, as far as that goes', async (t) => {
  const file = join(socketFolder(t), 'state');
  for (const protocol of ['v1', 'v2'] as const) {
    const source = serveScratch(t, { stateSize: SIZE, migration: protocol });
    const destination = serveScratch(t, { stateSize: SIZE });
    const { memory } = source.scratch.state;
    for (let i = 0; i < SIZE; i++) memory[i] = (i * 7) & 0xff;
    const options = { migrationSocket: source.migrationPath, output: file, precopy: true } as const;
    const saved = await save({ ...options, afterwards: 'run' });
    t.ok(saved.precopyBytes > SIZE, `${protocol}: its memory before it stopped`);
    t.ok(saved.bytes - saved.precopyBytes < 4096, `${protocol}: and the rest after`);
    await load({ migrationSocket: destination.migrationPath, input: file, afterwards: 'run' });
    t.ok(sameBytes(memory, destination.scratch.state.memory), protocol);
    t.equal(source.scratch.running, true);
    await save({ ...options, precopy: false, afterwards: 'stop' });
    const again = await save({ ...options, afterwards: 'run' });
    t.equal(again.precopyBytes, 0, `${protocol}: one that is stopped is not run for it`);
  }
});

t.test('a device of v1 that is to be stopped after a load', async (t) => {
  const file = join(socketFolder(t), 'state');
  const served = serveScratch(t, { migration: 'v1' });
  await save({ migrationSocket: served.migrationPath, output: file, afterwards: 'run' });
  t.equal(served.scratch.running, true);
  await load({ migrationSocket: served.migrationPath, input: file, afterwards: 'stop' });
  const region = await served.region();
  t.equal(await region.state(), STOP);
  t.equal(served.scratch.state.commits > 0, true);
  await region.setState(RUNNING);
});

t.test('a state that does not fit is refused before the device is touched, by either', async (t) => {
  const file = join(socketFolder(t), 'state');
  const source = serveScratch(t, { parameter: 'other' });
  await save({ migrationSocket: source.migrationPath, output: file, afterwards: 'run' });
  for (const protocol of ['v1', 'v2'] as const) {
    const served = serveScratch(t, { migration: protocol });
    const loading = load({ migrationSocket: served.migrationPath, input: file, afterwards: 'run' });
    t.equal(await outcome(loading), 'DEVSTATE_E_INCOMPATIBLE', protocol);
    t.strictSame(served.scratch.takeCalls(), []);
  }
});

t.test('a load that fails leaves a device that was reset, by either', async (t) => {
  const file = join(socketFolder(t), 'state');
  for (const protocol of ['v1', 'v2'] as const) {
    const served = serveScratch(t, { migration: protocol });
    await save({ migrationSocket: served.migrationPath, output: file, afterwards: 'run' });
    let commits = 0;
    served.scratch.hook = (step) => {
      // The first is of its own state, before the load.
      if (step === 'commit' && ++commits === 2) throw new RequestError(Errno.ENOSPC, 'no room');
    };
    const loading = load({ migrationSocket: served.migrationPath, input: file, afterwards: 'run' });
    t.equal(await outcome(loading), Errno.ENOSPC, protocol);
    t.equal(served.scratch.running, true);
    t.ok(served.scratch.takeCalls().includes('reset aborted'));
  }
});

t.test('check names the protocols, and who has no P2P', async (t) => {
  const [one, two] = [serveScratch(t, { migration: 'both' }), serveScratch(t, { migration: 'both' })];
  const check = (protocol?: ProtocolChoice) =>
    checkDevices({
      source: one.migrationPath,
      dest: two.migrationPath,
      ...(protocol === undefined ? {} : { protocol }),
    });
  const auto = await check();
  t.match(auto, {
    compatible: true,
    source: { protocol: 'v2', p2p: true },
    dest: { protocol: 'v2', p2p: true },
  });
  t.strictSame(auto.remarks, []);
  const v1 = await check('v1');
  t.match(v1, {
    compatible: true,
    source: { protocol: 'v1', p2p: false },
    dest: { protocol: 'v1', p2p: false },
  });
  t.equal(v1.remarks.length, 2);
  t.match(v1.remarks[0], `the source (${one.migrationPath}) has no P2P state`);
  t.match(v1.remarks[1], `the destination (${two.migrationPath}) has no P2P state`);
});
