// SPDX-License-Identifier: Apache-2.0
/** Folders on disks that fail as real ones do. The kernel makes each of the errors; only root may set it up. */

import { execFileSync, type SpawnSyncReturns, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { socketFolder, type Test } from './served.js';

/** A program must be there, or a file of the kernel's. */
type Need = { readonly program: string; readonly debian: string } | { readonly fileSystem: string } | string;

const MKFS_EXT4: Need = { program: 'mkfs.ext4', debian: 'e2fsprogs' };
const EXT4: readonly Need[] = ['/dev/loop-control', { fileSystem: 'ext4' }, MKFS_EXT4];
const ZRAM_CONTROL = '/sys/class/zram-control';

/** What each kind of failure needs. */
const NEEDS = {
  full: [],
  quota: ['/dev/loop-control', { fileSystem: 'btrfs' }, { program: 'mkfs.btrfs', debian: 'btrfs-progs' }],
  lost: [...EXT4, { program: 'python3', debian: 'python3' }],
  readOnly: EXT4,
  unreadable: [...EXT4, { program: 'debugfs', debian: 'e2fsprogs' }],
  unwritable: [ZRAM_CONTROL, { fileSystem: 'ext4' }, MKFS_EXT4],
} as const satisfies Record<string, readonly Need[]>;

/** Why a test that needs this kind of failure is to be skipped here; false if it can run. */
export function skipWithout(kind: keyof typeof NEEDS): string | false {
  if (process.getuid?.() !== 0) return 'only root may mount a file system';
  const missing = NEEDS[kind].find((need) => !isThere(need));
  if (missing === undefined) return false;
  if (typeof missing === 'string') return `this kernel has no ${missing}`;
  if ('fileSystem' in missing) return `this kernel has no ${missing.fileSystem}`;
  return `there is no ${missing.program}; install ${missing.debian}`;
}

function isThere(need: Need): boolean {
  if (typeof need === 'string') return existsSync(need);
  if ('fileSystem' in need)
    return new RegExp(`\\t${need.fileSystem}$`, 'm').test(readFileSync('/proc/filesystems', 'latin1'));
  return run('sh', '-c', `command -v ${need.program}`).status === 0;
}

function run(program: string, ...args: string[]): SpawnSyncReturns<string> {
  return spawnSync(program, args, { encoding: 'utf8' });
}

const does = (program: string, ...args: string[]): string =>
  execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });

/** What mkfs needs at least for btrfs is 109 MiB; the file is sparse. */
const DISK_SIZE = 128 * 1024 * 1024;

/** Mounts for the time of the test. Lazily unmounted: what it holds may be open until the test has ended. */
function mount(t: Test, ...args: string[]): string {
  const folder = join(socketFolder(t), 'disk');
  mkdirSync(folder);
  does('mount', ...args, folder);
  t.teardown(() => does('umount', '-l', folder));
  return folder;
}

/** A file with a file system, to be mounted as a disk. */
function diskImage(t: Test, ...mkfs: [program: string, ...args: string[]]): string {
  const path = join(socketFolder(t), 'disk.raw');
  writeFileSync(path, '');
  truncateSync(path, DISK_SIZE);
  const [program, ...args] = mkfs;
  does(program, ...args, path);
  return path;
}

/** ENOSPC: a folder that is a file system of its own, of `bytes`. */
export function smallFolder(t: Test, bytes: number): string {
  return mount(t, '-t', 'tmpfs', '-o', `size=${bytes}`, 'tmpfs');
}

/** EDQUOT: a folder that may hold `bytes`. `raise` ends the quota. */
export function quotaFolder(t: Test, bytes: number): { folder: string; raise: () => void } {
  const disk = mount(t, '-o', 'loop', diskImage(t, 'mkfs.btrfs', '-q'));
  const folder = join(disk, 'quota');
  does('btrfs', 'quota', 'enable', disk);
  does('btrfs', 'subvolume', 'create', folder);
  does('btrfs', 'qgroup', 'limit', String(bytes), folder);
  return { folder, raise: () => void does('btrfs', 'qgroup', 'limit', 'none', folder) };
}

/** Asks ext4 for EXT4_IOC_SHUTDOWN: what it does when its disk has gone. */
const SHUT_DOWN = `import fcntl, os, struct, sys
NO_LOG_FLUSH = 2
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', NO_LOG_FLUSH))`;

/** EIO: after `lose` every read, write and flush fails, and no file can be made. */
export function lostDisk(t: Test): { folder: string; lose: () => void } {
  const folder = mount(t, '-o', 'loop', diskImage(t, 'mkfs.ext4', '-q'));
  return { folder, lose: () => void does('python3', '-c', SHUT_DOWN, folder) };
}

/** EROFS: after `protect` nothing can be written, not even to what is open: the kernel does so after errors. */
export function readOnlyDisk(t: Test): { folder: string; protect: () => void } {
  const folder = mount(t, '-o', 'loop', diskImage(t, 'mkfs.ext4', '-q'));
  return { folder, protect: () => void does('mount', '-o', 'remount,abort', folder) };
}

const BLOCK = 4096;

/** EIO: a file whose first `length` bytes can be read, and the rest not. @returns its path */
export function unreadableFile(t: Test, name: string, bytes: Uint8Array, length: number): string {
  const image = diskImage(t, 'mkfs.ext4', '-q', '-b', String(BLOCK), '-O', '^has_journal');
  const before = join(dirname(image), 'before');
  mkdirSync(before);
  does('mount', '-o', 'loop', image, before);
  // At the end of what is used of the disk, so that no block of the file system's own is behind it.
  try {
    writeFileSync(join(before, name), bytes);
  } finally {
    does('umount', before);
  }
  const block = Number(does('debugfs', '-R', `bmap /${name} ${Math.ceil(length / BLOCK)}`, image));
  const folder = mount(t, '-o', 'loop', image);
  truncateSync(image, block * BLOCK);
  return join(folder, name);
}

/** EIO of a flush: after `fail` what is written stays in memory, and the disk refuses it. `mend` ends that. */
export function unwritableDisk(t: Test): { folder: string; fail: () => void; mend: () => void } {
  const number = readFileSync(join(ZRAM_CONTROL, 'hot_add'), 'latin1').trim();
  const device = `/dev/zram${number}`;
  const attribute = (name: string, value: string): void =>
    writeFileSync(`/sys/block/zram${number}/${name}`, value);
  const remove = (): void => writeFileSync(join(ZRAM_CONTROL, 'hot_remove'), number);
  try {
    attribute('disksize', String(DISK_SIZE));
    does('mkfs.ext4', '-q', '-O', '^has_journal', device);
  } catch (error) {
    remove();
    throw error;
  }
  const folder = join(socketFolder(t), 'disk');
  mkdirSync(folder);
  does('mount', device, folder);
  t.teardown(() => {
    does('umount', folder);
    remove();
  });
  // Limits the memory that holds what is on the disk: none may be added.
  return { folder, fail: () => attribute('mem_limit', '4096'), mend: () => attribute('mem_limit', '0') };
}
