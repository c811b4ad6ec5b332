// SPDX-License-Identifier: Apache-2.0
/** The image file: creation, sizes, locks between processes, I/O, leaks. */

import { spawnSync } from 'node:child_process';
import { chmodSync, mkdirSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { createAlderNvme } from '../../../src/devices/nvme/alder/index.js';
import { ImageFile } from '../../../src/devices/nvme/image-file.js';
import { allows } from '../../../src/formats/index.js';
import { openFds } from '../../support/closes.js';
import { imageFolder } from './rig.js';

const MIB = 1024 * 1024;

t.test('opening', async (t) => {
  const folder = imageFolder(t);
  const path = join(folder, 'disk');

  t.throws(() => ImageFile.open({ path, lock: true }), { code: 'DEVSTATE_E_IMAGE_MISSING' });
  t.throws(() => ImageFile.open({ path, lock: false, size: MIB }), { code: 'DEVSTATE_E_IMAGE_MISSING' });
  const image = ImageFile.open({ path, lock: true, size: MIB });
  t.equal(image.size, MIB);
  t.equal(statSync(path).blocks, 0, 'sparse');
  t.ok(image.locked);

  t.throws(() => ImageFile.open({ path, lock: true }), {
    code: 'DEVSTATE_E_IMAGE_LOCKED',
    message: /in use by another/,
  });
  const second = ImageFile.open({ path, lock: false });
  t.throws(() => second.lock(), { code: 'DEVSTATE_E_IMAGE_LOCKED' });
  await t.rejects(second.write([new Uint8Array(512)], 0), { code: 'DEVSTATE_E_IMAGE_LOCKED' });
  t.throws(() => second.writeNow([new Uint8Array(512)], 0, 512), { code: 'DEVSTATE_E_IMAGE_LOCKED' });
  await t.rejects(second.punchHole(0, 512), { code: 'DEVSTATE_E_IMAGE_LOCKED' });

  image.lock();
  await image.unlock();
  await image.unlock();
  t.notOk(image.locked);
  second.lock();
  t.throws(() => image.lock(), { code: 'DEVSTATE_E_IMAGE_LOCKED' });
  await second.close();
  await second.close();
  truncateSync(path, 2 * MIB);
  t.throws(() => image.lock(), { code: 'DEVSTATE_E_IMAGE_SIZE', message: /resized/ });
  truncateSync(path, MIB);
  image.lock();
  await image.close();

  t.throws(() => ImageFile.open({ path, lock: true, size: 2 * MIB }), {
    code: 'DEVSTATE_E_IMAGE_SIZE',
    message: /too small/,
  });
  t.throws(() => ImageFile.open({ path, lock: true, size: MIB / 2 }), {
    code: 'DEVSTATE_E_IMAGE_SIZE',
    message: /too large/,
  });
  t.equal(statSync(path).size, MIB, 'never resized');
  writeFileSync(join(folder, 'empty'), '');
  t.throws(() => ImageFile.open({ path: join(folder, 'empty'), lock: true }), {
    code: 'DEVSTATE_E_IMAGE_SIZE',
  });
  mkdirSync(join(folder, 'folder'));
  t.throws(() => ImageFile.open({ path: join(folder, 'folder'), lock: true }), {
    code: 'DEVSTATE_E_IMAGE_OPEN',
  });
  t.throws(() => ImageFile.open({ path: '/dev/null', lock: true }), { code: 'DEVSTATE_E_IMAGE_OPEN' });
  if (process.getuid?.() !== 0) {
    chmodSync(path, 0o400);
    t.throws(() => ImageFile.open({ path, lock: true }), { code: 'DEVSTATE_E_IMAGE_OPEN' });
  }
});

t.test('another process is kept out', async (t) => {
  const path = join(imageFolder(t), 'disk');
  const image = ImageFile.open({ path, lock: true, size: MIB });
  const module = new URL('../../../src/devices/nvme/image-file.js', import.meta.url).href;
  const script = `import(${JSON.stringify(module)}).then(({ ImageFile }) => {
    try { ImageFile.open({ path: process.argv[1], lock: true }); console.log('locked'); } catch (e) { console.log(e.code); }
  })`;
  const attempt = () => spawnSync(process.execPath, ['-e', script, path], { encoding: 'utf8' }).stdout.trim();
  t.equal(attempt(), 'DEVSTATE_E_IMAGE_LOCKED');
  await image.unlock();
  t.equal(attempt(), 'locked');
  await image.close();
});

t.test('reading, writing, zeroing', async (t) => {
  const path = join(imageFolder(t), 'disk');
  const image = ImageFile.open({ path, lock: true, size: MIB });
  t.teardown(() => image.close());
  const parts = Array.from({ length: 3000 }, (_, i) => new Uint8Array(16).fill(i));
  await image.write(parts, 4096);
  t.ok(
    readFileSync(path)
      .subarray(4096, 4096 + 48000)
      .equals(Buffer.concat(parts)),
    'more buffers than one call takes',
  );
  const back = parts.map(() => new Uint8Array(16));
  t.notOk(image.readNow(back, 4096, 48000), 'too many at once');
  await image.read(back, 4096);
  t.ok(Buffer.concat(back).equals(Buffer.concat(parts)));

  t.ok(await image.punchHole(8192, 4096));
  await image.writeZeroes(16384, 4096);
  const bytes = readFileSync(path);
  t.ok([...bytes.subarray(8192, 12288), ...bytes.subarray(16384, 20480)].every((byte) => byte === 0));
  t.equal(bytes[12288], ((12288 - 4096) / 16) & 0xff);

  const flushes = Array.from({ length: 20 }, () => image.flush());
  await Promise.all(flushes);
  const writing = image.write([new Uint8Array(65536)], 0);
  await t.rejects(image.unlock(), { code: 'DEVSTATE_E_INTERNAL' }, 'not while a write is under way');
  await writing;
  truncateSync(path, 4096);
  await t.rejects(image.read([new Uint8Array(8192)], 0), {
    code: 'DEVSTATE_E_IMAGE_SIZE',
    message: /truncated/,
  });
});

t.test('parameters', async (t) => {
  const path = join(imageFolder(t), 'disk');
  const image = ImageFile.open({ path, lock: true, size: MIB + 512 });
  t.teardown(() => image.close());
  const device = createAlderNvme({ image, parameters: { queues: '2', serial: 'x y' } });
  const { definitions = {}, ...model } = device.model;
  t.same(model, {
    uri: 'devstate.org/nvme',
    parameters: {
      queues: 2,
      msix_vectors: 3,
      queue_entries: 1024,
      mdts: 7,
      lba_size: 512,
      namespace_size: MIB + 512,
      serial: 'x y',
      model_number: 'devstate NVMe',
      firmware: '1.0',
    },
  });
  for (const [name, value] of Object.entries(model.parameters)) {
    const definition = definitions[name];
    t.ok(definition !== undefined && allows(definition, value), `${name} is defined, and ${value} allowed`);
  }
  const wrong: [string, string | number | boolean, RegExp][] = [
    ['queue', 1, /no parameter "queue": choose among queues,/],
    ['__proto__x', 1, /no parameter/],
    ['queues', 0, /from 1 to 255/],
    ['queues', '256', /from 1 to 255/],
    ['queues', '1e2', /not an integer/],
    ['queues', 1.5, /not an integer/],
    ['queues', '', /not an integer/],
    ['queues', true, /not an integer/],
    ['lba_size', 1024, /512, 4096/],
    ['mdts', 11, /from 1 to 10/],
    ['serial', '', /1 to 20/],
    ['serial', ' x', /spaces at the ends/],
    ['serial', 'x'.repeat(21), /1 to 20/],
    ['firmware', 'ü', /ASCII/],
  ];
  for (const [name, value, message] of wrong) {
    t.throws(
      () => createAlderNvme({ image, parameters: { [name]: value } }),
      { code: 'DEVSTATE_E_MODEL_PARAMETER', message },
      `${name}=${value}`,
    );
  }
  t.throws(() => createAlderNvme({ image, parameters: { lba_size: 4096 } }), {
    code: 'DEVSTATE_E_IMAGE_BLOCK_SIZE',
  });
  t.throws(() => createAlderNvme({ image, parameters: { namespace_size: 2 * MIB } }), {
    code: 'DEVSTATE_E_IMAGE_SIZE',
    message: /too small/,
  });
});

t.test('closing waits for what is under way', async (t) => {
  const path = join(imageFolder(t), 'disk');
  const image = ImageFile.open({ path, lock: true, size: MIB });
  const source = new Uint8Array(MIB).fill(7);
  const ended: string[] = [];
  const work = [
    image.write([source], 0).then(() => ended.push('write')),
    image.read([new Uint8Array(MIB)], 0).then(() => ended.push('read')),
  ];
  await Promise.all([image.close(), image.close()]);
  t.same(ended.toSorted(), ['read', 'write']);
  await Promise.all(work);
  t.ok(readFileSync(path).equals(source));
});

t.test('no descriptor leaks', async (t) => {
  const path = join(imageFolder(t), 'disk');
  const open = () => openFds();
  await ImageFile.open({ path, lock: true, size: MIB }).close();
  const before = open();
  for (let i = 0; i < 200; i++) {
    const image = ImageFile.open({ path, lock: true });
    t.throws(() => ImageFile.open({ path, lock: true }));
    t.throws(() => ImageFile.open({ path, lock: false, size: 1 }));
    await image.close();
  }
  t.equal(open(), before);
});
