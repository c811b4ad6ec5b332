// SPDX-License-Identifier: Apache-2.0
/** save, load and check by migration v1, v2 or whatever a server has, of devices of our own. */

import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createReadStream, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
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

t.test('a device that is reset while it is saved: what is saved is its state after that', async (t) => {
  const file = join(socketFolder(t), 'state');
  for (const protocol of ['v1', 'v2'] as const) {
    for (const step of ['save pre-copy', 'saved a chunk', 'quiesce', 'releaseExclusive', 'save final']) {
      const source = serveScratch(t, { stateSize: SIZE, migration: protocol });
      const vmm = await source.vmm();
      const destination = serveScratch(t, { stateSize: SIZE });
      source.scratch.state.memory.fill(7);
      let left = 2;
      source.scratch.hook = (now) => {
        // The guest does not wait for it, and the device runs again with other memory.
        if (now === step && left-- > 0) void vmm.reset();
        if (now.startsWith('reset')) setImmediate(() => source.scratch.state.write(0, Buffer.from([left])));
      };
      const migrationSocket = source.migrationPath;
      const options = { migrationSocket, output: file, precopy: true, unproven: true } as const;
      await save({ ...options, afterwards: 'stop' });
      await load({ migrationSocket: destination.migrationPath, input: file, afterwards: 'run' });
      t.equal(source.scratch.takeCalls().filter((call) => call === 'reset requested').length, 2);
      t.ok(sameBytes(source.scratch.state.memory, destination.scratch.state.memory), `${protocol}: ${step}`);
    }
  }
});

t.test('a device that is reset whenever it is saved, or with a part of it given away', async (t) => {
  const folder = socketFolder(t);
  const source = serveScratch(t, { stateSize: SIZE });
  const vmm = await source.vmm();
  source.scratch.hook = (now) => {
    if (now === 'save pre-copy') void vmm.reset();
  };
  const file = join(folder, 'state');
  const migrationSocket = source.migrationPath;
  const options = { migrationSocket, output: file, precopy: true, unproven: true } as const;
  await t.rejects(save({ ...options, afterwards: 'run' }), {
    code: 'DEVSTATE_E_VM_CHANGED',
    message: /10 attempts/,
  });
  t.equal(existsSync(file), false);
  t.equal(source.scratch.running, true);

  const pipe = join(folder, 'pipe');
  execFileSync('mkfifo', [pipe]);
  const reader = createReadStream(pipe).resume();
  const closed = once(reader, 'close');
  await t.rejects(save({ ...options, output: pipe, afterwards: 'run' }), {
    code: 'DEVSTATE_E_VM_CHANGED',
    message: /save to a regular file/,
  });
  await closed;
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

t.test('a file that is no state is named for what it is, and the device is not touched', async (t) => {
  const served = serveScratch(t);
  const file = join(socketFolder(t), 'file');
  const samples: readonly (readonly [string, Uint8Array | string, RegExp])[] = [
    ['empty', '', /is empty/],
    ['text', 'what somebody wrote down\n'.repeat(20), /is .*text/],
    ['qcow2', Buffer.concat([Buffer.from('514649fb00000003', 'hex'), Buffer.alloc(512)]), /qcow2/],
    ['libvirt', `LibvirtQemudSave${'\0'.repeat(512)}`, /libvirt save file/],
    ['gzip', gzipSync(randomBytes(512)), /gzip/],
    ['lzop', Buffer.concat([Buffer.from('894c5a4f000d0a1a0a', 'hex'), Buffer.alloc(512)]), /lzop/],
    ['QEMU stream', Buffer.concat([Buffer.from('5145564d00000003', 'hex'), Buffer.alloc(512)]), /QEMU/],
  ];
  for (const [name, bytes, message] of samples) {
    writeFileSync(file, bytes);
    const loading = load({ migrationSocket: served.migrationPath, input: file, afterwards: 'run' });
    await t.rejects(loading, { code: /^DEVSTATE_E_ENVELOPE_(MAGIC|TRUNCATED)$/, message }, name);
  }
  t.strictSame(served.scratch.takeCalls(), []);
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
