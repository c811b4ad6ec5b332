// SPDX-License-Identifier: Apache-2.0
/** A device server is killed again and again under a stock QEMU whose guest writes to its disk and checks it. */

import { setTimeout as delay } from 'node:timers/promises';
import t from 'tap';
import { type LabServer, MigrationLab } from './harness/lab.js';

t.setTimeout(1_800_000);

const KILLS = Number(process.env.DEVSTATE_TEST_KILLS ?? 6);

/** The process that serves for the `times`-th time, and how long after the crash it did, ms. */
async function serving({ process }: LabServer, times: number): Promise<{ pid: number; ms: number }> {
  const says =
    times === 1
      ? /process (\d+) serves"/
      : new RegExp(`process (\\d+) serves, ([\\d.]+) (ms|s) after the crash \\(restart ${times - 1}\\)`);
  await process.saysOnStderr(says);
  const [, pid, time, unit] = says.exec(process.stderr) ?? [];
  return { pid: Number(pid), ms: Number(time ?? 0) * (unit === 's' ? 1000 : 1) };
}

t.test(`SIGKILL at ${KILLS} random moments under NVMe load: no I/O error, no gap`, async (t) => {
  const lab = await MigrationLab.create(t);
  if (lab === undefined) return;
  const server = await lab.serve('a', { args: ['--size', '16M'], supervisor: ['--max-crashes', '100'] });
  const vm = await lab.startVm({ server });
  await lab.guestWrites(vm);
  const times: number[] = [];
  for (let kill = 1; kill <= KILLS; kill++) {
    const { pid } = await serving(server, kill);
    await delay(Math.random() * 400);
    process.kill(pid, 'SIGKILL');
    times.push((await serving(server, kill + 1)).ms);
    if (kill % 3 === 0) await lab.guestWrites(vm);
  }
  await lab.guestWrites(vm);
  t.same(await lab.finishAndCheck(vm), []);
  t.equal(vm.stderr, '', 'QEMU has noticed nothing');
  times.sort((a, b) => a - b);
  const [median = Number.NaN, longest = Number.NaN] = [times[times.length >> 1], times.at(-1)];
  t.comment(`crash to serving: median ${median.toFixed(0)} ms, longest ${longest.toFixed(0)} ms`);
  server.process.signal('SIGTERM');
  t.equal(await server.process.exited, 0);
});
