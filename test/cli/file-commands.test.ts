// SPDX-License-Identifier: Apache-2.0
/** inspect, verify, diff, convert, wrap, unwrap and formats as users meet them: files of every sort, pipes, what is refused. */

import { type SpawnSyncReturns, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync,
  lstatSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import t, { type Test } from 'tap';
import {
  encodeBlob,
  fixture,
  forgeHeader,
  MINIMAL_HEADER,
  MINIMAL_RECORDS,
  piecesOf,
} from '../formats/blobs.js';
import { savedBlob } from '../operations/files/saved.js';
import { MAIN } from '../support/main.js';

t.setTimeout(900_000);

function devstate(args: readonly string[], input?: Uint8Array): SpawnSyncReturns<string> {
  return spawnSync(process.execPath, [MAIN, ...args], { encoding: 'utf8', input, timeout: 60_000 });
}

/** A script of the shell, in which `devstate` is the command under test. */
function shell(script: string, cwd: string): SpawnSyncReturns<string> {
  const prelude = `devstate() { "${process.execPath}" "${MAIN}" "$@"; }; set -o pipefail\n`;
  return spawnSync('bash', ['-c', prelude + script], { encoding: 'utf8', cwd, timeout: 60_000 });
}

/** What must hold of every text: it fits a screen, and moves no cursor. */
function readable(t: Test, text: string, what: string): void {
  const bad = text.split('\n').filter((line) => [...line].length > 80 || /[\p{C}\p{Zl}\p{Zp}]/u.test(line));
  t.same(bad, [], `${what}: lines of at most 80 columns`);
}

function refused(t: Test, args: string[], exitCode: number, code: string, says = /./): void {
  const { status, stdout, stderr } = devstate(args);
  const what = args.join(' ').slice(-60);
  t.equal(status, exitCode, what, { stderr });
  t.match(stderr, new RegExp(`^error: [^\\n]* \\[DEVSTATE_E_${code}\\]\\n$`), what);
  t.match(stderr, says, what);
  t.equal(stdout, '', 'nothing on stdout');
}

/** A directory with blobs of both vendors. */
async function folder(t: Test): Promise<string> {
  const directory = t.testdir();
  for (const vendor of ['alder', 'birch'] as const) {
    writeFileSync(join(directory, vendor), await savedBlob(t, { vendor }));
  }
  const busier = await savedBlob(t, { more: (rig) => rig.run(3, { opcode: 0, nsid: 1 }) });
  writeFileSync(join(directory, 'busier'), busier);
  return directory;
}

t.test('inspect: JSON for machines, text for people, from a file and from a pipe', async (t) => {
  const directory = await folder(t);
  const alder = join(directory, 'alder');
  const { stdout, status } = devstate(['inspect', alder, '-o', 'json']);
  t.equal(status, 0);
  const found = JSON.parse(stdout);
  t.match(found, {
    format: { uuid: 'd49a84ce-5d67-4c5c-9ba8-6c99372bc19d', name: 'org.devstate.nvme.alder', version: '1.0' },
    model: 'devstate.org/nvme',
    parameters: { queues: 4 },
    producer: { name: /^alder/, version: String },
    records: [{ name: 'identity', type: Number, flags: 0, length: Number, offset: Number }],
    digest: { ok: true },
    fields: [{ record: 0, name: 'identity', values: Object }],
    size: statSync(alder).size,
  });
  const piped = devstate(['inspect', '-', '-o', 'json'], readFileSync(alder));
  t.same(JSON.parse(piped.stdout), found, 'the same through a pipe');
  const fifo = shell('mkfifo fifo; cat alder > fifo & devstate inspect fifo -o json', directory);
  t.same(JSON.parse(fifo.stdout), found, 'the same through a FIFO');

  const brief = devstate(['inspect', alder]).stdout;
  t.match(
    brief,
    /^Format: +org\.devstate\.nvme\.alder 1\.0.*\n└─ end: sha256 .*\nStatus: +intact and complete\n$/s,
  );
  const fields = devstate(['inspect', alder, '--fields']).stdout;
  t.ok(fields.split('\n').length > 2 * brief.split('\n').length);
  const hex = devstate(['inspect', '-', '--hex'], readFileSync(alder)).stdout;
  const payload = readFileSync(alder)
    .subarray(found.records[0].offset + 32)
    .subarray(0, 16);
  t.ok(hex.includes(`│  0000  ${payload.toString('hex').replace(/../g, '$& ')} `), 'bytes of a pipe');
  for (const [what, text] of Object.entries({ brief, fields, hex })) readable(t, text, what);
  const withHex = JSON.parse(devstate(['inspect', alder, '--hex', '-o', 'json']).stdout);
  t.ok(withHex.records[0].hex.startsWith(payload.toString('hex')));
  t.equal(withHex.records[0].hex.length, 2 * found.records[0].length);
});

t.test('inspect --path', async (t) => {
  const directory = await folder(t);
  const alder = join(directory, 'alder');
  const select = (path: string) => {
    const { stdout, stderr, status } = devstate(['inspect', alder, '--path', path]);
    t.equal(status, 0, path, { stderr });
    return JSON.parse(stdout);
  };
  t.equal(select('format.name'), 'org.devstate.nvme.alder');
  t.equal(select("$['digest'].ok"), true);
  t.equal(select('records[99].name'), null, 'nothing there');
  t.same(select('records[?@.length > 400].name'), ['function']);
  refused(t, ['inspect', alder, '--path', 'a b'], 2, 'PATH', /"a b" is no JSONPath/);
  refused(t, ['inspect', alder, '--path', '$[?count(@.a)]'], 2, 'PATH');
});

t.test('inspect --extract: what is inside, never over a file, never elsewhere', async (t) => {
  const directory = t.testdir();
  const file = (name: string) => join(directory, name);
  const raw = fixture('foreign/mtty.bin');
  const wrapping = ['wrap', '--format', 'aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee', '--model', 'example.org/tty'];
  t.equal(devstate([...wrapping, '-', '-o', file('wrapped')], raw).status, 0);
  const first = devstate(['inspect', file('wrapped'), '--extract', file('a/b')]);
  t.equal(first.status, 0, first.stderr);
  t.match(first.stdout, /Opaque: +96 B of mtty\n├─ header/);
  t.match(first.stderr, /\/a\/b\/opaque\.bin {2}96 B/);
  t.same(readdirSync(file('a/b')), ['opaque.bin']);
  t.ok(readFileSync(file('a/b/opaque.bin')).equals(raw));
  writeFileSync(file('a/b/opaque.bin'), 'precious');
  symlinkSync(file('elsewhere'), file('a/b/opaque.bin.2'));
  devstate(['inspect', file('wrapped'), '--extract', file('a/b')]);
  t.equal(readFileSync(file('a/b/opaque.bin'), 'utf8'), 'precious', 'what is there stays');
  t.notOk(existsSync(file('elsewhere')), 'no link is followed');
  t.ok(readFileSync(file('a/b/opaque.bin.3')).equals(raw));
  writeFileSync(file('blob'), encodeBlob(MINIMAL_RECORDS));
  devstate(['inspect', file('blob'), '--extract', file('c')]);
  t.same(readdirSync(file('c')).sort(), ['record-0.function.bin', 'record-1.queues.bin']);
  t.equal(readFileSync(file('c/record-0.function.bin'), 'utf8'), 'hello');
  t.match(devstate(['inspect', '-', '--extract', file('d')], raw).stderr, /nothing to extract/);
  refused(t, ['inspect', file('blob'), '--extract', file('blob')], 1, 'OUTPUT');
});

t.test('what cannot be read, is damaged, or too new', async (t) => {
  const directory = await folder(t);
  const file = (name: string, bytes?: Uint8Array) => {
    if (bytes !== undefined) writeFileSync(join(directory, name), bytes);
    return join(directory, name);
  };
  const blob = readFileSync(file('alder'));
  const newer = Buffer.from(
    encodeBlob(MINIMAL_RECORDS, { ...MINIMAL_HEADER, version: { major: 2, minor: 0 } }),
  );
  file('newer', newer);
  file('cut', blob.subarray(0, 1000));
  for (const command of ['inspect', 'verify']) {
    refused(t, [command, file('missing')], 1, 'INPUT', /missing/);
    refused(t, [command, directory], 1, 'INPUT', /directory/);
    t.equal(devstate([command, '-'], new Uint8Array(0)).status, 6, `${command}: nothing`);
    const { status, stdout } = devstate([command, file('cut')]);
    t.equal(status, 6);
    t.match(stdout.replaceAll(/\s+/g, ' '), /DEVSTATE_E_ENVELOPE_TRUNCATED: .* \(record 2, offset 1000\)/);
    readable(t, stdout, command);
  }
  const json = devstate(['verify', '-', '-o', 'json'], blob.subarray(0, 1000));
  t.match(JSON.parse(json.stdout), { intact: false, error: { offset: 1000, record: 2 } });
  t.equal(json.status, 6);
  const intact = devstate(['verify', file('alder')]);
  t.equal(intact.status, 0);
  t.match(
    intact.stdout,
    /^Format: +org\.devstate\.nvme\.alder 1\.0\nSize: .*4 records\nDigest: .*\nStatus: +intact/,
  );
  for (const at of [0, 20, 60, 300, 530, blob.length - 1]) {
    const damaged = Buffer.from(blob);
    damaged[at]! ^= 0x10;
    t.equal(devstate(['verify', '-'], damaged).status, 6, `byte ${at}`);
  }
  const envelope = Buffer.from(encodeBlob([]));
  const { header } = piecesOf(envelope);
  envelope.set(forgeHeader(header, { 24: [9, 0] }));
  for (const command of ['inspect', 'verify']) {
    t.match(
      devstate([command, '-'], envelope),
      { status: 3, stdout: /DEVSTATE_E_ENVELOPE_VERSION/ },
      'too new, not damaged',
    );
  }
  const shown = devstate(['inspect', file('newer')]);
  t.match(shown.stdout, /org\.devstate\.nvme\.alder 2\.0.*unknown 0x00010001/s);
  refused(
    t,
    ['convert', '--to', 'org.devstate.nvme', file('newer'), '-o', file('out')],
    3,
    'CONVERSION',
    /alder 2\.0/,
  );
  refused(
    t,
    ['convert', '--to', 'nonsense', file('alder'), '-o', file('out')],
    3,
    'FORMAT_UNKNOWN',
    /"nonsense"/,
  );
  refused(
    t,
    ['convert', '--to', 'org.devstate.nvme@1.5', file('alder'), '-o', file('out')],
    3,
    'FORMAT_VERSION',
  );
  refused(
    t,
    ['convert', '--to', 'org.devstate.nvme.alder@1.5', file('alder'), '-o', file('out')],
    3,
    'FORMAT_VERSION',
  );
  refused(
    t,
    ['convert', '--to', 'org.nvmexpress.controller-state', file('alder'), '-o', file('out')],
    3,
    'CONVERSION',
    /without losing/,
  );
  refused(
    t,
    ['convert', '--to', 'org.devstate.nvme', file('cut'), '-o', file('out')],
    6,
    'ENVELOPE_TRUNCATED',
  );
  refused(t, ['unwrap', file('alder'), '-o', file('out')], 3, 'CONVERSION', /does not wrap/);
  refused(
    t,
    ['wrap', '--format', 'oak', '--model', 'm', file('alder'), '-o', file('out')],
    3,
    'FORMAT_UNKNOWN',
  );
  refused(t, ['diff', '-', '-'], 2, 'USAGE');
  refused(t, ['diff', file('alder'), file('cut')], 6, 'ENVELOPE_TRUNCATED', /cut:/);
  refused(t, ['formats', 'oak'], 3, 'FORMAT_UNKNOWN');
  t.notOk(existsSync(file('out')), 'nothing was written');
  t.equal(devstate(['wrap', '--format', 'oak', '--model', '', 'x', '-o', 'y']).status, 2);
});

/** Whether a process has a file without a name open in this directory. */
function writesIn(pid: number, directory: string): boolean {
  const fds = `/proc/${pid}/fd`;
  return readdirSync(fds).some((fd) => {
    try {
      const target = readlinkSync(join(fds, fd));
      return target.startsWith(`${directory}/`) && target.endsWith('(deleted)');
    } catch {
      return false;
    }
  });
}

t.test('where output goes', async (t) => {
  const directory = await folder(t);
  const file = (name: string) => join(directory, name);
  const convert = (...args: string[]) => devstate(['convert', '--to', 'org.devstate.nvme', ...args]);
  writeFileSync(file('kept'), 'precious');
  writeFileSync(file('cut'), readFileSync(file('alder')).subarray(0, 1000));
  t.equal(convert(file('cut'), '-o', file('kept'), '--force').status, 6);
  t.equal(readFileSync(file('kept'), 'utf8'), 'precious', 'a run that fails leaves the file that is there');
  refused(
    t,
    ['convert', '--to', 'org.devstate.nvme', file('alder'), '-o', '/dev/full'],
    1,
    'OUTPUT',
    /ENOSPC/,
  );
  refused(t, ['convert', '--to', 'org.devstate.nvme', file('alder'), '-o', file('no/where')], 1, 'OUTPUT');
  refused(t, ['convert', '--to', 'org.devstate.nvme', file('alder'), '-o', directory], 1, 'OUTPUT');
  t.equal(convert(file('alder'), '-o', '/dev/null').status, 0);
  t.ok(lstatSync('/dev/null').isCharacterDevice(), '/dev/null is what it was');
  symlinkSync('kept', file('link'));
  const refusedLink = convert(file('alder'), '-o', file('link'));
  t.match(refusedLink, { status: 1, stderr: /it is a text file, not a saved device state.*--force/ });
  t.equal(readFileSync(file('kept'), 'utf8'), 'precious', 'what is no state is not replaced');
  t.match(convert(file('alder'), '-o', file('link'), '--force'), { status: 0, stderr: /^warning: .*kept/ });
  t.ok(lstatSync(file('link')).isSymbolicLink(), 'a link stays one');
  const converted = readFileSync(file('kept'));
  t.equal(devstate(['verify', file('kept')]).status, 0, 'and leads to the new file');
  t.equal(convert(file('alder'), '-o', file('link')).status, 0, 'a state is replaced by another');
  t.match(convert(file('birch'), '-o', file('birch')), { status: 1, stderr: /it is the file that is read/ });
  t.equal(convert(file('birch'), '-o', file('birch'), '--force').status, 0, 'onto itself');
  t.match(devstate(['verify', file('birch')]).stdout, /org\.devstate\.nvme 1\.0/);

  const through = shell(
    'devstate convert --to org.devstate.nvme - -o - < alder | devstate verify -',
    directory,
  );
  t.match(through, { status: 0, stdout: /org\.devstate\.nvme 1\.0/ });
  const late = shell(
    'mkfifo fifo; cat fifo > copy & devstate convert --to org.devstate.nvme alder -o fifo; wait',
    directory,
  );
  t.equal(late.status, 0, late.stderr);
  t.equal(readFileSync(file('copy')).length, converted.length, 'into a FIFO');
  t.ok(lstatSync(file('fifo')).isFIFO());
  const redirected = shell(
    'devstate convert --to org.devstate.nvme alder -o /dev/stdout > redirected',
    directory,
  );
  t.equal(redirected.status, 0, redirected.stderr);
  t.ok(lstatSync('/dev/stdout').isSymbolicLink());
  t.equal(devstate(['verify', file('redirected')]).status, 0);

  const closed = shell('devstate convert --to org.devstate.nvme alder -o - | true', directory);
  t.match(closed, { status: 1, stderr: /cannot write to stdout.*DEVSTATE_E_OUTPUT/ });
  t.notMatch(closed.stderr, /^ {4}at /m);
  const head = shell('devstate inspect alder --hex | head -1', directory);
  t.match(head, { stdout: /^Format:.*\n$/, stderr: '' });
  const full = shell('devstate inspect alder > /dev/full', directory);
  t.match(full, { status: 1, stderr: /ENOSPC.*DEVSTATE_E_OUTPUT/ });
  const args = [MAIN, 'convert', '--to', 'org.devstate.nvme', '-', '-o', file('never')];
  const waiting = spawn(process.execPath, args, { stdio: ['pipe', 'ignore', 'pipe'] });
  const ended = once(waiting, 'close');
  let said = '';
  waiting.stderr.setEncoding('utf8').on('data', (text: string) => {
    said += text;
  });
  waiting.stdin.write(readFileSync(file('alder')).subarray(0, 100));
  while (!writesIn(waiting.pid!, directory)) await delay(20);
  waiting.kill('SIGINT');
  t.same(await ended, [4, null], 'asked to end while it waits for more');
  t.match(said, /cancelled: .*never was not written.*DEVSTATE_E_CANCELLED/);
  t.same(
    readdirSync(directory).filter((name) => name.includes('partial') || name === 'never'),
    [],
    'nothing half written is left',
  );
});

t.test('diff', async (t) => {
  const directory = await folder(t);
  const file = (name: string) => join(directory, name);
  const same = devstate(['diff', file('alder'), '-'], readFileSync(file('birch')));
  t.match(
    same,
    { status: 0, stdout: /^no difference, compared as org\.devstate\.nvme\.alder 1\.0\n$/ },
    'across vendors, from a pipe',
  );
  const { status, stdout } = devstate(['diff', file('alder'), file('busier')]);
  t.equal(status, 1);
  readable(t, stdout, 'diff');
  t.match(stdout, /^queues\..*\[id 3\]\.head\n {2}- 0\n {2}\+ 1\n/m, 'by the names of fields');
  t.match(stdout, /\d+ differences, compared as/);
  const json = JSON.parse(devstate(['diff', file('alder'), file('busier'), '-o', 'json']).stdout);
  t.equal(json.same, false);
  t.match(
    json.differences.find(({ path }: { path: string }) => /id 3\]\.head$/.test(path)),
    { a: 0, b: 1 },
  );
  const pipes = shell('devstate diff <(cat alder) <(cat birch)', directory);
  t.match(pipes, { status: 0, stdout: /no difference/ }, pipes.stderr);
  writeFileSync(
    file('other'),
    encodeBlob([], { ...MINIMAL_HEADER, format: 'aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee' as never }),
  );
  refused(t, ['diff', file('alder'), file('other')], 3, 'CONVERSION', /cannot be compared/);
  const evil = { ...MINIMAL_HEADER, model: 'a\u202e\u001b[2J\u009b', other: { note: 'x'.repeat(5000) } };
  writeFileSync(file('evil'), encodeBlob([], evil));
  writeFileSync(
    file('evil2'),
    encodeBlob([], { ...evil, model: 'b\u2028', other: { note: `${'x'.repeat(4000)}y` } }),
  );
  readable(t, devstate(['diff', file('evil'), file('evil2')]).stdout, 'text of a blob');
  t.match(devstate(['diff', file('evil'), file('evil2')]).stdout, /\.note\n {2}- \d+ characters … x+/);
});

t.test('wrap, unwrap and formats', async (t) => {
  const directory = t.testdir();
  const file = (name: string) => join(directory, name);
  const wrap = ['wrap', '--format', 'org.oasis-open.virtio.device-parts', '--model', 'example.org/x'];
  for (const [name, bytes] of [
    ['nothing', new Uint8Array(0)],
    ['more than a record can hold', Buffer.alloc(17 * 1024 * 1024 + 3, 'abc')],
  ] as const) {
    t.equal(devstate([...wrap, '-', '-o', file('blob')], bytes).status, 0, name);
    t.equal(devstate(['unwrap', file('blob'), '-o', file('raw')]).status, 0, name);
    t.ok(readFileSync(file('raw')).equals(bytes), name);
  }
  const more = [
    '--format-version',
    '2.1',
    '--param',
    'a=4',
    '--param',
    'b=true',
    '--param',
    'c="7\\n"',
    '--param',
    'd=x y',
  ];
  t.equal(devstate([...wrap, ...more, '-', '-o', file('blob')], Buffer.from('x')).status, 0);
  const { parameters, format } = JSON.parse(devstate(['inspect', file('blob'), '-o', 'json']).stdout);
  t.same(parameters, { a: 4, b: true, c: '7\n', d: 'x y' });
  t.equal(format.version, '2.1');
  t.equal(devstate([...wrap, '--format-version', '70000.1', '-', '-o', file('x')]).status, 2);

  const list = devstate(['formats']);
  const all = JSON.parse(devstate(['formats', '-o', 'json']).stdout);
  const one = devstate(['formats', 'org.devstate.nvme']);
  for (const { stdout } of [list, one]) readable(t, stdout, 'formats');
  for (const { name, uuid } of all.formats)
    t.ok(list.stdout.includes(name) && list.stdout.includes(uuid), name);
  t.match(list.stdout, /qemu-stream +QEMU migration stream/);
  t.match(one.stdout, /Converts to: +org\.devstate\.nvme\.alder 1\.0\n +org\.devstate\.nvme\.birch 1\.0\n/);
  const byUuid = JSON.parse(devstate(['formats', all.formats[0].uuid.toUpperCase(), '-o', 'json']).stdout);
  t.same(byUuid, all.formats[0]);
});
