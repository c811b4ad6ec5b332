// SPDX-License-Identifier: Apache-2.0
/**
 * Compiles the addon from the sources in the package with the system's C++ compiler alone: no node-gyp, make or Python.
 * The result uses Node-API 8 and libuv 1, whose ABIs are stable, so one file serves every supported Node.js.
 */

import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import { DevstateError } from '../errors.js';
import { platformName } from './platform.js';

export const ADDON = 'devstate.node';

/** As `native/binding.gyp` has them, and linked so that no libstdc++ of the system is needed. */
const FLAGS = [
  ...['-shared', '-fPIC', '-std=c++17', '-O2', '-fvisibility=hidden', '-fno-rtti', '-pthread'],
  ...['-DNAPI_VERSION=8', '-DNODE_ADDON_API_CPP_EXCEPTIONS', '-DNODE_ADDON_API_CPP_EXCEPTIONS_ALL'],
  ...['-DNODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS', '-DBUILDING_NODE_EXTENSION'],
  ...['-D_GNU_SOURCE', '-D_FILE_OFFSET_BITS=64'],
  ...[
    '-static-libstdc++',
    '-ffunction-sections',
    '-Wl,--gc-sections',
    '-Wl,--exclude-libs,ALL',
    '-Wl,--as-needed',
  ],
];
/** Options that leave out what only a debugger needs. */
const STRIPPED: readonly string[] = ['-s'];

/** Longest that a compiler may take. */
const COMPILE_TIMEOUT_MS = 600_000;

const native = (root: string): string => join(root, 'native');
const sourceFolder = (root: string): string => join(native(root), 'src');

/**
 * Where the addon is built when the package has none that loads: in the package, or else in the user's cache. Nowhere
 * without its sources.
 */
export function builtAddons(root: string): string[] {
  if (!existsSync(sourceFolder(root))) return [];
  const name = `${platformName()}-${sourceDigest(root)}`;
  const cache = process.env.XDG_CACHE_HOME || join(homedir(), '.cache');
  return [join(native(root), 'built', name, ADDON), join(cache, 'devstate', 'addon', name, ADDON)];
}

/** A build is of these sources, so that another version of the package does not take it for its own. */
function sourceDigest(root: string): string {
  const folder = sourceFolder(root);
  const hash = createHash('sha256').update(FLAGS.join(' '));
  for (const name of readdirSync(folder).sort()) hash.update(name).update(readFileSync(join(folder, name)));
  return hash.digest('hex').slice(0, 16);
}

/** The folder with `node_api.h` and `uv.h`: the package's own, or the one that Node.js was installed with. */
function headerFolder(root: string): string | undefined {
  const folders = [
    join(native(root), 'include'),
    join(dirname(dirname(process.execPath)), 'include', 'node'),
  ];
  return folders.find((folder) => ['node_api.h', 'uv.h'].every((name) => existsSync(join(folder, name))));
}

/** The folder with `napi.h`: that of the package node-addon-api, which npm installs with this one. */
function wrapperFolder(root: string): string | undefined {
  try {
    return dirname(createRequire(join(root, 'package.json')).resolve('node-addon-api/package.json'));
  } catch {
    return undefined;
  }
}

/**
 * Compiles the addon into the first of {@link builtAddons} that can be written. Another process may do the same at once:
 * each builds under a name of its own and renames it. BLOCKS the thread for some seconds.
 * @returns the path of the addon
 * @throws DEVSTATE_E_ADDON that says what is missing
 */
export function buildAddon(root: string): string {
  const places = builtAddons(root);
  if (places.length === 0)
    throw failure(`there are no sources in ${sourceFolder(root)}; install devstate again`);
  const target = places.find((path) => isWritable(dirname(path)));
  if (target === undefined)
    throw failure(
      `none of ${places.map(dirname).join(', ')} can be written; set XDG_CACHE_HOME to a folder that can`,
    );
  compileAddon(root, target);
  return target;
}

/** Compiles the addon to `target`, atomically. @param more options of the compiler @throws DEVSTATE_E_ADDON */
export function compileAddon(root: string, target: string, more: readonly string[] = STRIPPED): void {
  const include = headerFolder(root);
  if (include === undefined)
    throw failure(
      `there are no headers of Node.js in ${join(native(root), 'include')}; install devstate again`,
    );
  const wrapper = wrapperFolder(root);
  if (wrapper === undefined)
    throw failure('the package node-addon-api is missing; install devstate again with its dependencies');
  const compiler = findCompiler();
  if (compiler === undefined)
    throw failure(
      'there is no C++ compiler (looked for $CXX, c++, g++, clang++); install one, such as the package g++',
    );
  mkdirSync(dirname(target), { recursive: true });
  const scratch = mkdtempSync(join(dirname(target), '.building-'));
  try {
    const folder = sourceFolder(root);
    const sources = readdirSync(folder).filter((name) => name.endsWith('.cc'));
    const output = join(scratch, ADDON);
    const files = sources.map((name) => join(folder, name));
    const args = [...FLAGS, ...more, '-I', include, '-I', wrapper, ...files, '-o', output];
    const done = spawnSync(compiler, args, { encoding: 'utf8', timeout: COMPILE_TIMEOUT_MS });
    if (done.status !== 0) {
      const said = (done.error?.message ?? done.stderr).trim().split('\n').slice(0, 5).join('\n');
      throw failure(`${compiler} failed (it needs C++17 and the headers of libc and Linux): ${said}`);
    }
    renameSync(output, target);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

/** The name of a C++ compiler that runs. */
export function findCompiler(): string | undefined {
  return [process.env.CXX, 'c++', 'g++', 'clang++'].find(
    (name) => name !== undefined && name !== '' && spawnSync(name, ['--version']).status === 0,
  );
}

/** Whether the folder, or the nearest above it that exists, can be written. */
function isWritable(folder: string): boolean {
  while (!existsSync(folder)) folder = dirname(folder);
  try {
    accessSync(folder, constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

function failure(reason: string): DevstateError {
  return new DevstateError(
    'DEVSTATE_E_ADDON',
    `cannot build the native addon for ${describeMachine()}: ${reason}`,
  );
}

/** Processor and C library, as they decide which addon loads. */
export function describeMachine(): string {
  const { header } = process.report.getReport() as { header: { glibcVersionRuntime?: string } };
  const libc =
    header.glibcVersionRuntime === undefined ? 'musl or another libc' : `glibc ${header.glibcVersionRuntime}`;
  return `${process.platform}-${process.arch} with ${libc}`;
}
