// SPDX-License-Identifier: Apache-2.0
/** The state of a device of another make in a file: as it is, or wrapped, with its chunks as they were. */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import t from 'tap';
import { load, save } from '../../src/operations/index.js';
import { ForeignDevice } from '../support/foreign-region.js';
import { outcome, Served, serveScratch, socketFolder } from '../support/served.js';

const FORMAT = '0b1a6d3e-7c58-4e0f-8f5f-9d1c2a3b4c5d';
const MODEL = 'example.org/foreign';
const CHUNKS = [100, 3, 99].map((length, i) => Uint8Array.from({ length }, (_, n) => (i * 50 + n) & 0xff));
const lengths = (chunks: readonly Uint8Array[]): number[] => chunks.map(({ length }) => length);

t.test('wrapped: the same chunks arrive', async (t) => {
  const file = join(socketFolder(t), 'state');
  const source = new ForeignDevice({ dataSize: 100 });
  const from = new Served(t, source);
  const saving = (options: { format?: string; model?: string }) => {
    source.chunks = CHUNKS.slice();
    return save({ migrationSocket: from.path, output: file, afterwards: 'run', ...options });
  };
  t.equal(await outcome(saving({ model: MODEL })), 'DEVSTATE_E_USAGE', 'as what?');
  t.equal(await outcome(saving({ model: MODEL, format: 'no.such.format' })), 'DEVSTATE_E_USAGE');
  t.strictSame(source.written, [], 'nothing was touched');
  await saving({ model: MODEL, format: FORMAT });
  const blob = readFileSync(file);

  const loading = async (room: number) => {
    const device = new ForeignDevice({ dataSize: room });
    const served = new Served(t, device);
    const result = await outcome(load({ migrationSocket: served.path, input: file, afterwards: 'run' }));
    return { result, device };
  };
  for (const room of [100, 5000]) {
    const { result, device } = await loading(room);
    t.equal(result, 0);
    t.strictSame(lengths(device.loaded), lengths(CHUNKS));
    t.equal(Buffer.concat(device.loaded).compare(Buffer.concat(CHUNKS)), 0);
    t.equal(device.state, 1);
  }
  const small = await loading(50);
  t.equal(small.result, 'DEVSTATE_E_INCOMPATIBLE', 'no room for a chunk');
  t.strictSame(small.device.loaded, []);
  t.equal(small.device.state, 1, 'reset');

  for (const cut of [blob.length - 1, blob.length >> 1, 30]) {
    writeFileSync(file, blob.subarray(0, cut));
    const { result, device } = await loading(100);
    t.match(result, /^DEVSTATE_E_ENVELOPE/, `cut at ${cut}`);
    t.strictSame(device.written, [], 'the device was not touched');
  }
});

t.test('as it is: the same bytes', async (t) => {
  const file = join(socketFolder(t), 'state');
  const source = new ForeignDevice({ dataSize: 100 });
  source.chunks = CHUNKS.slice();
  await save({ migrationSocket: new Served(t, source).path, output: file, afterwards: 'stop' });
  t.equal(readFileSync(file).compare(Buffer.concat(CHUNKS)), 0);
  const device = new ForeignDevice({ dataSize: 100 });
  await load({ migrationSocket: new Served(t, device).path, input: file, afterwards: 'run' });
  t.equal(Buffer.concat(device.loaded).compare(Buffer.concat(CHUNKS)), 0);
});

t.test('what is certainly no state of a device is refused, unless it is to be given as it is', async (t) => {
  const file = join(socketFolder(t), 'state');
  const path = serveScratch(t).migrationPath;
  const saved = join(socketFolder(t), 'saved');
  await save({ migrationSocket: path, output: saved, afterwards: 'run' });
  const samples: readonly (readonly [string, Uint8Array | string, string, RegExp])[] = [
    ['empty', '', 'ENVELOPE_TRUNCATED', /state is empty: save/],
    ['text', 'a note\n', 'ENVELOPE_MAGIC', /is a text file, not a device state: .*--raw/],
    [
      'qcow2',
      Buffer.from('514649fb00000003'.padEnd(1024, '0'), 'hex'),
      'ENVELOPE_MAGIC',
      /is a qcow2 .*--raw/,
    ],
    ['libvirt', `LibvirtQemudSave${'\0'.repeat(512)}`, 'ENVELOPE_MAGIC', /is a libvirt save file.*--raw/],
    ['gzip', gzipSync('x'.repeat(99)), 'ENVELOPE_MAGIC', /is .*gzip.*--raw/],
    ['QEMU', Buffer.from('5145564d00000003'.padEnd(1024, '0'), 'hex'), 'ENVELOPE_MAGIC', /QEMU.*--raw/],
    ['other format', readFileSync(saved), 'INCOMPATIBLE', /is of format .* does not say .*--raw/],
  ];
  for (const [name, bytes, code, message] of samples) {
    writeFileSync(file, bytes);
    const device = new ForeignDevice({ dataSize: 100 });
    const migrationSocket = new Served(t, device).path;
    const loading = (raw: boolean) => load({ migrationSocket, input: file, afterwards: 'run', raw });
    await t.rejects(loading(false), { code: `DEVSTATE_E_${code}`, message }, name);
    t.strictSame(device.written, [], `${name}: the device was not touched`);
    await loading(true);
    t.equal(Buffer.concat(device.loaded).compare(Buffer.from(bytes)), 0, `${name}: given as it is`);
  }
  const says = load({ migrationSocket: path, input: saved, afterwards: 'run', raw: true });
  t.equal(await outcome(says), 'DEVSTATE_E_USAGE');
});

t.test('a device that says what it is is not wrapped, and takes nothing that is', async (t) => {
  const file = join(socketFolder(t), 'state');
  const scratch = serveScratch(t);
  const migrationSocket = scratch.migrationPath;
  const wrapped = save({ migrationSocket, output: file, afterwards: 'run', model: MODEL, format: FORMAT });
  t.equal(await outcome(wrapped), 'DEVSTATE_E_USAGE');
  const source = new ForeignDevice();
  source.chunks = CHUNKS.slice();
  const from = new Served(t, source).path;
  await save({ migrationSocket: from, output: file, afterwards: 'run', model: MODEL, format: FORMAT });
  t.equal(
    await outcome(load({ migrationSocket, input: file, afterwards: 'run' })),
    'DEVSTATE_E_INCOMPATIBLE',
  );
});
