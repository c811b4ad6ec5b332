// SPDX-License-Identifier: Apache-2.0
/** `devstate run` as a command: what it has no room for, and how what it runs is not replaced. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync } from 'node:fs';
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

t.test('a supervisor that is killed leaves nothing in the folder for temporary files', async (t) => {
  const folder = socketFolder(t);
  const temporary = join(folder, 'tmp');
  mkdirSync(temporary);
  const [program = '', ...args] = devstateCommand(
    'run',
    '--',
    ...devstateCommand('serve', 'counter', '--socket', join(folder, 'vmm')),
  );
  const run = spawn(program, args, {
    env: { ...process.env, TMPDIR: temporary },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let said = '';
  run.stderr.setEncoding('utf8');
  for await (const text of run.stderr) {
    said += text;
    if (/process \d+ serves/.test(said)) break;
  }
  const server = Number(/process (\d+) serves/.exec(said)?.[1]);
  t.teardown(() => process.kill(server, 'SIGTERM'));
  const gone = once(run, 'exit');
  run.kill('SIGKILL');
  await gone;
  t.same(readdirSync(temporary), []);
});
