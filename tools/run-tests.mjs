// SPDX-License-Identifier: Apache-2.0
// Runs lint and every test (or those named on the command line). Prints a line for each file as it ends, what failed
// in full, and last the line `N passed, N failed, N skipped`.
import { spawn, spawnSync } from 'node:child_process';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Parser } from 'tap-parser';

process.chdir(dirname(dirname(fileURLToPath(import.meta.url))));

// `test/wire/layouts.test.ts` on the command line means its compiled form.
const named = process.argv
  .slice(2)
  .map((name) => (name.startsWith('dist/') ? name : `dist/${name.replace(/\.ts$/, '.js')}`));

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

const parser = new Parser();
watch(parser, []);
const tap = spawn('node_modules/.bin/tap', ['run', '--reporter=tap', ...named], {
  stdio: ['ignore', 'pipe', 'inherit'],
});
tap.stdout.pipe(parser);
const status = await new Promise((resolve) => tap.on('close', (code) => resolve(code ?? 1)));
// Whatever made tap fail without a failed assertion (a crash, a file without tests) is a failure all the same.
if (status !== 0 && count.failed === 0) count.failed++;
console.log(`${count.passed} passed, ${count.failed} failed, ${count.skipped} skipped`);
process.exit(count.failed === 0 && count.passed > 0 ? 0 : 1);
