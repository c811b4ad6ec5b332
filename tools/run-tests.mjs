// SPDX-License-Identifier: Apache-2.0
// Runs lint and every test (or those named on the command line). Prints a line for each file as it ends, what failed
// in full, and last the line `N passed, N failed, N skipped`.
//   --fast        only the tests of FAST, but for those of SLOW: no QEMU, no guest, few processes
//   --sanitized   and then those of SANITIZED again, with an addon under AddressSanitizer and UndefinedBehaviorSanitizer
//   --every-node  and then those of FAST again, with each other version of Node.js that tools/node/provision.ts has
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Parser } from 'tap-parser';
import { SANITIZED, sanitizedAddon } from './sanitize.mjs';

process.chdir(dirname(dirname(fileURLToPath(import.meta.url))));

// Folders and files below test/ that take little time, and between them use what versions of Node.js differ in: the addon,
// sockets, streams, zlib, the command line.
const FAST = [
  ...['cli/print-model', 'cli/serve-sample', 'client', 'runtime/migration-engine', 'runtime/state-sessions'],
  ...[
    'devices/nvme/controller',
    'devices/sample/sample',
    'fd-store',
    'formats/envelope',
    'formats/inspection',
  ],
  ...['journal', 'logging', 'migration', 'native', 'operations/files', 'server', 'transport', 'wire'],
];

// These take as long as all the others together: the whole run has them, and that with other versions of Node.js.
const SLOW = [
  ...['cli/print-model', 'cli/serve-sample', 'native/worker-end', 'operations/files/layers'],
  ...['server/handoff', 'server/many-maps', 'transport/starters'],
];

// Fast too: each phase of the operations against stand-ins for QEMU. No version of Node.js makes a difference to them.
const PHASES = ['good-run', 'silence', 'upgrade-good-run'].map((name) => `operations/faults/${name}`);

/** How many test files run at a time. */
const JOBS = 2;
/** How long a test file may take, ms. */
const TIMEOUT_MS = 900_000;
/** What the parser says of output that is not a test's. */
const NO_PLAN = 'no tests found';

const options = process.argv.slice(2).filter((argument) => argument.startsWith('--'));
const OPTIONS = ['--fast', '--sanitized', '--every-node'];
const unknown = options.filter((option) => !OPTIONS.includes(option));
if (unknown.length > 0) {
  console.error(`error: no such option: ${unknown.join(', ')} (there are ${OPTIONS.join(', ')})`);
  process.exit(2);
}
/** All tests, compiled. */
const tests = readdirSync('dist/test', { recursive: true, encoding: 'utf8' })
  .filter((path) => path.endsWith('.test.js'))
  .sort()
  .map((path) => `dist/test/${path}`);

/** The tests of some folders and files below test/, but for those of `without`. */
function testsOf(parts, without = []) {
  const isOf = (path, part) => path === `dist/test/${part}.test.js` || path.startsWith(`dist/test/${part}/`);
  const missing = parts.filter((part) => !tests.some((path) => isOf(path, part)));
  if (missing.length > 0) throw new Error(`no tests are in ${missing.join(', ')}`);
  const isIn = (path, some) => some.some((part) => isOf(path, part));
  return tests.filter((path) => isIn(path, parts) && !isIn(path, without));
}

// `test/wire/layouts.test.ts` on the command line means its compiled form, `test/wire` the tests in this folder.
const named = process.argv
  .slice(2)
  .filter((argument) => !options.includes(argument))
  .flatMap((name) => {
    const inTests = name.replace(/^(dist\/)?test\//, '').replace(/\/$/, '');
    return /\.[jt]s$/.test(name) ? [`dist/test/${inTests.replace(/\.ts$/, '.js')}`] : testsOf([inTests]);
  });

const count = { passed: 0, failed: 0, skipped: 0 };

function fail(what, diagnosis) {
  console.log(`  FAILED: ${what}`);
  if (diagnosis) console.log(JSON.stringify(diagnosis, null, 2).replace(/^/gm, '    '));
}

/** Counts the assertions of a test file, or of a test in it. A test that holds others is only their sum. */
function watch(parser, names, seen) {
  let children = [];
  let failedBefore = 0;
  parser.on('child', (child) => {
    if (children.length === 0) failedBefore = seen.failed;
    children.push(child);
    watch(child, [...names, child.name], seen);
  });
  parser.on('assert', (result) => {
    const isTest = children.some((child) => child.name === result.name && child.count > 0);
    // A test that failed although all in it passed has crashed, timed out or left its plan unfulfilled.
    const isSum = isTest && (result.ok || seen.failed > failedBefore);
    children = [];
    const path = [...names, result.name].join(' > ');
    if (result.skip) {
      seen.skipped++;
      console.log(`  skipped: ${path}${typeof result.skip === 'string' ? `: ${result.skip}` : ''}`);
    } else if (!isSum && (result.ok || result.todo)) seen.passed++;
    else if (!isSum) {
      seen.failed++;
      fail(path, result.diag);
    }
  });
}

const lint = spawnSync('node_modules/.bin/biome', ['check', '--error-on-warnings', '--colors=off', '.'], {
  stdio: 'inherit',
});
if (lint.status !== 0) {
  console.log('  FAILED: lint (`npm run format` mends most of it)');
  count.failed++;
}

/** Clock ticks of a second in /proc/PID/stat: 100 on every Linux that devstate runs on. */
const TICKS = 100;

/** Seconds of processor time of all children that have ended, and of theirs that they have waited for. */
function childrenTime() {
  const stat = readFileSync('/proc/self/stat', 'latin1');
  const [, , , , , , , , , , , , , user, system] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(user) + Number(system)) / TICKS;
}

let accounted = childrenTime();

/**
 * Runs a test file to its end. It is a program that prints TAP, and is started as one: what `tap run` loads into it, and into
 * all processes that it starts, costs more processor time than most of them need themselves.
 */
async function runTest(program, file, env) {
  const started = performance.now();
  const seen = { passed: 0, failed: 0, skipped: 0 };
  const parser = new Parser();
  watch(parser, [file], seen);
  const results = once(parser, 'complete').then(([whole]) => whole);
  const test = spawn(program, [file], { env, stdio: ['ignore', 'pipe', 'inherit'] });
  test.stdout.pipe(parser);
  let processor = 0;
  test.once('exit', () => {
    const all = childrenTime();
    processor = all - accounted;
    accounted = all;
  });
  const late = setTimeout(() => test.kill('SIGKILL'), TIMEOUT_MS);
  const [code, signal] = await once(test, 'close');
  clearTimeout(late);
  const whole = await results;
  if (whole.plan.skipAll && whole.plan.skipReason !== NO_PLAN) {
    seen.skipped++;
    console.log(`  skipped: ${file}: ${whole.plan.skipReason}`);
  }
  const why = whyNotWhole(code, signal, whole, seen);
  if (why !== undefined) {
    seen.failed++;
    fail(`${file}: ${why}`);
  }
  for (const key of Object.keys(count)) count[key] += seen[key];
  const [seconds, ofProcessors] = [(performance.now() - started) / 1000, processor].map((s) => s.toFixed(1));
  console.log(
    `${seen.failed === 0 ? 'ok' : 'NOT OK'}  ${file}  ${seconds} s, ${ofProcessors} s of processor time`,
  );
}

/** Why a test file has failed although no assertion did: it crashed, was cut off, or tests nothing. */
function whyNotWhole(code, signal, { ok, bailout }, seen) {
  if (seen.failed > 0) return undefined;
  if (signal === 'SIGKILL') return `was killed, as a test is that does not end within ${TIMEOUT_MS / 1000} s`;
  if (bailout) return `gave up: ${bailout}`;
  if (code !== 0) return `ended with ${signal ?? code}`;
  if (!ok) return "what it printed is not a whole test's";
  return seen.passed + seen.skipped === 0 ? 'has no assertion' : undefined;
}

/** Runs test files with the Node.js that `program` is, {@link JOBS} at a time. */
async function runTests(program, files, more = {}) {
  // Tests start `node` by its name too. The time-out of each test in a file is that of the file.
  const path = `${dirname(program)}${delimiter}${process.env.PATH}`;
  const env = { ...process.env, TAP: '1', TAP_TIMEOUT: String(TIMEOUT_MS / 1000), ...more, PATH: path };
  const left = [...files];
  const work = async () => {
    for (let file = left.shift(); file !== undefined; file = left.shift()) await runTest(program, file, env);
  };
  await Promise.all(Array.from({ length: JOBS }, work));
}

// The tests run the command line as it is installed.
if (spawnSync(process.execPath, ['tools/bundle.mjs', '--if-newer'], { stdio: 'inherit' }).status !== 0)
  process.exit(1);

const isWhole = named.length === 0 && !options.includes('--fast');
const fast = options.includes('--fast') ? testsOf([...FAST, ...PHASES], SLOW) : [];
await runTests(process.execPath, isWhole ? tests : [...fast, ...named]);

if (options.includes('--sanitized')) {
  const { missing, env, reports } = await sanitizedAddon();
  if (missing !== undefined) {
    count.skipped++;
    console.log(`  skipped: ${missing}`);
  } else {
    console.log('The addon under AddressSanitizer and UndefinedBehaviorSanitizer');
    await runTests(process.execPath, testsOf(SANITIZED), env);
    for (const report of reports()) {
      count.failed++;
      console.log(`  FAILED: a sanitizer reports\n${report}`);
    }
  }
}

if (options.includes('--every-node')) {
  const { otherNodes } = await import(join(process.cwd(), 'dist/tools/node/provision.js'));
  const nodes = await otherNodes().catch((error) => {
    console.log(`  FAILED: other versions of Node.js: ${error.message}`);
    count.failed++;
    return [];
  });
  for (const { version, program } of nodes) {
    console.log(`Node.js ${version}`);
    await runTests(program, testsOf(FAST));
  }
}

console.log(`${(childrenTime() / 60).toFixed(1)} minutes of processor time`);
console.log(`${count.passed} passed, ${count.failed} failed, ${count.skipped} skipped`);
process.exit(count.failed === 0 ? 0 : 1);
