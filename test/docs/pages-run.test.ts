// SPDX-License-Identifier: Apache-2.0
/** The pages that are to be copied and pasted: their blocks, run as one shell session each, as they stand. */

import t from 'tap';
import { requireGuest, requireQemu } from '../e2e/harness/require-qemu.js';
import { runPage } from './run-page.js';

t.test('docs/write-a-device.md', async (t) => {
  const { code, output } = await runPage(t, 'docs/write-a-device.md');
  t.equal(code, 0, output);
  t.match(output, /Model: +example\.org\/adder.*Status: +intact and complete.*loaded/s);
});

t.test('docs/run.md', async (t) => {
  const { code, output } = await runPage(t, 'docs/run.md');
  t.equal(code, 0, output);
  // Two processes write the log.
  for (const said of [/ended with SIGKILL/, /continued after a crash/, /serves, .* after the crash/])
    t.match(output, said);
});

t.test('docs/migrate.md', async (t) => {
  if ((await requireQemu(t)) === undefined || (await requireGuest(t)) === undefined) return;
  const { code, output } = await runPage(t, 'docs/migrate.md');
  t.equal(code, 0, output);
  t.match(output, /Status: +completed, running at the destination/);
  t.match(output, /devstateMs: [\d.]+/);
  t.notMatch(output, /LOST|FAILED/);
});
