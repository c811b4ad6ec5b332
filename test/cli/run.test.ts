// SPDX-License-Identifier: Apache-2.0
/** `devstate run` as a command: what it has no room for, and how what it runs is not replaced. */

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { Devstate, devstate, devstateCommand } from '../e2e/harness/devstate-process.js';
import { socketFolder } from '../support/served.js';

t.test('a supervisor that keeps too little: the server ends, and says what to change', async (t) => {
  const folder = socketFolder(t);
  const [socket, migration] = [join(folder, 'vmm'), join(folder, 'migration')];
  const server = devstateCommand('serve', 'counter', '--socket', socket, '--migration-socket', migration);
  for (const room of ['1', '2']) {
    const { code, stderr } = await devstate('run', '--max-fds', room, '--', ...server);
    t.equal(code, 2);
    t.match(stderr, /keeps at most .*--max-fds.*DEVSTATE_E_USAGE/);
    t.notOk(existsSync(socket) || existsSync(migration));
  }
});

t.test('what runs so is not replaced by devstate upgrade, which says how it is', async (t) => {
  const folder = socketFolder(t);
  const migration = join(folder, 'migration');
  const server = devstateCommand(
    'serve',
    'counter',
    '--socket',
    join(folder, 'vmm'),
    '--migration-socket',
    migration,
  );
  const run = new Devstate(['run', '--', ...server]);
  // Killed, it would leave its server behind.
  t.teardown(() => run.end('SIGTERM'));
  await run.saysOnStderr(/"msg":"process \d+ serves/);
  const { code, stderr } = await devstate('upgrade', '--migration-socket', migration, '--', ...server);
  t.equal(code, 3);
  t.match(stderr, /under devstate run is replaced by SIGHUP/);
  t.equal(run.hasEnded, false);
});
