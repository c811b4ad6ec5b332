// SPDX-License-Identifier: Apache-2.0
// Brings a fresh clone to a runnable state: dependencies, native addon, compiled TypeScript.
// Each step runs only when its inputs are newer than its output, so it is cheap to call before every command.
//   --without-addon  for a package, which has an addon of its own (tools/prebuild.mjs)
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
process.chdir(root);

/** Runs a command; its output is shown only if it fails, so that data on stdout stays clean. */
function run(what, command, args) {
  process.stderr.write(`prepare: ${what}\n`);
  const done = spawnSync(command, args, { cwd: root, encoding: 'utf8', maxBuffer: 64 << 20 });
  if (done.status === 0) return;
  process.stderr.write(`${done.stdout ?? ''}${done.stderr ?? ''}${done.error ?? ''}\n`);
  process.stderr.write(`error: prepare: ${what} failed (${command} ${args.join(' ')})\n`);
  process.exit(1);
}

/** The parts of a package.json that decide what is installed. */
function dependenciesOf(manifest) {
  const { dependencies, devDependencies, optionalDependencies, overrides } = manifest;
  return { dependencies, devDependencies, optionalDependencies, overrides };
}

/** Newest modification time, in ms, of the files under `path`; 0 if it does not exist. */
function newest(path) {
  if (!existsSync(path)) return 0;
  const info = statSync(path);
  if (!info.isDirectory()) return info.mtimeMs;
  let time = 0;
  for (const name of readdirSync(path)) time = Math.max(time, newest(join(path, name)));
  return time;
}

// What is installed is what the lock file says. The stamp is of content and not of times, so that a checkout that only
// touches the files installs nothing again.
const stamp = 'node_modules/.devstate-installed';
const wanted = createHash('sha256')
  .update(readFileSync('package-lock.json'))
  .update(JSON.stringify(dependenciesOf(JSON.parse(readFileSync('package.json', 'utf8')))))
  .digest('hex');
if (!existsSync(stamp) || readFileSync(stamp, 'utf8') !== wanted) {
  run('installing dependencies', 'npm', [
    'ci',
    '--ignore-scripts',
    '--no-audit',
    '--no-fund',
    '--loglevel=error',
  ]);
  writeFileSync(stamp, wanted);
}

const addon = 'native/build/Release/devstate.node';
const wantsAddon = !process.argv.includes('--without-addon');
if (wantsAddon && newest(addon) < Math.max(newest('native/src'), newest('native/binding.gyp'))) {
  const args = [
    'node_modules/node-gyp/bin/node-gyp.js',
    'rebuild',
    '--directory=native',
    '--jobs=max',
    '--loglevel=error',
  ];
  // Node's own headers, when they are installed beside it, spare a download that may not be possible.
  const nodedir = dirname(dirname(process.execPath));
  if (existsSync(join(nodedir, 'include/node/node_api.h'))) args.push(`--nodedir=${nodedir}`);
  run('building the native addon', process.execPath, args);
}

// What a source left behind that is gone would still be run as a test.
for (const name of existsSync('dist') ? readdirSync('dist', { recursive: true }) : []) {
  if (name.startsWith('bin/')) continue;
  const source = name.replace(/(\.d\.ts|\.js|\.js\.map)$/, '.ts');
  if (source !== name && !existsSync(source)) rmSync(join('dist', name));
}

run('compiling', process.execPath, ['node_modules/typescript/bin/tsc', '-p', '.']);
run('bundling the command line', process.execPath, ['tools/bundle.mjs', '--if-newer']);
