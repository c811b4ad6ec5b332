// SPDX-License-Identifier: Apache-2.0
// Runs lint and every test (or those named on the command line). Prints a line for each file as it ends, what failed
// in full, and last the line `N passed, N failed, N skipped`.
//   --fast        only the tests of FAST: no QEMU, no guest, few processes
//   --every-node  and then those of FAST again, with each other version of Node.js that tools/node/provision.ts has
import { spawn, spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Parser } from 'tap-parser';

process.chdir(dirname(dirname(fileURLToPath(import.meta.url))));

// Folders and files below test/ that take little time, and between them use what versions of Node.js differ in: the addon,
// sockets, streams, zlib, the command line.
const FAST = [
  ...['cli/print-model', 'cli/serve-sample', 'client', 'device/migration-engine', 'device/state-sessions'],
  ...[
    'devices/nvme/controller',
    'devices/sample/sample',
    'fd-store',
    'formats/envelope',
    'formats/inspection',
  ],
  ...['journal', 'logging', 'migration', 'native', 'operations/files', 'server', 'transport', 'wire'],
];

const options = process.argv.slice(2).filter((argument) => argument.startsWith('--'));
const unknown = options.filter((option) => option !== '--fast' && option !== '--every-node');
if (unknown.length > 0) {
  console.error(`error: no such option: ${unknown.join(', ')} (there are --fast and --every-node)`);
  process.exit(2);
}
// `test/wire/layouts.test.ts` on the command line means its compiled form.
const named = process.argv
  .slice(2)
  .filter((argument) => !options.includes(argument))
  .map((name) => (name.startsWith('dist/') ? name : `dist/${name.replace(/\.ts$/, '.js')}`));

function fastTests() {
  const tests = readdirSync('dist/test', { recursive: true }).filter((path) => path.endsWith('.test.js'));
  const isOf = (path, part) => path === `${part}.test.js` || path.startsWith(`${part}/`);
  const missing = FAST.filter((part) => !tests.some((path) => isOf(path, part)));
  if (missing.length > 0) throw new Error(`no tests are in ${missing.join(', ')}`);
  const fast = tests.filter((path) => FAST.some((part) => isOf(path, part)));
  return fast.sort().map((path) => `dist/test/${path}`);
}

const count = { passed: 0, failed: 0, skipped: 0 };

/** Counts the assertions of a test and of the tests in it. A test that holds others is only their sum. */
function watch(parser, names) {
  let children = [];
  let failedBefore = 0;
  parser.on('child', (child) => {
    if (children.length === 0) failedBefore = count.failed;
    children.push(child);
    watch(child, [...names, child.name]);
  });
  parser.on('assert', (result) => {
    const isTest = children.some((child) => child.name === result.name);
    // A test that failed although all in it passed has crashed, timed out or left its plan unfulfilled.
    const isSum = isTest && (result.ok || count.failed > failedBefore);
    children = [];
    const path = [...names, result.name].join(' > ');
    if (result.skip) {
      count.skipped++;
      console.log(`  skipped: ${path}${typeof result.skip === 'string' ? `: ${result.skip}` : ''}`);
    } else if (!isSum && (result.ok || result.todo)) count.passed++;
    else if (!isSum) {
      count.failed++;
      console.log(`  FAILED: ${path}`);
      if (result.diag) console.log(JSON.stringify(result.diag, null, 2).replace(/^/gm, '    '));
    }
    if (names.length === 0) report(result);
  });
  parser.on('bailout', (reason) => console.log(`  BAIL OUT: ${reason}`));
}

/** A whole file has ended. */
function report({ ok, name, time }) {
  console.log(`${ok ? 'ok' : 'NOT OK'}  ${name}  ${((time ?? 0) / 1000).toFixed(1)} s`);
}

const lint = spawnSync('node_modules/.bin/biome', ['check', '--error-on-warnings', '--colors=off', '.'], {
  stdio: 'inherit',
});
if (lint.status !== 0) {
  console.log('  FAILED: lint (`npm run format` mends most of it)');
  count.failed++;
}

/** Runs tests with the Node.js that `program` is. */
async function runTests(program, tests) {
  const before = { ...count };
  const parser = new Parser();
  watch(parser, []);
  // Tests start `node` by its name too, and tap its own programs by that of the process.
  const env = { ...process.env, PATH: `${dirname(program)}${delimiter}${process.env.PATH}` };
  const tap = spawn(program, ['node_modules/.bin/tap', 'run', '--reporter=tap', ...tests], {
    env,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  tap.stdout.pipe(parser);
  const status = await new Promise((resolve) => tap.on('close', (code) => resolve(code ?? 1)));
  // Whatever made tap fail without a failed assertion (a crash, a file without tests) is a failure all the same.
  if (status !== 0 && count.failed === before.failed) {
    console.log(`  FAILED: tap ended with ${status}`);
    count.failed++;
  }
  if (count.passed === before.passed) {
    console.log('  FAILED: nothing has passed');
    count.failed++;
  }
}

// The tests run the command line as it is installed.
if (spawnSync(process.execPath, ['tools/bundle.mjs', '--if-newer'], { stdio: 'inherit' }).status !== 0)
  process.exit(1);

await runTests(process.execPath, options.includes('--fast') ? [...fastTests(), ...named] : named);

if (options.includes('--every-node')) {
  const { otherNodes } = await import(join(process.cwd(), 'dist/tools/node/provision.js'));
  const nodes = await otherNodes().catch((error) => {
    console.log(`  FAILED: other versions of Node.js: ${error.message}`);
    count.failed++;
    return [];
  });
  for (const { version, program } of nodes) {
    console.log(`Node.js ${version}`);
    await runTests(program, fastTests());
  }
}

console.log(`${count.passed} passed, ${count.failed} failed, ${count.skipped} skipped`);
process.exit(count.failed === 0 ? 0 : 1);
