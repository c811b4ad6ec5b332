// SPDX-License-Identifier: Apache-2.0
/** A device server is replaced again and again under a stock QEMU whose guest writes to its disk and checks it. */

import t from 'tap';
import type { UpgradeResult } from '../../src/operations/index.js';
import { type LabVm, MigrationLab } from './harness/lab.js';

t.setTimeout(900_000);

const UPGRADES = 20;

/** Longest round of writes and an fsync that the guest saw, ms: its ticks say it. */
function longestRound({ console }: LabVm): number {
  const rounds = console.lines.map((line) => Number(/^tick \d+ \d+ ([\d.]+)/.exec(line)?.[1] ?? 0));
  return Math.max(...rounds);
}

for (const [name, next] of [
  ['alder to alder', () => 'alder'],
  ['alder to birch and back', (count: number) => (count % 2 === 0 ? 'birch' : 'alder')],
] as const) {
  t.test(`${UPGRADES} upgrades in a row, ${name}`, async (t) => {
    const lab = await MigrationLab.create(t);
    if (lab === undefined) return;
    const server = await lab.serve('a', { args: ['--size', '16M'] });
    const vm = await lab.startVm({ server });
    await lab.guestWrites(vm);
    const results: UpgradeResult[] = [];
    for (let count = 0; count < UPGRADES; count++) {
      const result = await lab.upgrade(server, ['--vendor', next(count), '--param', 'serial=DISK0']);
      t.match(result, { generation: count + 1, warnings: [] });
      await lab.guestWrites(vm);
      results.push(result);
    }
    t.equal(await server.process.exited, 0, 'the first server has ended by itself');
    t.same(await lab.finishAndCheck(vm), []);
    t.same(lab.warnings(), [], 'no warning was logged');
    const pauses = results.map(({ pauseMs }) => pauseMs ?? Number.NaN).sort((a, b) => a - b);
    const [median = Number.NaN, longest = Number.NaN] = [pauses[UPGRADES / 2], pauses.at(-1)];
    t.comment(`the guest's longest round ${longestRound(vm)} ms`);
    t.comment(`pause: median ${median.toFixed(1)} ms, longest ${longest.toFixed(1)} ms`);
    // QEMU gives a server up after 5 s; a guest notices much less.
    t.ok(longest < 2000, `longest pause ${longest.toFixed(1)} ms`);
  });
}
