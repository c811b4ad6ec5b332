// SPDX-License-Identifier: Apache-2.0
/** Foreign streams in blobs: recognised within, and given back as they were; where what is found inside is written. */

import { spawn, spawnSync } from 'node:child_process';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { parseUuid } from '../../src/formats/index.js';
import {
  DirectoryExtraction,
  inspectFile,
  listContentKinds,
  listFormats,
  unwrapFile,
  withInput,
  withOutput,
  withRereadable,
  wrapFile,
} from '../../src/operations/index.js';
import { encodeBlob, fixture, MINIMAL_HEADER } from '../formats/blobs.js';

const FORMAT = parseUuid('aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee');
const KINDS = listContentKinds().map(({ kind }) => kind);
const FIXTURE = new Map([['qemu-stream', 'qemu-none']]);

function files(t: Test): (name: string, bytes?: Uint8Array) => string {
  const directory = t.testdir();
  return (name, bytes) => {
    const path = join(directory, name);
    if (bytes !== undefined) writeFileSync(path, bytes);
    return path;
  };
}

function wrap(from: string, to: string): Promise<number> {
  const options = {
    format: FORMAT,
    version: { major: 3, minor: 1 },
    model: 'example.org/x',
    parameters: { a: 1 },
  };
  return withInput(from, (input) => withOutput(to, (output) => wrapFile(input, output, options)));
}

function unwrap(from: string, to: string): Promise<number> {
  return withInput(from, (input) =>
    withOutput(to, (output) => unwrapFile(input, output), { written: 'any' }),
  );
}

t.test('streams of every kind are recognised in a blob, and taken out of it', async (t) => {
  const file = files(t);
  for (const kind of KINDS) {
    const raw = fixture(`foreign/${FIXTURE.get(kind) ?? kind}.bin`);
    t.equal(await wrap(file('raw', raw), file('blob')), raw.length, kind);
    const { inspection, extracted } = await withInput(file('blob'), (input) =>
      inspectFile(input, { extractTo: file(`out-${kind}`) }),
    );
    t.match(inspection, {
      kind: 'envelope',
      error: null,
      format: { uuid: FORMAT, name: null, version: '3.1' },
      model: 'example.org/x',
      parameters: { a: 1 },
      opaque: { size: raw.length, first: null, content: { kind, size: raw.length, error: null } },
    });
    t.same(extracted[0], { name: 'opaque.bin', size: raw.length });
    t.ok(readFileSync(join(file(`out-${kind}`), 'opaque.bin')).equals(raw), 'extracted as it was');
    t.equal(await unwrap(file('blob'), file('again')), raw.length);
    t.ok(readFileSync(file('again')).equals(raw), 'unwrapped as it was');
  }
});

t.test('property: any bytes', async (t) => {
  const file = files(t);
  const property = fc.asyncProperty(
    fc.uint8Array({ maxLength: 3000, size: 'max' }),
    fc.constantFrom(1, 1, 1, 700),
    async (unit, times) => {
      const raw = Buffer.concat(Array.from({ length: times }, () => unit));
      await wrap(file('raw', raw), file('blob'));
      await unwrap(file('blob'), file('again'));
      return readFileSync(file('again')).equals(raw);
    },
  );
  await t.resolves(fc.assert(property, { numRuns: 60 }));
});

t.test('what wraps nothing is refused, and what has been compressed is not', async (t) => {
  const file = files(t);
  const code = async (blob: Uint8Array): Promise<string> => {
    try {
      await unwrap(file('in', blob), file('out'));
      return '';
    } catch (error) {
      return (error as { code: string }).code;
    }
  };
  const opaque = { type: 2, flags: 0, payload: Buffer.alloc(5000, 'x') };
  const own = { type: 0x10000, flags: 0, payload: Buffer.from('state') };
  t.equal(await code(encodeBlob([opaque], { ...MINIMAL_HEADER, features: ['deflate'] })), '');
  t.ok(readFileSync(file('out')).equals(opaque.payload));
  t.equal(await code(encodeBlob([{ ...own, flags: 1 }, opaque])), '', 'what is optional may be there');
  t.equal(await code(encodeBlob([own])), 'DEVSTATE_E_CONVERSION');
  t.equal(await code(encodeBlob([{ ...own, flags: 1 }])), 'DEVSTATE_E_CONVERSION');
  t.equal(await code(encodeBlob([opaque]).subarray(0, 3000)), 'DEVSTATE_E_ENVELOPE_TRUNCATED');
  t.ok(readFileSync(file('out')).equals(opaque.payload), 'what was there before is left');
});

t.test('names that are found inside have no say in where files are written', async (t) => {
  const file = files(t);
  const extraction = new DirectoryExtraction(file('a/b/c'));
  const names = [
    '../../evil',
    '..',
    '.',
    '',
    '/etc/passwd',
    'a/b',
    'x\0y',
    'é\n',
    '.hidden',
    'x'.repeat(5000),
  ];
  for (const name of [...names, ...names]) {
    const taken = extraction.begin(name);
    taken.write(Buffer.from(name));
    taken.write(Buffer.from('!'));
    taken.end();
  }
  t.equal(extraction.files.length, 2 * names.length);
  t.same(
    readdirSync(file('')).filter((name) => name !== 'a'),
    [],
  );
  t.same(readdirSync(file('a')), ['b']);
  t.same(readdirSync(file('a/b')), ['c']);
  const written = readdirSync(file('a/b/c'));
  t.same(written.sort(), extraction.files.map(({ name }) => name).sort());
  for (const [index, { name, size }] of extraction.files.entries()) {
    t.match(name, /^[A-Za-z0-9_-][A-Za-z0-9._-]{0,219}$/);
    const content = Buffer.from(`${names[index % names.length]}!`);
    t.ok(readFileSync(join(file('a/b/c'), name)).equals(content));
    t.equal(size, content.length);
  }
});

t.test('what is read once can be read again', async (t) => {
  const file = files(t);
  spawnSync('mkfifo', [file('fifo')]);
  const bytes = Buffer.alloc(3_000_001, 'any');
  const writer = spawn('sh', ['-c', `cat '${file('raw', bytes)}' > '${file('fifo')}'`]);
  t.teardown(() => writer.kill());
  const lengths = await withRereadable(file('fifo'), async (input) => {
    const read = async () => {
      const parts: Uint8Array[] = [];
      for await (const chunk of input.chunks()) parts.push(chunk.slice());
      return Buffer.concat(parts).equals(bytes);
    };
    return [input.size, input.path, await read(), await read(), input.bytesAt(3_000_000, 10).length];
  });
  t.same(lengths, [bytes.length, file('fifo'), true, true, 1]);
});

t.test('the list of formats', async (t) => {
  const formats = listFormats();
  t.equal(new Set(formats.map(({ uuid }) => uuid)).size, formats.length);
  for (const { name, convertsTo } of formats) {
    t.same(listFormats(name)[0], listFormats(listFormats(name)[0]!.uuid)[0]);
    for (const { format, losses } of convertsTo) {
      const [other = ''] = format.split(' ');
      const back = listFormats(other)[0]?.convertsFrom.find((from) => from.format.startsWith(`${name} `));
      t.same(back?.losses, losses, `${name} to ${other} is listed at both`);
    }
  }
  t.match(listFormats('org.devstate.nvme')[0], { described: true, values: true, kind: 'standard' });
  t.throws(() => listFormats('oak'), { code: 'DEVSTATE_E_FORMAT_UNKNOWN' });
});
