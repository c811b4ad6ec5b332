// SPDX-License-Identifier: Apache-2.0
/**
 * Builds the file system a test guest boots into: busybox, an init script and the programs a test brings.
 * The archive is cpio's "newc" format, as the kernel's Documentation/driver-api/early-userspace/buffer-format describes.
 */
import { createHash } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { gzip } from 'node:zlib';
import { PACKAGE_ROOT } from '../../../src/package-root.js';
import { cached } from '../../../tools/qemu/cache.js';
import type { GuestParts } from '../../../tools/qemu/provision.js';
import { run } from '../../../tools/qemu/run.js';

const DIRECTORY = 0o040755;
const PROGRAM = 0o100755;

/** A file in the archive. Names are relative to the root, without a leading slash. */
export interface ArchiveEntry {
  readonly name: string;
  /** File type and permission bits, as in `st_mode`. */
  readonly mode: number;
  readonly content: Uint8Array;
}

/** The entries as one cpio archive in newc format. */
export function cpioArchive(entries: readonly ArchiveEntry[]): Buffer {
  const parts: Buffer[] = [];
  const trailer = { name: 'TRAILER!!!', mode: 0, content: new Uint8Array() };
  for (const [index, { name, mode, content }] of [...entries, trailer].entries()) {
    const nameBytes = Buffer.from(`${name}\0`);
    // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    const fields = [index + 1, mode, 0, 0, 1, 0, content.length, 0, 0, 0, 0, nameBytes.length, 0];
    const header = `070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}`;
    parts.push(padded(Buffer.concat([Buffer.from(header), nameBytes])), padded(Buffer.from(content)));
  }
  return Buffer.concat(parts);
}

export function directoryEntry(name: string): ArchiveEntry {
  return { name, mode: DIRECTORY, content: new Uint8Array() };
}

export function programEntry(name: string, content: Uint8Array): ArchiveEntry {
  return { name, mode: PROGRAM, content };
}

/**
 * Mounts what every guest needs, as the beginning of an init script; `$@` of the kernel command line and stdin/stdout
 * are the serial console.
 */
export const PRELUDE = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
stty -echo
echo init-reached
`;

/**
 * Packs a gzipped initramfs and returns the path of the file, in the cache under its content's hash.
 *
 * @param options.init shell script to run as init, after busybox is installed and /proc, /sys, /dev are mounted;
 *   it prints to the serial console; when it ends, the guest powers off
 * @param options.files path in the guest → path of a statically linked program or other file here
 */
export async function buildInitramfs(options: {
  guest: GuestParts;
  init: string;
  files?: Readonly<Record<string, string>>;
}): Promise<string> {
  const entries = ['bin', 'dev', 'proc', 'sys', 'tmp'].map(directoryEntry);
  entries.push(programEntry('bin/busybox', await readFile(options.guest.busybox)));
  for (const [name, path] of Object.entries(options.files ?? {})) {
    entries.push(programEntry(name.replace(/^\//, ''), await readFile(path)));
  }
  entries.push(programEntry('init', Buffer.from(`${PRELUDE}${options.init}\nsync\npoweroff -f\n`)));
  const archive = cpioArchive(entries);
  const hash = createHash('sha256').update(archive).digest('hex').slice(0, 16);
  const entry = await cached(`initramfs-${hash}`, async (target) => {
    await writeFile(join(target, 'initrd.gz'), await promisify(gzip)(archive, { level: 1 }));
  });
  return join(entry, 'initrd.gz');
}

/** Compiles a program of `test/e2e/guest/` statically; the path of the binary, in the cache under its source's hash. */
export async function compileGuestProgram(name: string): Promise<string> {
  const source = join(PACKAGE_ROOT, 'test/e2e/guest', `${name}.c`);
  const hash = createHash('sha256')
    .update(await readFile(source))
    .digest('hex')
    .slice(0, 16);
  const entry = await cached(`guest-program-${name}-${hash}`, async (target) => {
    await run('cc', ['-static', '-O2', '-o', join(target, name), source]);
  });
  return join(entry, name);
}

/** Every part of a newc archive starts at a multiple of 4. */
function padded(bytes: Buffer): Buffer {
  return Buffer.concat([bytes, Buffer.alloc(-bytes.length & 3)]);
}
