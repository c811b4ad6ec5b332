// SPDX-License-Identifier: Apache-2.0
/** A reader of the log that stands still costs lines, and nothing else: no server waits for it, and none is kept from ending. */

import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, constants, openSync, readFileSync, readSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { Client } from '../../src/client/index.js';
import { native } from '../../src/native/index.js';
import { devstateCommand } from '../e2e/harness/devstate-process.js';
import { RawClient } from '../support/raw-client.js';
import { socketFolder } from '../support/served.js';

t.setTimeout(900_000);

/** Somewhere to write to that takes nothing more until it is read. */
interface Stalled {
  /** A blocking descriptor, for the process under test. */
  readonly fd: number;
  /** Reads all that is there. */
  readonly read: () => string;
}

/** Fills a descriptor until nothing more fits. */
function fill(fd: number): void {
  for (const size of [65536, 4096, 1]) {
    try {
      for (;;) writeSync(fd, Buffer.alloc(size, '.'));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
    }
  }
}

function reader(fd: number): () => string {
  const buffer = Buffer.alloc(65536);
  return () => {
    let text = '';
    try {
      for (let size = 1; size > 0; ) {
        size = readSync(fd, buffer);
        text += buffer.toString('utf8', 0, size);
      }
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
    }
    return text;
  };
}

/** A pipe with a reader that stands still. */
function fullPipe(t: Test): Stalled {
  const path = join(socketFolder(t), 'pipe');
  execFileSync('mkfifo', [path]);
  const end = openSync(path, constants.O_RDWR | constants.O_NONBLOCK);
  fill(end);
  const fd = openSync(path, constants.O_WRONLY);
  t.teardown(() => [end, fd].forEach((each) => void closeSync(each)));
  return { fd, read: reader(end) };
}

/** A socket, as a service manager gives one to a service, with a reader that stands still. */
function fullSocket(t: Test): Stalled {
  const pair = new Int32Array(2);
  native.socketPair(pair);
  const [fd = -1, end = -1] = pair;
  // Filled by a process of its own, which has the open file as the one under test will: blocking.
  const filler = `import socket, sys
s = socket.socket(fileno=0)
try:
    while True: s.send(b'.' * 4096, socket.MSG_DONTWAIT)
except BlockingIOError: pass`;
  execFileSync('python3', ['-c', filler], { stdio: [fd, 'inherit', 'inherit'] });
  t.teardown(() => [end, fd].forEach((each) => void native.close(each)));
  return { fd, read: reader(end) };
}

/** Starts `devstate` with all that it writes going there. */
function start(t: Test, args: readonly string[], output: number): ChildProcess {
  // Without what the test runner loads into every process: it looks at process.stderr.
  const child = spawn('env', ['-u', 'NODE_OPTIONS', ...devstateCommand(...args)], {
    stdio: ['ignore', output, output],
  });
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
    ['pipe', fullPipe],
    ['socket', fullSocket],
  ] as const) {
    t.test(`${name} serves and ends while its stderr is a ${kind} that is full`, async (t) => {
      const folder = socketFolder(t);
      const socket = join(folder, 'socket');
      const output = stalled(t);
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

/** Writes numbered lines to stderr, one by one, and says so on stdout; goes on for as long as stdin is open. */
const WRITER = `
const { writeStderr } = await import(process.argv[1]);
for (let i = 0; i < Number(process.argv[2]); i++) writeStderr('line ' + i + ' ' + 'x'.repeat(90) + '\\n');
process.stdout.write('written\\n');
process.stdin.on('end', () => process.exit(0)).resume();
`;

t.test(
  'lines that do not fit are counted, and their number is written when the reader reads again',
  async (t) => {
    const output = fullPipe(t);
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
  },
);
