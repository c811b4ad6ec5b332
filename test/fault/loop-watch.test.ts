// SPDX-License-Identifier: Apache-2.0
/** What watches the event loops of servers sees those that stand still, and no others, however loaded the machine is. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { takeStops, watched, watchedEnvironment } from '../support/loop-watch.js';

const SERVER = fileURLToPath(new URL('../support/standing-server.js', import.meta.url));
/** A stop is reported when the loop has had some turns after it. */
const SOON_MS = 100;

t.test('a stop of more than 50 ms is seen, a shorter one is not', async (t) => {
  const server = spawn(process.execPath, [SERVER], {
    env: watchedEnvironment(),
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  t.teardown(() => server.kill());
  const answers = createInterface(server.stdout);
  const work = async (ms: number): Promise<void> => {
    server.stdin.write(`${ms}\n`);
    await once(answers, 'line');
    // The timer that was late, and the two turns after it, come before this one.
    server.stdin.write('0\n');
    await once(answers, 'line');
  };
  await watched(server.pid);
  await work(25);
  await delay(SOON_MS);
  t.same(takeStops(), []);
  await work(120);
  let stops: string[] = [];
  while (stops.length === 0) {
    await delay(SOON_MS);
    stops = takeStops();
  }
  t.equal(stops.length, 1);
  const [, length = ''] = /: (\d+) ms /.exec(stops[0]!) ?? [];
  t.ok(Number(length) > 50, `${length} ms`);
});
