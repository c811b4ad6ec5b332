// SPDX-License-Identifier: Apache-2.0
/** The bar of long readings: its text fits the terminal, and it is drawn on a terminal only. */

import { spawnSync } from 'node:child_process';
import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { stripVTControlCharacters } from 'node:util';
import t from 'tap';
import { progressText } from '../../src/cli/byte-progress.js';
import { MAIN } from '../support/main.js';

const MiB = 1024 * 1024;

t.test('the text', async (t) => {
  const text = (done: number, total: number | undefined, width = 80) =>
    stripVTControlCharacters(progressText(done, total, 2000, width));
  t.equal(text(512 * MiB, 1024 * MiB), '[############............]  50 %  512.0 MiB  256.0 MiB/s');
  t.equal(text(1024 * MiB, 1024 * MiB), '[########################] 100 %  1.0 GiB  512.0 MiB/s');
  t.equal(text(0, 10), '[........................]   0 %  0 B  0 B/s');
  t.equal(text(2000, undefined), '2.0 KiB  1000 B/s', 'the length of a pipe is not known');
  t.match(text(3000, 2000), /] 100 % /, 'a file that grows is full, not more');
  for (let width = 2; width < 90; width++) {
    for (const total of [undefined, 0, 5 * MiB]) t.ok(text(3 * MiB, total, width).length < width);
  }
});

t.test('on a terminal, and nowhere else', async (t) => {
  const file = join(t.testdir(), 'large');
  writeFileSync(file, '');
  // No bytes on disk, and long enough to be wondered at.
  truncateSync(file, 1536 * MiB);
  const command = `"${process.execPath}" "${MAIN}" inspect "${file}"`;
  const terminal = spawnSync('script', ['-qec', `${command} > /dev/null`, '/dev/null'], { encoding: 'utf8' });
  t.equal(terminal.status, 6, 'its exit code is that of the command');
  const bars = terminal.stdout.split('\r').map(stripVTControlCharacters);
  const percents = bars.flatMap((bar) => /^\[#*\.*\] +(\d+) % {2}.*\/s$/.exec(bar)?.[1] ?? []).map(Number);
  t.ok(percents.length > 1, `${percents.length} times`);
  t.same(
    percents,
    [...percents].sort((a, b) => a - b),
    'it only grows',
  );
  t.equal(bars.at(-1), '', 'nothing of it is left');
  const piped = spawnSync('sh', ['-c', command], { encoding: 'utf8' });
  t.equal(piped.stderr, '', 'nothing where stderr is no terminal');
});
