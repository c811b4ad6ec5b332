// SPDX-License-Identifier: Apache-2.0
/** A reader of the log that stands still costs lines, and nothing else: no server waits for it, and none is kept from ending. */

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, constants, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { Client } from '../../src/client/index.js';
import { MigrationState } from '../../src/wire/index.js';
import { devstateCommand } from '../e2e/harness/devstate-process.js';
import { skipWithout } from '../support/failing-disks.js';
import { RawClient } from '../support/raw-client.js';
import { serveScratch, socketFolder, until } from '../support/served.js';
import { fullFile, fullPipe, fullSocket, type Stalled, stoppedTerminal } from '../support/stalled.js';

t.setTimeout(900_000);

/** Starts `devstate` with all that it writes going there. */
function start(t: Test, args: readonly string[], output: number): ChildProcess {
  const [program = '', ...rest] = devstateCommand(...args);
  const child = spawn(program, rest, { stdio: ['ignore', output, output] });
  t.teardown(() => child.kill('SIGKILL'));
  return child;
}

/** Calls `attempt` until it succeeds: a server that comes. */
async function eventually<T>(attempt: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await attempt();
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }
}

/** Sends commands that are refused, a window at a time, and waits for the answers. */
async function refusedCommands(socket: string, count: number): Promise<void> {
  const client = await RawClient.connect(socket);
  await client.version();
  for (let sent = 0; sent < count; ) {
    const window = Math.min(200, count - sent);
    for (let i = 0; i < window; i++) client.send(client.message(99, Uint8Array.of(i)));
    for (let i = 0; i < window; i++) await client.receive();
    sent += window;
  }
  client.close();
}

const SERVERS: [name: string, args: (socket: string, folder: string) => string[]][] = [
  ['sample', (socket) => ['serve', 'sample', '--socket', socket]],
  ...(['alder', 'birch'] as const).map((vendor): [string, (socket: string, folder: string) => string[]] => [
    vendor,
    (socket, folder) => [
      ...['serve', 'nvme', '--socket', socket, '--vendor', vendor],
      ...['--image', join(folder, 'image'), '--size', '1M'],
    ],
  ]),
  [
    'run',
    (socket, folder) => [
      ...['run', '--', ...devstateCommand('serve', 'nvme', '--socket', socket)],
      ...['--image', join(folder, 'image'), '--size', '1M'],
    ],
  ],
];

for (const [name, args] of SERVERS) {
  for (const [kind, stalled] of [
    ['a pipe that is full', fullPipe],
    ['a socket that is full', fullSocket],
    ['a terminal that is stopped', stoppedTerminal],
    ['a file on a disk that is full', fullFile],
  ] as const) {
    const skip = stalled === fullFile && skipWithout('full');
    t.test(`${name} serves and ends while its stderr is ${kind}`, { skip }, async (t) => {
      const folder = socketFolder(t);
      const socket = join(folder, 'socket');
      const output = await stalled(t);
      const server = start(t, args(socket, folder), output.fd);
      const exited = once(server, 'exit');
      await eventually(async () => (await Client.connect(socket)).close());
      await refusedCommands(socket, 1000);
      const flags = readFileSync(`/proc/${server.pid}/fdinfo/2`, 'utf8').match(/flags:\s*([0-7]+)/)?.[1];
      t.equal(Number.parseInt(flags ?? '', 8) & constants.O_NONBLOCK, 0, 'others that have it still block');
      server.kill('SIGTERM');
      t.same(await exited, [0, null], 'SIGTERM ends it');
    });
  }
}

t.test('a relay serves and ends while its stderr is full', async (t) => {
  const folder = socketFolder(t);
  const [behind, socket] = [join(folder, 'server'), join(folder, 'relay')];
  const log = openSync('/dev/null', 'w');
  t.teardown(() => closeSync(log));
  start(t, ['serve', 'sample', '--socket', behind], log);
  const relay = start(t, ['relay', '--listen', socket, '--server', behind], fullPipe(t).fd);
  const exited = once(relay, 'exit');
  const client = await eventually(() => Client.connect(socket));
  await client.reset();
  client.close();
  await refusedCommands(socket, 1000);
  relay.kill('SIGTERM');
  t.same(await exited, [0, null]);
});

t.test('a command that fails says so as soon as it is read, and ends if it is not', async (t) => {
  const output = fullPipe(t);
  const command = start(t, ['inspect', '/nowhere/file'], output.fd);
  t.same(await once(command, 'exit'), [1, null]);
});

t.test('100,000 commands that are refused are a few lines of log', async (t) => {
  const folder = socketFolder(t);
  const socket = join(folder, 'socket');
  const path = join(folder, 'log');
  const log = openSync(path, 'w');
  t.teardown(() => closeSync(log));
  const server = start(t, ['serve', 'sample', '--socket', socket], log);
  const exited = once(server, 'exit');
  await eventually(async () => (await Client.connect(socket)).close());
  await refusedCommands(socket, 100_000);
  server.kill('SIGTERM');
  await exited;
  const text = readFileSync(path, 'utf8');
  const lines = text
    .trim()
    .split('\n')
    .filter((line) => line.includes('is not served here'));
  t.ok(lines.length >= 6 && lines.length < 40, `${lines.length} lines`);
  const held = lines.map((line) => Number(/"msg":"(\d+) more lines? of VMM \d+ like/.exec(line)?.[1] ?? 0));
  const summaries = held.filter((count) => count > 0).length;
  t.equal(held.reduce((sum, count) => sum + count, 0) + lines.length - summaries, 100_000, 'all are counted');
  t.ok(text.length < 20_000, `${text.length} bytes`);
});

/** Writes numbered lines to stderr, one by one, and says so on stdout; continues for as long as stdin is open. */
const WRITER = `
const { writeStderr } = await import(process.argv[1]);
for (let i = 0; i < Number(process.argv[2]); i++) writeStderr('line ' + i + ' ' + 'x'.repeat(90) + '\\n');
process.stdout.write('written\\n');
process.stdin.on('end', () => process.exit(0)).resume();
`;

async function countedLines(t: Test, output: Stalled): Promise<void> {
  const COUNT = 30_000;
  const module = fileURLToPath(new URL('../../src/cli/stderr.js', import.meta.url));
  const child = spawn(process.execPath, ['--input-type=module', '-e', WRITER, module, String(COUNT)], {
    stdio: ['pipe', 'pipe', output.fd],
  });
  t.teardown(() => child.kill('SIGKILL'));
  await once(child.stdout!, 'data');
  let text = '';
  const dropped = (): number =>
    [...text.matchAll(/^(\d+) lines? dropped/gm)].reduce((sum, [, count]) => sum + Number(count), 0);
  while (dropped() === 0) {
    text += output.read();
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  child.stdin!.end();
  await once(child, 'exit');
  text += output.read();
  const lines = text.match(/line \d+ x{90}$/gm) ?? [];
  t.equal(lines.length + dropped(), COUNT, `${lines.length} lines, ${dropped()} dropped`);
  t.ok(lines.length > 5000, 'as many as fit were kept');
  const numbers = lines.map((line) => Number(line.split(' ')[1]));
  t.same(
    numbers,
    [...numbers].sort((a, b) => a - b),
    'in order',
  );
}

for (const [kind, stalled] of [
  ['pipe', fullPipe],
  ['terminal', stoppedTerminal],
] as const) {
  t.test(
    `${kind}: lines that do not fit are counted, and their number is written when it is read again`,
    async (t) => countedLines(t, await stalled(t)),
  );
}

t.test(
  'a log whose disk is full: the lines are counted when there is room',
  { skip: skipWithout('full') },
  async (t) => {
    const folder = socketFolder(t);
    const socket = join(folder, 'socket');
    const log = fullFile(t);
    const server = start(t, ['serve', 'sample', '--socket', socket], log.fd);
    const exited = once(server, 'exit');
    // A line when the server serves, and two of each client.
    const clients = 3;
    for (let client = 0; client < clients; client++) (await eventually(() => Client.connect(socket))).close();
    let said = '';
    // The line that tells of the others is written when there is one more.
    while (!/lines dropped/.test(said)) {
      said += log.read();
      (await Client.connect(socket)).close();
    }
    t.match(said, /"level":40,.*"msg":"\d+ lines dropped: stderr was not read, or could not be written"/);
    server.kill('SIGTERM');
    t.same(await exited, [0, null]);
  },
);

t.test('a saving into a pipe that is not read is cancelled, and the device runs', async (t) => {
  // More than is buffered: the device stands until it is read.
  const served = serveScratch(t, { stateSize: 8 * 1024 * 1024, chunk: 65536 });
  const manager = await served.manager();
  const log = openSync('/dev/null', 'w');
  t.teardown(() => closeSync(log));
  const full = fullPipe(t);
  for (const [output, stdout] of [
    ['-', full.fd],
    [full.path, log],
  ] as const) {
    const save = ['save', '--migration-socket', served.migrationPath, '-o', output];
    const [program = '', ...args] = devstateCommand(...save);
    const child = spawn(program, args, { stdio: ['ignore', stdout, 'pipe'] });
    t.teardown(() => child.kill('SIGKILL'));
    let said = '';
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      said += text;
    });
    await until(async () => (await manager.state()) === MigrationState.STOP_COPY);
    child.kill('SIGTERM');
    t.same(await once(child, 'close'), [4, null], `cancelled: ${output}`);
    t.match(said, /DEVSTATE_E_CANCELLED/);
    t.equal(await manager.state(), MigrationState.RUNNING);
  }
});
