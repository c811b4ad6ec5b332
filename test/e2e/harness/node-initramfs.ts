// SPDX-License-Identifier: Apache-2.0
/**
 * The file system of a guest that runs node and this package: what seldom changes (node, its libraries, the packages
 * that devstate depends on) is an archive in the cache; what a build changes is packed anew and put behind it. Linux
 * unpacks archives that follow each other, later ones over earlier ones.
 */
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readdir, readFile, realpath, stat, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { PACKAGE_ROOT } from '../../../src/package-root.js';
import { cached } from '../../../tools/qemu/cache.js';
import type { GuestParts } from '../../../tools/qemu/provision.js';
import { run } from '../../../tools/qemu/run.js';
import { type ArchiveEntry, cpioArchive, directoryEntry, PRELUDE, programEntry } from './initramfs.js';

/** Where the package is in the guest. */
export const PACKAGE = '/devstate';

/** A changed layout of the base needs a new name. */
const BASE_ENTRY = 'node-initramfs-2';

const DIRECTORIES = ['bin', 'dev', 'etc', 'proc', 'run', 'sys', 'tmp'];

/**
 * Packs the file system into the file `path`.
 *
 * @param init shell script that init runs after /proc, /sys and /dev are mounted; the VFIO modules are in /lib, node
 *   is on the PATH, the package in {@link PACKAGE}; when it ends, the guest powers off
 * @param archives paths of more archives
 */
export async function writeNodeInitramfs(
  path: string,
  guest: GuestParts,
  init: string,
  archives: readonly string[] = [],
): Promise<void> {
  // Not compressed: a guest without KVM takes longer to unpack than the host to copy.
  const overlay = cpioArchive([
    programEntry('init', Buffer.from(`${PRELUDE}${init}\nsync\npoweroff -f\n`)),
    ...(await packageEntries()),
  ]);
  const bases = [await baseArchive(guest), ...archives];
  await writeFile(path, [...(await Promise.all(bases.map((base) => readFile(base)))), overlay]);
}

/** Path of the archive of what seldom changes. */
async function baseArchive(guest: GuestParts): Promise<string> {
  const node = await realpath(process.execPath);
  const lock = join(PACKAGE_ROOT, 'package-lock.json');
  const hash = createHash('sha256').update(await readFile(lock));
  for (const file of [node, guest.kernel, guest.busybox]) {
    const { size, mtimeMs } = await stat(file);
    hash.update(`${file} ${size} ${mtimeMs}\n`);
  }
  const entry = await cached(`${BASE_ENTRY}-${hash.digest('hex').slice(0, 16)}`, async (target) => {
    const entries = DIRECTORIES.map(directoryEntry);
    const add = async (name: string, file: string) => {
      entries.push(...foldersAbove(name).map(directoryEntry), programEntry(name, await readFile(file)));
    };
    await add('bin/busybox', guest.busybox);
    await add('bin/node', node);
    for (const library of await sharedLibraries(node)) await add(library.slice(1), library);
    for (const module of guest.vfioModules) await add(`lib/${module.split('/').at(-1)}`, module);
    entries.push(...(await dependencyEntries()));
    await writeFile(join(target, 'base.cpio'), cpioArchive(entries.filter(firstOfItsName())));
  });
  return join(entry, 'base.cpio');
}

/** Absolute paths of the libraries, and the loader, that the program `path` is linked with, as it names them. */
async function sharedLibraries(path: string): Promise<string[]> {
  const printed = await run('ldd', [path]);
  return [...printed.matchAll(/(?:=> |^\s*)(\/\S+) \(0x/gm)].map((match) => match[1]!);
}

/** The packages that devstate needs to run, and those that they need. */
async function dependencyEntries(): Promise<ArchiveEntry[]> {
  const lock = JSON.parse(await readFile(join(PACKAGE_ROOT, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, { dev?: boolean; optional?: boolean }>;
  };
  const entries: ArchiveEntry[] = [];
  for (const [folder, { dev, optional }] of Object.entries(lock.packages)) {
    if (folder === '' || dev === true || (optional === true && !existsSync(join(PACKAGE_ROOT, folder))))
      continue;
    entries.push(...(await treeEntries(folder, /(?<!\.d)\.(c?js|mjs|json|node)$/)));
  }
  return entries;
}

/** What a build makes, and what it reads when it runs; of the tests only the programs for guests. */
async function packageEntries(): Promise<ArchiveEntry[]> {
  return [
    ...(await treeEntries('package.json')),
    ...(await treeEntries('native/build/Release/devstate.node')),
    ...(await treeEntries('formats')),
    ...(await treeEntries('dist/src', /\.js$/)),
    ...(await treeEntries('dist/test/e2e/guest', /\.js$/)),
    ...(await treeEntries('dist/test/support/closes.js')),
  ].filter(firstOfItsName());
}

/** The file, or the files below the folder, `path` of the package, for the archive, with the folders above them. */
async function treeEntries(path: string, wanted = /./): Promise<ArchiveEntry[]> {
  const from = join(PACKAGE_ROOT, path);
  const isFolder = (await stat(from)).isDirectory();
  const names = isFolder ? await readdir(from, { recursive: true, withFileTypes: true }) : [];
  const files = isFolder
    ? names.filter((name) => name.isFile()).map((name) => join(name.parentPath, name.name).slice(from.length))
    : [''];
  const entries: ArchiveEntry[] = [];
  for (const file of files) {
    if (!wanted.test(`${path}${file}`)) continue;
    const inGuest = `${PACKAGE}/${path}${file}`.slice(1);
    entries.push(...foldersAbove(inGuest).map(directoryEntry));
    entries.push(programEntry(inGuest, await readFile(`${from}${file}`)));
  }
  return entries;
}

/** `a/b/c` → `a`, `a/b`: an archive has to name a folder before what is in it. */
function foldersAbove(name: string): string[] {
  const parent = dirname(name);
  return parent === '.' ? [] : [...foldersAbove(parent), parent];
}

function firstOfItsName(): (entry: ArchiveEntry) => boolean {
  const seen = new Set<string>();
  return ({ name }) => !seen.has(name) && seen.add(name) !== undefined;
}
