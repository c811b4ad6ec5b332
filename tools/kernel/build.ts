// SPDX-License-Identifier: Apache-2.0
/**
 * Builds a kernel for test guests that no distribution ships: with iommufd, VFIO character devices and the kernel's
 * sample device `mtty`, which implements migration (uAPI v2) in software. Everything is built in, no modules.
 *
 * The source is Debian's `linux-source` package; build tools that this machine lacks are unpacked beside it. No root,
 * nothing installed, 3 GB of disk while it builds, 3 MB after. Takes 7 minutes on two cores, at the lowest priority.
 *
 *     node dist/tools/kernel/build.js        # prints the kernel's path, at once if it is built already
 */
import { existsSync } from 'node:fs';
import { copyFile, mkdir, mkdtemp, readdir, rm } from 'node:fs/promises';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { cacheDirectory, cached } from '../qemu/cache.js';
import { type Report, unpack, unpackMissing } from '../qemu/debian.js';
import { requireX86, withRelease } from '../qemu/provision.js';
import { run } from '../qemu/run.js';
import { KERNEL_OPTIONS } from './options.js';

// A changed recipe needs a new name: an entry that exists is taken as complete.
const KERNEL_ENTRY = 'vfio-kernel-1';

/** Beyond what builds the addon. */
const BUILD_TOOLS = ['bc', 'bison', 'flex', 'libelf-dev', 'xz-utils'];

/** What to run to have the kernel. */
export const BUILD_COMMAND = 'npm run kernel';

/** Path of the kernel's bzImage, or `undefined` as long as it has not been built. */
export function builtKernel(): string | undefined {
  const path = join(cacheDirectory(), KERNEL_ENTRY, 'vmlinuz');
  return existsSync(path) ? path : undefined;
}

/** Path of the kernel's bzImage; builds it first if need be. */
export async function buildKernel(report: Report): Promise<string> {
  requireX86('the kernel');
  const entry = await cached(KERNEL_ENTRY, async (target) => {
    const work = await mkdtemp(join(tmpdir(), 'devstate-kernel-'));
    try {
      await build(work, target, report);
    } finally {
      await rm(work, { recursive: true, force: true });
    }
  });
  return join(entry, 'vmlinuz');
}

async function build(work: string, target: string, report: Report): Promise<void> {
  const tools = join(work, 'tools');
  await mkdir(tools);
  const source = await fetchSource(work, report);
  report('fetching the build tools that this machine lacks');
  await unpackMissing(join(work, 'apt'), BUILD_TOOLS, tools);
  const make = kernelMake(source, tools);
  report('configuring');
  await make('tinyconfig');
  await run(
    join(source, 'scripts/config'),
    KERNEL_OPTIONS.flatMap((option) => ['-e', option]),
    { cwd: source },
  );
  await make('olddefconfig');
  await requireOptions(source);
  report(`building on ${availableParallelism()} CPUs (about 14 minutes of one CPU's time)`);
  await make(`-j${availableParallelism()}`, 'bzImage');
  await copyFile(join(source, '.config'), join(target, 'config'));
  await copyFile(join(source, 'arch/x86/boot/bzImage'), join(target, 'vmlinuz'));
  report('the kernel is ready');
}

/** Fetches and unpacks the kernel's source; the directory of its tree. */
async function fetchSource(work: string, report: Report): Promise<string> {
  const unpacked = join(work, 'package');
  await withRelease(report, async (release) => {
    const name = (await release.dependencies('linux-source')).find((one) => one.startsWith('linux-source-'));
    if (name === undefined) throw new Error('the release has no linux-source package');
    report(`fetching ${name} (about 150 MB)`);
    await unpack(await release.download(name), unpacked);
  });
  const archives = join(unpacked, 'usr/src');
  const archive = (await readdir(archives)).find((name) => /^linux-source-.*\.tar\.xz$/.test(name));
  if (archive === undefined) throw new Error('the linux-source package has no source archive');
  report('unpacking the source');
  const tree = join(work, 'source');
  await mkdir(tree);
  await run('tar', ['-xf', join(archives, archive), '--strip-components=1', '-C', tree]);
  await rm(unpacked, { recursive: true });
  return tree;
}

/** `make` in the source tree, with the build tools below `tools` beside the installed ones. */
function kernelMake(source: string, tools: string): (...args: string[]) => Promise<string> {
  const libraries = join(tools, 'usr/lib/x86_64-linux-gnu');
  const environment = {
    PATH: `${process.env.PATH}:${join(tools, 'usr/bin')}`,
    LD_LIBRARY_PATH: libraries,
    ...(existsSync(join(tools, 'usr/bin/m4')) ? { M4: join(tools, 'usr/bin/m4') } : {}),
    ...(existsSync(join(tools, 'usr/share/bison'))
      ? { BISON_PKGDATADIR: join(tools, 'usr/share/bison') }
      : {}),
    KBUILD_BUILD_USER: 'devstate',
    KBUILD_BUILD_HOST: 'devstate',
  };
  // By its run-time name: what is installed is not fetched, so libelf-dev's libelf.so may lead nowhere.
  const variables = existsSync(join(tools, 'usr/include/libelf.h'))
    ? [`LIBELF_FLAGS=-I${join(tools, 'usr/include')}`, `LIBELF_LIBS=-L${libraries} -l:libelf.so.1`]
    : [];
  return (...args) => run('nice', ['-n', '19', 'make', ...variables, ...args], { cwd: source, environment });
}

/** Throws if the configuration lacks an option that was asked for: kconfig drops silently what it has no use for. */
async function requireOptions(source: string): Promise<void> {
  const states = await run(
    join(source, 'scripts/config'),
    KERNEL_OPTIONS.flatMap((option) => ['-s', option]),
    { cwd: source },
  );
  const missing = KERNEL_OPTIONS.filter((_, index) => states.split('\n')[index] !== 'y');
  if (missing.length > 0) throw new Error(`this kernel has no ${missing.join(', ')}`);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    console.log(await buildKernel((line) => process.stderr.write(`kernel: ${line}\n`)));
  } catch (error) {
    process.stderr.write(`error: no kernel: ${error instanceof Error ? error.message : String(error)}\n`);
    process.exitCode = 1;
  }
}
