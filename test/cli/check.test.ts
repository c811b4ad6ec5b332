// SPDX-License-Identifier: Apache-2.0
/** `devstate check` as users meet it: what it prints, in 80 columns and as JSON, and what it exits with. */

import { mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { GuestMachine } from '../../src/guest-driver/index.js';
import { devstate, serveNvme } from '../e2e/harness/devstate-process.js';

t.setTimeout(900_000);

function folder(t: Test): string {
  const path = mkdtempSync(join(tmpdir(), 'check-'));
  t.teardown(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

/** A device server without a VMM. @returns its migration socket */
async function nvme(t: Test, directory: string, name: string, ...args: string[]): Promise<string> {
  const at = (suffix: string): string => join(directory, `${name}.${suffix}`);
  const server = await serveNvme({
    socket: at('sock'),
    migrationSocket: at('mig'),
    image: at('img'),
    args: args.includes('--size') ? args : ['--size', '1M', ...args],
  });
  t.teardown(() => server.end());
  return at('mig');
}

interface Checked {
  code: number;
  stdout: string;
  stderr: string;
  /** All text in one line. */
  text: string;
}

async function check(t: Test, source: string, dest: string, ...args: string[]): Promise<Checked> {
  const done = await devstate('check', '--source', source, '--dest', dest, ...args);
  if (!args.includes('json'))
    t.strictSame(
      done.stdout.split('\n').filter((line) => [...line].length > 80 || line !== line.trimEnd()),
      [],
      'no line is longer than 80 columns, or ends in blanks',
    );
  return { ...done, text: done.stdout.replaceAll(/\s+/g, ' ') };
}

t.test('check', async (t) => {
  const directory = folder(t);
  const [alder, twin] = await Promise.all([
    nvme(t, directory, 'alder', '--param', 'queues=2'),
    nvme(t, directory, 'twin', '--vendor', 'birch', '--param', 'queues=2'),
  ]);
  const [other, native, valued] = await Promise.all([
    nvme(
      t,
      directory,
      'other',
      '--size',
      '2M',
      '--param',
      'queues=8',
      '--param',
      'mdts=3',
      '--param',
      'serial=OTHER',
      '--param',
      'model_number=a b',
    ),
    nvme(
      t,
      directory,
      'native',
      '--vendor',
      'birch',
      '--param',
      'queues=2',
      '--format',
      'org.devstate.nvme.birch',
    ),
    nvme(t, directory, 'valued', '--param', 'queues=2', '--format', 'values'),
  ]);

  await t.test('two vendors that fit together', async (t) => {
    const { code, stderr, text, stdout } = await check(t, alder, twin);
    t.equal(code, 0, 'exit code', { stderr });
    t.equal(stderr, '');
    t.match(stdout, /^Compatible: +yes$/m);
    t.match(stdout, /^Model: +devstate\.org\/nvme$/m);
    t.match(stdout, /^ {2}queues: +2$/m);
    t.match(stdout, /^ {2}namespace_size: +1048576$/m);
    t.match(text, /Source: \S+ \S+, org\.devstate\.nvme\.alder 1\.0, org\.devstate\.nvme 1\.0/);
    t.match(text, /Destination: .*birch.*1\.0/);
    t.match(text, /State: about .*iB as org\.devstate\.nvme/);
    t.match(
      text,
      / Format: org\.devstate\.nvme 1\.0 because: both ends have it, and it holds everything not:/,
    );
    t.equal(stdout.match(/^ {2}not:/gm)?.length, 3, 'and every other way');
    t.match(text, /Expected pause: not known: no VMM is connected to the source $/);
  });

  await t.test('one device in both places', async (t) => {
    const link = join(directory, 'link.mig');
    symlinkSync(alder, link);
    for (const dest of [alder, link]) {
      const { code, stderr, stdout } = await check(t, alder, dest);
      t.equal(code, 2, 'exit code');
      t.equal(stdout, '');
      t.match(stderr, /^error: source and destination are the same device, .*\[DEVSTATE_E_USAGE\]\n$/);
    }
  });

  await t.test('every difference at once', async (t) => {
    const { code, text, stderr } = await check(t, alder, other);
    t.equal(code, 3, 'exit code');
    t.equal(stderr, '', 'what was found is a result, not an error');
    for (const says of [
      'Compatible: no',
      'parameter mdts is 7 at the source, 3 at the destination',
      'parameter model_number is "devstate NVMe" at the source, "a b" at the destination',
      'parameter msix_vectors is 3 at the source, 9 at the destination',
      'parameter namespace_size is 1048576 at the source, 2097152 at the destination',
      'parameter queues is 2 at the source, 8 at the destination',
      'parameter serial is "DEVSTATE0001" at the source, "OTHER" at the destination',
      'start the destination with --param queues=2 --param msix_vectors=3 --param mdts=7',
      "--param 'model_number=devstate NVMe'",
      'queues: 2 at the source, 8 at the destination',
    ])
      t.ok(text.includes(says), says);
    const json = await check(t, alder, other, '-o', 'json');
    t.equal(json.code, 3);
    t.match(JSON.parse(json.stdout), { compatible: false, reasons: { length: 7 } });
  });

  await t.test('as JSON', async (t) => {
    const { code, stdout, stderr } = await check(t, alder, twin, '-o', 'json');
    t.equal(code, 0, 'exit code', { stderr });
    const result = JSON.parse(stdout);
    t.strictSame(Object.keys(result).sort(), [
      'compatible',
      'dest',
      'expected',
      'negotiation',
      'notExpected',
      'reasons',
      'remarks',
      'source',
    ]);
    const format = (name: string) => ({
      uuid: /^[0-9a-f-]{36}$/,
      name,
      version: '1.0',
      save: true,
      load: true,
      fidelity: 'complete',
      features: Array,
      estimate: Number,
    });
    const peer = (vendor: string) => ({
      model: 'devstate.org/nvme',
      parameters: { queues: 2, serial: 'DEVSTATE0001', namespace_size: 2 ** 20 },
      producer: { name: String, version: String },
      interface: 'formats',
      formats: [format(`org.devstate.nvme.${vendor}`), format('org.devstate.nvme')],
    });
    t.match(result, {
      compatible: true,
      reasons: [],
      source: peer('alder'),
      dest: peer('birch'),
      negotiation: {
        taken: 'org.devstate.nvme 1.0',
        reason: String,
        losses: [],
        features: [],
        candidates: { length: 4 },
      },
    });
    for (const candidate of result.negotiation.candidates)
      t.match(candidate, { name: String, taken: Boolean, reason: /../, losses: Array });
  });

  await t.test('formats asked for, or forced', async (t) => {
    const converted = await check(t, alder, native);
    t.equal(converted.code, 0);
    t.match(
      converted.text,
      /Format: org\.devstate\.nvme 1\.0 → org\.devstate\.nvme\.birch 1\.0 because: converted by 1 step/,
    );
    const asked = await check(t, alder, native, '--format', 'org.devstate.nvme.alder');
    t.equal(asked.code, 0);
    t.match(
      asked.text,
      /Format: org\.devstate\.nvme\.alder 1\.0 → org\.devstate\.nvme 1\.0 → org\.devstate\.nvme\.birch 1\.0 because: converted by 2 steps; asked for/,
    );
    const none = await check(t, alder, native, '--format', 'org.example.none');
    t.equal(none.code, 3);
    t.match(none.text, /Compatible: no no format can be used/);
    t.match(none.text, /Format: none because: no format of the source can be used at the destination not: /);
    t.match(none.text, /org\.example\.none was asked for/);
    const values = await check(t, valued, native);
    t.equal(values.code, 0);
    t.match(values.text, /Source: \S+ \S+, values of org\.devstate\.nvme 1\.0/);
    t.match(values.text, /State: size not told/);
  });

  await t.test('the pause of a migration, where a VMM has the source', async (t) => {
    const machine = await GuestMachine.start(alder.replace(/mig$/, 'sock'));
    t.teardown(() => machine.close());
    const { code, stderr, text } = await check(t, alder, twin, '--downtime-ms', '200');
    t.equal(code, 0, 'exit code', { stderr });
    const row =
      /Expected pause: 200(\.\d)? ms: pages 0(\.0)? ms, QEMU at most \S+ ms, rest \S+ ms; the device writes 0 B\/s $/;
    t.match(text, row);
    const json = await check(t, alder, twin, '-o', 'json');
    const result = JSON.parse(json.stdout);
    t.match(result, { notExpected: null, expected: { totalMs: 300, pagesMs: 0, devices: { length: 1 } } });
    t.strictSame(Object.keys(result.expected.devices[0]), [
      'id',
      'pageBytes',
      'dirtyBytesPerSecond',
      'copyBytesPerSecond',
      'copiedBy',
      'byMessage',
    ]);
  });

  await t.test('servers that say nothing of themselves', async (t) => {
    const vmm = (path: string): string => path.replace(/mig$/, 'sock');
    const opaque = await check(t, vmm(alder), vmm(other));
    t.equal(opaque.code, 0);
    t.match(opaque.text, /Source: unknown server, does not say which formats it has/);
    t.match(opaque.text, /Model: not told/);
    t.match(opaque.text, /Format: format unknown because: the stream is passed on as it is/);
    t.match(opaque.text, /Expected pause: not known: the source does not tell which memory its VMM has: /);
    const half = await check(t, alder, vmm(other));
    t.equal(half.code, 3);
    t.match(half.text, /the destination does not say which formats it has/);
    t.match(half.text, /because: only one of the two ends says which formats it has/);
  });

  await t.test('what cannot be asked', async (t) => {
    const gone = await check(t, alder, join(directory, 'gone'));
    t.equal(gone.code, 5);
    t.equal(gone.stdout, '');
    t.match(gone.stderr, /^error: .*gone.*DEVSTATE_E_CONNECT/);
    for (const args of [
      [],
      ['--source', alder],
      ['--dest', alder],
      ['--source', alder, '--dest', twin, '-o', 'xml'],
    ]) {
      const { code, stdout } = await devstate('check', ...args);
      t.equal(code, 2, args.join(' '));
      t.equal(stdout, '');
    }
  });
});
