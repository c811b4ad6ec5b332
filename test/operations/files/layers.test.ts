// SPDX-License-Identifier: Apache-2.0
/** Files that hold no state, or hold it within something else: what inspect says of them, and what the others say. */

import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import t, { type Test } from 'tap';
import {
  convertFile,
  diffFiles,
  inspectFile,
  unwrapFile,
  verifyFile,
  withInput,
  withOutput,
} from '../../../src/operations/index.js';
import { PACKAGE_ROOT } from '../../../src/package-root.js';
import { fixture } from '../../formats/blobs.js';

const folder = mkdtempSync(join(tmpdir(), 'devstate-layers-'));
t.teardown(() => rmSync(folder, { recursive: true }));
const stream = fixture('foreign/qemu-none.bin');
const XML = '<domain type="kvm"><name>vm</name><uuid>1-2</uuid></domain>\0';

function written(name: string, ...parts: (Uint8Array | string)[]): string {
  const path = join(folder, name);
  writeFileSync(path, Buffer.concat(parts.map((part) => Buffer.from(part as string, 'latin1'))));
  return path;
}

/** libvirt's header, in either byte order. */
function libvirt(
  format: number,
  options: { partial?: boolean; cookie?: string; big?: boolean } = {},
): Buffer {
  const { partial = false, cookie = '', big = false } = options;
  const data = Buffer.concat([Buffer.from(XML), Buffer.from(cookie), Buffer.alloc(200)]);
  const head = Buffer.alloc(92);
  head.write(partial ? 'LibvirtQemudPart' : 'LibvirtQemudSave');
  for (const [index, value] of [2, data.length, 1, format, cookie === '' ? 0 : XML.length].entries())
    if (big) head.writeUInt32BE(value, 16 + 4 * index);
    else head.writeUInt32LE(value, 16 + 4 * index);
  return Buffer.concat([head, data]);
}

const look = (path: string, limit?: number) =>
  withInput(path, async (input) => (await inspectFile(input, { limit })).inspection);

/** The stream's report, below all layers. */
function innermost(found: Awaited<ReturnType<typeof look>>): { kind: string; names: (string | null)[] } {
  let content = found.kind === 'content' ? found.content : undefined;
  for (;;) {
    const inner = content?.sections.findLast((section) => section.content !== null)?.content;
    if (content === undefined || content.kind === 'qemu-stream' || inner == null) break;
    content = inner;
  }
  return { kind: content?.kind ?? 'none', names: content?.sections.map(({ name }) => name) ?? [] };
}

const has = (program: string): boolean => spawnSync(program, ['--version']).error === undefined;
const by = (...command: [string, ...string[]]): Buffer =>
  execFileSync(command[0], command.slice(1), { input: stream });

t.test('the stream in libvirt save files and compressed ones is found', async (t) => {
  const whole = innermost(await look(written('plain', stream)));
  t.ok(whole.names.includes('vmdescription'));
  const cases: [name: string, path: string][] = [
    ['raw', written('raw', libvirt(0), stream)],
    ['big', written('big', libvirt(0, { big: true }), stream)],
    ['cookie', written('cookie', libvirt(0, { cookie: '<cookie/>\0' }), stream)],
    ['gzip in libvirt', written('lgz', libvirt(1), gzipSync(stream))],
    ['sparse', written('sparse', libvirt(6), Buffer.alloc(700), stream)],
    ['gzip', written('gz', gzipSync(stream))],
    ['twice', written('gzgz', gzipSync(gzipSync(stream)))],
    ['libvirt in gzip', written('gzl', gzipSync(Buffer.concat([libvirt(0), stream])))],
    ['behind zeros', written('zeros', Buffer.alloc(512), stream)],
  ];
  for (const [index, program] of [
    [2, 'bzip2'],
    [3, 'xz'],
    [4, 'lzop'],
    [5, 'zstd'],
  ] as const) {
    if (!has(program)) continue;
    const packed = by(program, '-c');
    cases.push([program, written(program, packed)]);
    cases.push([`${program} in libvirt`, written(`l${program}`, libvirt(index), packed)]);
  }
  for (const [name, path] of cases) {
    const found = await look(path);
    t.equal(found.error, null, name);
    t.same(innermost(found), whole, name);
  }
  const { content } = (await look(join(folder, 'cookie'))) as unknown as {
    content: { fields: object; sections: object[] };
  };
  t.match(content.fields, { domain: 'vm', uuid: '1-2', was_running: true, compression: 'raw', version: 2 });
  t.match(content.sections[1], {
    name: 'domain XML',
    fields: { xml: XML.slice(0, -1), cookie: '<cookie/>' },
  });
});

t.test('what is cut off, damaged or too large says so, and what came before is shown', async (t) => {
  const packed = gzipSync(stream);
  const broken = Buffer.from(packed);
  broken[broken.length - 6]! ^= 1;
  const cases: [path: string, code: string, says: RegExp][] = [
    [written('cut', packed.subarray(0, 700)), 'CONTENT_TRUNCATED', /stops before its end/],
    [written('broken', broken), 'CONTENT_DAMAGED', /cannot be decompressed/],
    [
      written('part', libvirt(0, { partial: true }), stream.subarray(0, 2000)),
      'CONTENT_TRUNCATED',
      /libvirt has not finished/,
    ],
    [written('short', libvirt(0).subarray(0, 120)), 'CONTENT_TRUNCATED', /within the XML/],
    [written('new', libvirt(9), stream), 'CONTENT_UNSUPPORTED', /number 9/],
    [written('lied', libvirt(1), stream), 'CONTENT_DAMAGED', /cannot be decompressed/],
  ];
  for (const [path, code, says] of cases) {
    const { kind, error } = await look(path);
    t.equal(kind, 'content');
    t.match(error, { code: `DEVSTATE_E_${code}`, message: says }, path);
  }
  const bomb = written('bomb', gzipSync(Buffer.concat([stream, Buffer.alloc(8 << 20)])));
  const found = await look(bomb, 1 << 20);
  t.match(found.error, { code: 'DEVSTATE_E_CONTENT_UNSUPPORTED', message: /--limit/ });
  t.equal(innermost(found).kind, 'qemu-stream');
});

/** What real programs made of `stream` (lzop 1.04, xz 5.4, zstd 1.5), with their names in other files. */
const compressed = (name: string): Buffer =>
  readFileSync(join(PACKAGE_ROOT, 'test/operations/files/compressed', name));

t.test('what other programs write is read, by itself and in libvirt save files', async (t) => {
  const whole = innermost(await look(written('whole', stream)));
  const read = async (t: Test, name: string, number: number, bytes: Buffer) => {
    for (const path of [written('alone', bytes), written('saved', libvirt(number), bytes)]) {
      const found = await look(path);
      t.equal(found.error, null, name);
      t.same(innermost(found), whole, name);
    }
  };
  t.test('lzop', { skip: !has('lzop') && 'the program lzop is not installed' }, async (t) => {
    for (const name of ['1', '9', 'crc32-name', 'no-name', 'no-checksum', 'three-parts'])
      await read(t, name, 4, compressed(`lzop-${name}.lzo`));
    // Three blocks, as the stream has many zeros behind it.
    const blocks = await look(written('blocks', compressed('lzop-blocks.lzo')));
    t.same(innermost(blocks), { ...whole, names: [...whole.names, null] });
    t.match(blocks, { content: { sections: [{ fields: { decompressed_size: stream.length + 700_000 } }] } });
    const cut = await look(written('lcut', compressed('lzop-1.lzo').subarray(0, -20)));
    t.match(cut.error, { code: 'DEVSTATE_E_CONTENT_TRUNCATED', message: /stops before its end/ });
    const broken = compressed('lzop-1.lzo');
    broken[broken.length >> 1]! ^= 1;
    t.match((await look(written('lbad', broken))).error, {
      code: 'DEVSTATE_E_CONTENT_DAMAGED',
      message: /: (Checksum error|Compressed data violation)$/,
    });
  });
  for (const [number, program] of [
    [1, 'gzip'],
    [2, 'bzip2'],
    [3, 'xz'],
    [5, 'zstd'],
  ] as const) {
    t.test(program, { skip: !has(program) && `the program ${program} is not installed` }, async (t) => {
      const packed = (bytes: Uint8Array, ...args: string[]): Buffer =>
        execFileSync(program, ['-c', ...args], { input: bytes });
      await read(t, 'fast', number, packed(stream, '-1'));
      await read(t, 'small', number, packed(stream, '-9'));
      const parts = [packed(stream.subarray(0, 2000)), packed(stream.subarray(2000))];
      await read(t, 'two parts', number, Buffer.concat(parts));
      const { error } = await look(written('nothing', packed(new Uint8Array(0))));
      t.match(error, { code: 'DEVSTATE_E_CONTENT_TRUNCATED', message: /^nothing is in it: / });
    });
  }
  t.test('zstd, frames and windows', { skip: !has('zstd') }, async (t) => {
    await read(t, 'a skippable frame first', 5, compressed('skippable-frame.zst'));
    await read(t, 'long window', 5, execFileSync('zstd', ['-c', '--long=27'], { input: stream }));
  });
  t.test('lzma', { skip: !has('xz') }, async (t) => {
    await read(t, 'lzma', 3, compressed('old.lzma'));
  });
  for (const [name, program] of [
    ['window-2g.zst', 'zstd'],
    ['window-1g.xz', 'xz'],
  ] as const) {
    t.test(name, { skip: !has(program) }, async (t) => {
      t.match((await look(written('window', compressed(name)))).error, {
        code: 'DEVSTATE_E_CONTENT_UNSUPPORTED',
        message: /more than 512 MiB of memory .* decompress the file first/,
      });
    });
  }
});

const GPT = Buffer.concat([Buffer.alloc(512), Buffer.from('EFI PART'), Buffer.alloc(512)]);
const EXT = Buffer.alloc(4096);
EXT.writeUInt16LE(0xef53, 1080);
const QCOW2 = Buffer.alloc(512);
QCOW2.write('QFI\xfb', 'latin1');
QCOW2.writeUInt32BE(3, 4);
QCOW2.writeBigUInt64BE(200n, 8);
QCOW2.writeUInt32BE(8, 16);
QCOW2.writeUInt32BE(16, 20);
QCOW2.writeBigUInt64BE(1n << 30n, 24);
QCOW2.writeUInt32BE(1, 60);
QCOW2.writeBigUInt64BE(256n, 64);
QCOW2.write('base.img', 200);
QCOW2.writeUInt16BE(1, 256 + 12);
QCOW2.writeUInt16BE(4, 256 + 14);
QCOW2.writeUInt32BE(16, 256 + 36);
QCOW2.writeBigUInt64BE(12345n, 256 + 40);
QCOW2.write('1snap', 256 + 56);

t.test('files that hold no state are called by their names', async (t) => {
  const cases: [name: string, bytes: Uint8Array | string, title: RegExp, fields?: object][] = [
    [
      'qcow2',
      QCOW2,
      /^qcow2 disk image/,
      {
        version: 3,
        virtual_size: 2 ** 30,
        cluster_size: 65536,
        backing_file: 'base.img',
        list: [{ id: '1', name: 'snap', vm_state_size: 12345 }],
      },
    ],
    ['gpt', GPT, /GUID partition table/],
    ['ext', EXT, /ext2, ext3 or ext4/],
    ['luks', 'LUKS\xba\xbe\0\x02', /LUKS/],
    ['vmdk', 'KDMV\x01\0\0\0', /VMDK/],
    ['vhdx', 'vhdxfile', /VHDX/],
    ['kdump', 'KDUMP   ', /kdump/],
    ['core', Buffer.from('7f454c46020101000000000000000000040003e', 'hex'), /ELF core dump/],
    ['tar', Buffer.concat([Buffer.alloc(257), Buffer.from('ustar')]), /tar archive/],
    ['cpio', '070701000000010000', /cpio/],
    ['json', '{"a": 1}', /JSON/],
    ['xml', '<domain><name>x</name></domain>', /XML of a libvirt domain/],
    ['text', 'a text of more than one word or two\n', /text file/],
  ];
  for (const [name, bytes, title, fields = {}] of cases) {
    const path = written(name, typeof bytes === 'string' ? Buffer.from(bytes, 'latin1') : bytes);
    const found = await look(path);
    t.match(found, { kind: 'content', title, recognised: String, error: null, content: { fields } }, name);
    await withInput(path, async (input) => {
      const { error } = await verifyFile(input);
      t.match(
        error,
        { code: /^DEVSTATE_E_ENVELOPE_(MAGIC|TRUNCATED)$/, message: /^it is .*, not a device state.*: / },
        name,
      );
    });
    const wrong = { code: /^DEVSTATE_E_ENVELOPE_(MAGIC|TRUNCATED)$/, message: /is .*, not a device state/ };
    const out = join(folder, 'never');
    const to = { to: 'org.devstate.nvme' };
    await t.rejects(
      withInput(path, (input) => withOutput(out, (file) => convertFile(input, file, to))),
      wrong,
    );
    await t.rejects(
      withInput(path, (input) => withOutput(out, (file) => unwrapFile(input, file))),
      wrong,
    );
    await t.rejects(
      withInput(path, (input) => diffFiles(input, input)),
      wrong,
    );
  }
  const empty = written('empty', '');
  await t.rejects(
    withInput(empty, (input) => diffFiles(input, input)),
    { message: /is empty/ },
  );
  const libvirtFile = written('save', libvirt(0), stream);
  await t.rejects(
    withInput(libvirtFile, (input) => diffFiles(input, input)),
    {
      message: /is a libvirt save file, not a device state.*inspect shows/,
    },
  );
});

t.test('bytes of an unknown kind stay unknown', async (t) => {
  t.match(await look(written('noise', Buffer.from([1, 2, 3, 0xff, 0xfe, 0]))), {
    kind: 'unknown',
    error: { code: /ENVELOPE/ },
  });
});
