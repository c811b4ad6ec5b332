// SPDX-License-Identifier: Apache-2.0
/** What else may be mistaken for a device's state: saved machines, dumps, archives, programs, text. */
import type { FieldMap } from '../fields.js';
import { HeadReader, magicRow, type Signature } from './signature.js';

const ELF_TYPES: readonly string[] = ['none', 'relocatable', 'executable', 'shared', 'core'];
const ELF_MACHINES: Readonly<Record<number, string>> = {
  3: 'x86',
  62: 'x86-64',
  183: 'aarch64',
  22: 's390x',
  21: 'ppc64',
  243: 'riscv',
};

/** Program headers of a core dump whose notes are looked for. */
const HEADERS_MAX = 64;
const PT_NOTE = 4;

function elf(head: Buffer): FieldMap | undefined {
  const read = new HeadReader(head);
  if (read.u32(0) !== 0x464c457f) return undefined;
  const bits = read.u8(4) === 1 ? 32 : 64;
  const type = ELF_TYPES[read.u16(16)] ?? String(read.u16(16));
  return { type, bits, machine: ELF_MACHINES[read.u16(18)] ?? read.u16(18) };
}

const core: Signature = {
  name: 'elf-core',
  title: 'an ELF core dump of a process or of a guest',
  group: 'machine',
  match(head) {
    const fields = elf(head);
    if (fields?.type !== 'core') return undefined;
    return { ...fields, of: hasNote(head, 'QEMU') ? 'a guest, written by QEMU (dump-guest-memory)' : null };
  },
};

/** Whether one of the notes of a 64-bit core dump bears this name; as far as the first bytes go. */
function hasNote(head: Buffer, name: string): boolean {
  const read = new HeadReader(head);
  if (read.u8(4) !== 2) return head.includes(`${name}\0`);
  const [table, size, count] = [read.u64(32), read.u16(54), read.u16(56)];
  for (let index = 0; index < Math.min(count, HEADERS_MAX); index++) {
    const header = table + index * size;
    if (read.u32(header) !== PT_NOTE) continue;
    const [offset, length] = [read.u64(header + 8), read.u64(header + 32)];
    if (head.subarray(offset, offset + length).includes(`${name}\0`)) return true;
  }
  return false;
}

const program: Signature = {
  name: 'elf',
  title: 'an ELF program or library',
  group: 'program',
  match: elf,
};

const cpio: Signature = {
  name: 'cpio',
  title: 'a cpio archive',
  group: 'archive',
  match: (head) => (/^07070[127][0-9A-Fa-f]{8}/.test(head.toString('latin1', 0, 14)) ? {} : undefined),
};

/** The two bytes that every DOS program has, and behind them the header of a Windows one. */
const windowsProgram: Signature = {
  name: 'pe',
  title: 'a Windows program',
  group: 'program',
  match(head) {
    if (head.toString('latin1', 0, 2) !== 'MZ') return undefined;
    const at = new HeadReader(head).u32(60);
    return head.toString('latin1', at, at + 4) === 'PE\0\0' ? {} : undefined;
  },
};

/** Machines that others have saved; QEMU's own stream and libvirt's files are read, and have kinds of their own. */
export const MACHINES: readonly Signature[] = [
  core,
  magicRow(
    'machine',
    'kdump',
    'a kdump of a guest (dump-guest-memory in kdump format, or makedumpfile)',
    'KDUMP   ',
  ),
  magicRow('machine', 'kdump-flat', 'a kdump in flattened format', 'makedumpfile'),
  magicRow('machine', 'windows-dump', 'a Windows crash dump (dump-guest-memory -w)', 'PAGEDU64'),
  magicRow('machine', 'windows-dump', 'a Windows crash dump (dump-guest-memory -w)', 'PAGEDUMP'),
  magicRow('machine', 'xen-save', 'a saved domain of Xen', 'Xen saved domain, xl format'),
  magicRow('machine', 'xen-save', 'a saved domain of Xen', 'LinuxGuestRecord'),
  magicRow('machine', 'virtualbox-save', 'a saved state of VirtualBox', '\x7fVirtualBox SavedState'),
  magicRow('machine', 'vmware-save', 'a suspended VM of VMware', '\xd2\xbe\xd2\xbe'),
  magicRow('machine', 'vmware-save', 'a suspended VM of VMware', '\xd1\xbe\xd2\xbe'),
];

/** Deflate is the one method there is, and three of the flags must be 0. */
const gzip: Signature = {
  name: 'gzip',
  title: 'compressed with gzip',
  group: 'compressed',
  match: (head) =>
    head.toString('latin1', 0, 3) === '\x1f\x8b\x08' && ((head[3] ?? 0xff) & 0xe0) === 0 ? {} : undefined,
};

/** Behind the level comes the mark of a block, or that of the end. */
const bzip2: Signature = {
  name: 'bzip2',
  title: 'compressed with bzip2',
  group: 'compressed',
  match(head) {
    const level = head.toString('latin1', 0, 4);
    const mark = head.toString('hex', 4, 10);
    return /^BZh[1-9]$/.test(level) && ['314159265359', '177245385090'].includes(mark) ? {} : undefined;
  },
};

/** Properties of the usual encoder, a dictionary of a power of two, and a length that is unknown or below 1 TiB. */
const lzma: Signature = {
  name: 'lzma',
  title: 'compressed with lzma',
  group: 'compressed',
  match(head) {
    if (head.length < 14 || head[0] !== 0x5d || head[13] !== 0) return undefined;
    const dictionary = head.readUInt32LE(1);
    const length = head.readBigUInt64LE(5);
    const isKnown = length === 0xffff_ffff_ffff_ffffn || length < 1n << 40n;
    return dictionary >= 4096 && (dictionary & (dictionary - 1)) === 0 && isKnown ? {} : undefined;
  },
};

const ZSTD_MAGIC = 0xfd2fb528;
/** The last four bits may be any. */
const SKIPPABLE_MAGIC = 0x184d2a50;

/** Frames that a reader skips may come first, as pzstd writes them. */
const zstd: Signature = {
  name: 'zstd',
  title: 'compressed with zstd',
  group: 'compressed',
  match(head) {
    for (let at = 0; at + 4 <= head.length; ) {
      const magic = head.readUInt32LE(at);
      if (magic === ZSTD_MAGIC) return {};
      if ((magic & ~0xf) >>> 0 !== SKIPPABLE_MAGIC || at + 8 > head.length) return undefined;
      at += 8 + head.readUInt32LE(at + 4);
    }
    return undefined;
  },
};

export const ARCHIVES: readonly Signature[] = [
  gzip,
  bzip2,
  lzma,
  zstd,
  magicRow('compressed', 'xz', 'compressed with xz', '\xfd7zXZ\0'),
  magicRow('compressed', 'lzop', 'compressed with lzop', '\x89LZO\0\r\n\x1a\n'),
  magicRow('compressed', 'lz4', 'compressed with lz4', '\x04\x22\x4d\x18'),
  magicRow('compressed', 'lzip', 'compressed with lzip', 'LZIP'),
  magicRow('archive', 'tar', 'a tar archive', 'ustar', 257),
  cpio,
  magicRow('archive', 'zip', 'a zip archive', 'PK\x03\x04'),
  magicRow('archive', '7z', 'a 7z archive', '7z\xbc\xaf\x27\x1c'),
  magicRow('archive', 'ar', 'an ar archive', '!<arch>\n'),
  magicRow('archive', 'rpm', 'an RPM package', '\xed\xab\xee\xdb'),
];

export const PROGRAMS: readonly Signature[] = [
  program,
  magicRow('program', 'script', 'a script', '#!'),
  windowsProgram,
  magicRow('other', 'device-tree', 'a flattened device tree', '\xd0\x0d\xfe\xed'),
  magicRow('other', 'sqlite', 'an SQLite database', 'SQLite format 3\0'),
  magicRow('other', 'pdf', 'a PDF document', '%PDF-'),
  magicRow('other', 'png', 'a PNG picture', '\x89PNG\r\n\x1a\n'),
  magicRow('other', 'pcap', 'a packet capture', '\xd4\xc3\xb2\xa1'),
  magicRow('other', 'pcapng', 'a packet capture', '\x0a\x0d\x0d\x0a'),
];

const text = (name: string, title: string, pattern: RegExp): Signature => ({
  name,
  title,
  group: 'text',
  match(head) {
    const start = textOf(head);
    return start !== undefined && pattern.test(start) ? {} : undefined;
  },
});

/** Characters of a text, undefined of what is none. */
const PROBED_TEXT = 4096;

function textOf(head: Buffer): string | undefined {
  if (head.length === 0) return undefined;
  const cut = head.length > PROBED_TEXT;
  try {
    // A character that is cut off at the end of what is looked at is no defect.
    const start = new TextDecoder('utf-8', { fatal: true }).decode(head.subarray(0, PROBED_TEXT), {
      stream: cut,
    });
    // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what tells text from bytes
    return /[\x00-\x08\x0e-\x1a\x1c-\x1f]/.test(start) ? undefined : start;
  } catch {
    return undefined;
  }
}

export const TEXTS: readonly Signature[] = [
  text(
    'domain-xml',
    'the XML of a libvirt domain',
    /^\s*(<\?xml[^>]*>\s*)?(<!--[\s\S]*?-->\s*)*<domain[\s>]/,
  ),
  text('xml', 'an XML document', /^\s*<(\?xml|!--|!DOCTYPE|[A-Za-z])/),
  text('json', 'a JSON document', /^\s*[[{]\s*(["{[\]}\d-]|true|false|null)/),
  text('pem', 'a certificate or a key (PEM)', /^-----BEGIN /),
  text('text', 'a text file', /^/),
];
