// SPDX-License-Identifier: Apache-2.0
/** The command line as users meet it: what is refused, with which code and exit code; save, inspect and load. */
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { DevstateError } from '../../src/errors.js';
import { openDeviceSocket } from '../../src/operations/device-socket.js';
import { load, save } from '../../src/operations/index.js';
import { MigrationState } from '../../src/wire/index.js';
import { Devstate, devstate, devstateCommand, serveNvme } from '../e2e/harness/devstate-process.js';
import { openFds } from '../support/closes.js';
import { socketFolder } from '../support/served.js';

t.setTimeout(900_000);

/** A directory whose path is short enough for sockets. */
async function folder(t: Test): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'cli-'));
  t.teardown(() => rm(path, { recursive: true, force: true }));
  return path;
}

/** A device server without a VMM. */
async function nvme(t: Test, directory: string, name = 'a', args: readonly string[] = ['--size', '1M']) {
  const path = (suffix: string): string => join(directory, `${name}.${suffix}`);
  const paths = { socket: path('sock'), migrationSocket: path('mig'), image: path('img') };
  const server = await serveNvme({ ...paths, args });
  t.teardown(() => server.end());
  return { ...paths, server };
}

/** Runs a command that must fail. */
async function refused(t: Test, args: string[], exitCode: number, says: RegExp): Promise<void> {
  const { code, stdout, stderr } = await devstate(...args);
  t.equal(code, exitCode, args.join(' ').slice(0, 100), { stderr });
  t.match(stderr, says);
  t.notMatch(stderr, /^ {4}at /m, 'no stack trace');
  t.equal(stdout, '', 'nothing on stdout');
}

const MIGRATE = [
  'migrate',
  '--source-qmp',
  '/nowhere/a',
  '--dest-qmp',
  '/nowhere/b',
  '--uri',
  'unix:/nowhere/m',
];
const DEVICE = ['--device', 'd,source=/nowhere/s,dest=/nowhere/d'];

t.test('too few files that may be open are said in a sentence', async (t) => {
  const commands = [
    'serve nvme --socket s --migration-socket m --image i --size 1M',
    'relay --listen s --server t --migration-socket m',
    'migrate --source-qmp a --dest-qmp b --uri unix:c --device d,source=e,dest=f',
  ];
  for (const command of commands) {
    const script = `ulimit -n 64; exec ${devstateCommand(...command.split(' ')).join(' ')}`;
    // A server that would start has its files in a folder of the test, and is ended.
    const options = { cwd: socketFolder(t), encoding: 'utf8', timeout: 60_000 } as const;
    const { status, stderr } = spawnSync('/bin/sh', ['-c', script], options);
    t.not(status, 0, command);
    t.match(stderr, /may open too few files \(ulimit -n\)/);
    t.notMatch(stderr, /^\s+at /m, 'no stack trace');
  }
});

t.test('wrong command lines', async (t) => {
  const wrong: [string[], RegExp][] = [
    [['nonsense'], /unknown command/],
    [['serve', 'toaster'], /unknown command/],
    [['serve', 'nvme'], /required option '--socket/],
    [['serve', 'nvme', '--socket', 'x', '--image', 'y', '--size', '12Q'], /--size.*number of bytes/],
    [['serve', 'nvme', '--socket', 'x', '--image', 'y', '--vendor', 'oak'], /--vendor.*alder/],
    [['serve', 'nvme', '--socket', 'x', '--image', 'y', '--param', 'mdts'], /KEY=VALUE/],
    [
      ['serve', 'nvme', '--socket', '/x', '--migration-socket', '/x', '--image', 'y'],
      /same path.*DEVSTATE_E_USAGE/,
    ],
    [['migrate'], /required option '--source-qmp/],
    [[...MIGRATE, '--device', 'd,source=/a'], /ID,source=PATH,dest=PATH/],
    [[...MIGRATE, '--device', 'source=/a,dest=/b'], /ID,source=PATH,dest=PATH/],
    [[...MIGRATE, ...DEVICE, '--downtime-ms', 'soon'], /--downtime-ms.*greater than 0/],
    [[...MIGRATE, ...DEVICE, '-o', 'xml'], /Allowed choices are text, json/],
    [[...MIGRATE, '--device', 'd,source=/a,dest=/a'], /same socket.*DEVSTATE_E_USAGE/],
    [[...MIGRATE, ...DEVICE, ...DEVICE], /named twice.*DEVSTATE_E_USAGE/],
    [['cpr', '--listen', '/a'], /required option '--forward/],
    [['cpr', '--listen', '/a', '--forward', '/a'], /same path.*DEVSTATE_E_USAGE/],
    [['cpr', '--listen', '/a', '--forward', '/b', '--timeout-s', '0'], /--timeout-s.*greater than 0/],
    [['save', '--migration-socket', 'x'], /required option '-o/],
    [['save', '-o', 'y'], /--migration-socket or --vfio-device.*DEVSTATE_E_USAGE/],
    [['load', 'y'], /--migration-socket or --vfio-device.*DEVSTATE_E_USAGE/],
    [['load', '--migration-socket', 'x', '--vfio-device', '1:y', 'z'], /cannot be used with/],
    [['save', '--vfio-device', 'vfio0', '-o', 'y'], /GROUP:NAME.*DEVSTATE_E_USAGE/],
    [['save', '--migration-socket', 'x', '-o', 'y', '--then', 'dance'], /run, stop/],
    [['load', '--migration-socket', 'x'], /missing required argument/],
    [['recover', '--source-qmp', 'x', '--device', 'd'], /ID,source=PATH/],
    [['recover', '--source-qmp', 'x'], /no device to recover.*DEVSTATE_E_USAGE/],
    [
      ['recover', '--source-qmp', 'x', '--device', 'd,source=/a', '--device', 'd,source=/b'],
      /named twice.*DEVSTATE_E_USAGE/,
    ],
  ];
  await Promise.all(wrong.map(([args, says]) => refused(t, args, 2, says)));
});

t.test('help and version are no errors', async (t) => {
  for (const args of [['--help'], ['--version'], ['serve', 'nvme', '--help']]) {
    const { code, stdout } = await devstate(...args);
    t.equal(code, 0);
    t.match(stdout, /devstate/);
  }
});

t.test('peers that are not there, or are something else', async (t) => {
  const directory = await folder(t);
  const at = (name: string): string => join(directory, name);
  writeFileSync(at('file'), 'no socket');
  const garbage = createServer((socket) => {
    socket.on('error', () => {});
    socket.write(randomBytes(4096));
  });
  const silent = createServer((socket) => socket.on('error', () => {}));
  await Promise.all([
    new Promise<void>((resolve) => garbage.listen(at('garbage'), resolve)),
    new Promise<void>((resolve) => silent.listen(at('silent'), resolve)),
  ]);
  t.teardown(() => {
    garbage.close();
    silent.close();
  });
  const migrate = (sourceQmp: string): string[] => [
    'migrate',
    '--source-qmp',
    sourceQmp,
    '--dest-qmp',
    at('none2'),
    '--uri',
    'unix:/m',
    ...DEVICE,
  ];
  await Promise.all([
    refused(t, migrate(at('none')), 5, /no QMP server.*DEVSTATE_E_QMP_CONNECT/),
    refused(t, migrate(at('file')), 5, /DEVSTATE_E_QMP_CONNECT/),
    refused(t, migrate(at('garbage')), 5, /DEVSTATE_E_QMP_CONNECT/),
    refused(t, migrate(at('silent')), 5, /DEVSTATE_E_QMP_CONNECT/),
    refused(
      t,
      ['save', '--migration-socket', at('none'), '-o', at('o')],
      5,
      /does not exist.*DEVSTATE_E_CONNECT/,
    ),
    refused(t, ['save', '--migration-socket', at('file'), '-o', at('o')], 5, /DEVSTATE_E_CONNECT/),
    refused(
      t,
      ['save', '--migration-socket', at('silent'), '-o', at('o')],
      5,
      /does not answer.*DEVSTATE_E_CONNECT/,
    ),
    refused(
      t,
      ['save', '--migration-socket', at('garbage'), '-o', at('o')],
      1,
      /DEVSTATE_E_MESSAGE_LENGTH|DEVSTATE_E_PROTOCOL/,
    ),
    refused(t, ['inspect', at('none')], 1, /cannot read.*DEVSTATE_E_INPUT/),
    refused(t, ['inspect', directory], 1, /DEVSTATE_E_INPUT/),
  ]);
  t.notOk(existsSync(at('o')), 'nothing was written');
});

t.test('images and parameters that a server does not take', async (t) => {
  const directory = await folder(t);
  const at = (name: string): string => join(directory, name);
  const serve = (image: string, ...more: string[]): string[] => [
    'serve',
    'nvme',
    '--socket',
    at('s'),
    '--migration-socket',
    at('m'),
    '--image',
    image,
    ...more,
  ];
  writeFileSync(at('odd'), 'x'.repeat(5000));
  writeFileSync(at('small'), '');
  truncateSync(at('small'), 65536);
  writeFileSync(at('qcow2'), Buffer.concat([Buffer.from('514649fb00000003', 'hex'), Buffer.alloc(65528)]));
  const { image } = await nvme(t, directory);
  const cases: [string[], number, RegExp][] = [
    [serve(at('qcow2')), 1, /a qcow2 disk image.*--force.*DEVSTATE_E_IMAGE_OPEN/],
    [serve(at('odd')), 1, /DEVSTATE_E_IMAGE_/],
    [serve(at('small'), '--size', '1M'), 1, /65536.*DEVSTATE_E_IMAGE_SIZE/],
    [serve(image), 1, /in use.*DEVSTATE_E_IMAGE_LOCKED/],
    [serve(at('gone'), '--incoming'), 1, /DEVSTATE_E_IMAGE_MISSING/],
    [serve(join(directory, 'no', 'folder')), 1, /DEVSTATE_E_IMAGE_OPEN/],
    [serve(directory), 1, /DEVSTATE_E_IMAGE_OPEN/],
    [serve(at('new'), '--param', 'wings=2'), 2, /no parameter "wings".*DEVSTATE_E_MODEL_PARAMETER/],
    [serve(at('new'), '--param', 'mdts=99'), 2, /mdts.*DEVSTATE_E_MODEL_PARAMETER/],
    [serve(at('new'), '--param', 'queues=some'), 2, /queues.*DEVSTATE_E_MODEL_PARAMETER/],
  ];
  // One after the other: they share the paths of their sockets.
  for (const [args, exitCode, says] of cases) await refused(t, args, exitCode, says);
  t.notOk(existsSync(at('new')), 'a wrong parameter leaves no image behind');

  const other = ['serve', 'nvme', '--socket', join(directory, 'a.sock'), '--image', at('new')];
  await refused(t, other, 1, /another process listens.*DEVSTATE_E_ADDRESS_IN_USE/);
});

t.test('a server ends cleanly', async (t) => {
  const directory = await folder(t);
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    const { server, socket, migrationSocket, image } = await nvme(t, directory);
    server.signal(signal);
    t.equal(await server.exited, 0, signal);
    t.notOk(existsSync(socket) || existsSync(migrationSocket), 'its sockets are gone');
    t.equal(statSync(image).size, 2 ** 20);
  }
  const { server } = await nvme(t, directory);
  await server.end('SIGKILL');
  await nvme(t, directory);
  t.pass('after SIGKILL the next one takes sockets and image over');
});

t.test('save, inspect, load', async (t) => {
  const directory = await folder(t);
  const { migrationSocket, server } = await nvme(t, directory);
  const blob = join(directory, 'state.bin');
  const saved = await devstate('save', '--migration-socket', migrationSocket, '-o', blob);
  t.equal(saved.code, 0, 'save', { stderr: saved.stderr });
  t.equal((await devstate('load', '--migration-socket', migrationSocket, blob)).code, 0);
  const again = await devstate('save', '--migration-socket', migrationSocket, '-o', '-');
  t.equal(again.code, 0);
  t.ok(again.stdout.length > 0, 'a blob on stdout');

  const inspected = await devstate('inspect', blob, '-o', 'json');
  t.equal(inspected.code, 0);
  t.match(JSON.parse(inspected.stdout), {
    format: { name: 'org.devstate.nvme.alder', version: '1.0' },
    model: 'devstate.org/nvme',
    parameters: { namespace_size: 2 ** 20 },
    records: [{ name: 'identity' }, { name: 'function' }, { name: 'queues' }, { name: 'admin' }],
    digest: { ok: true },
    error: null,
  });
  const text = await devstate('inspect', blob);
  t.match(text.stdout, /org\.devstate\.nvme\.alder/);
  for (const line of text.stdout.split('\n'))
    if (line.length > 80) t.fail(`a line of ${line.length} columns`);

  const damaged = join(directory, 'damaged.bin');
  const bytes = readFileSync(blob);
  bytes[bytes.length >> 1]! ^= 1;
  writeFileSync(damaged, bytes);
  await refused(t, ['load', '--migration-socket', migrationSocket, damaged], 6, /DEVSTATE_E_ENVELOPE_/);
  const report = await devstate('inspect', damaged, '-o', 'json');
  t.equal(report.code, 6);
  t.match(JSON.parse(report.stdout), { digest: { ok: false }, error: { code: /^DEVSTATE_E_ENVELOPE_/ } });
  writeFileSync(damaged, bytes.subarray(0, 100));
  await refused(t, ['load', '--migration-socket', migrationSocket, damaged], 6, /DEVSTATE_E_ENVELOPE_/);

  await refused(
    t,
    ['save', '--migration-socket', migrationSocket, '-o', '/dev/full/x'],
    1,
    /DEVSTATE_E_OUTPUT/,
  );
  await refused(
    t,
    ['save', '--migration-socket', migrationSocket, '-o', join(directory, 'no/x')],
    1,
    /DEVSTATE_E_OUTPUT/,
  );
  t.same(
    readdirSync(directory).filter((name) => name.includes('partial')),
    [],
    'no partial file stays',
  );

  const other = await nvme(t, directory, 'b', ['--size', '1M', '--param', 'mdts=5']);
  await refused(
    t,
    ['load', '--migration-socket', other.migrationSocket, blob],
    3,
    /does not fit.*mdts is 7 at the source, 5.*DEVSTATE_E_INCOMPATIBLE/,
  );
  t.equal(
    (await devstate('save', '--migration-socket', other.migrationSocket, '-o', join(directory, 'b.bin')))
      .code,
    0,
  );
  t.notOk(server.hasEnded);
});

t.test('save of a device that cannot run afterwards leaves no file', async (t) => {
  const directory = await folder(t);
  await nvme(t, directory);
  const at = (name: string): string => join(directory, name);
  const paths = { socket: at('b.sock'), migrationSocket: at('b.mig'), image: at('a.img') };
  const waiting = await serveNvme({ ...paths, args: ['--incoming'] });
  t.teardown(() => waiting.end());
  const args = ['save', '--migration-socket', paths.migrationSocket, '-o', at('state')];
  const empty = /waits for a state \(--incoming\).*none of its own.*DEVSTATE_E_NOT_MIGRATABLE/;
  await refused(t, args, 3, empty);
  await refused(t, [...args, '--then', 'stop'], 3, empty);
  const { device } = await openDeviceSocket(paths.migrationSocket);
  await device.setState(MigrationState.STOP);
  device.close();
  await refused(t, args, 1, /image.*DEVSTATE_E_REFUSED/);
  t.notOk(existsSync(at('state')));
  const stopped = await devstate(...args, '--then', 'stop');
  t.equal(stopped.code, 0, 'stopped as it is, it can be saved', { stderr: stopped.stderr });
  t.ok(existsSync(at('state')));
});

t.test('a real blob, cut at every length and flipped at every byte', async (t) => {
  const directory = await folder(t);
  const { migrationSocket, server } = await nvme(t, directory);
  const blob = join(directory, 'state.bin');
  const before = join(directory, 'before.bin');
  await save({ migrationSocket, output: blob, afterwards: 'run' });
  const good = readFileSync(blob);
  const fdsBefore = openFds();
  const outcome = async (bytes: Uint8Array, name = 'bad.bin'): Promise<string> => {
    const input = join(directory, name);
    writeFileSync(input, bytes);
    return load({ migrationSocket, input, afterwards: 'run' }).then(
      () => 'loaded',
      (error: unknown) => (error instanceof DevstateError ? error.code : String(error)),
    );
  };
  const unnamed: string[] = [];
  let next = 0;
  // Several at a time: most of the time goes into waiting for the server.
  const worker = async (name: string): Promise<void> => {
    for (let at = next++; at < good.length; at = next++) {
      const flipped = Buffer.from(good);
      flipped[at]! ^= 0xff;
      for (const [what, bytes] of [
        ['cut', good.subarray(0, at)],
        ['flipped', flipped],
      ] as const) {
        const code = await outcome(bytes, name);
        if (!code.startsWith('DEVSTATE_E_ENVELOPE_')) unnamed.push(`${what} at ${at}: ${code}`);
      }
    }
  };
  await Promise.all(Array.from({ length: 8 }, (_, index) => worker(`bad${index}.bin`)));
  t.same(unnamed, []);
  // Node closes the file of a stream that was given up in its own time.
  while (openFds() > fdsBefore) await new Promise((resolve) => setTimeout(resolve, 5));
  t.pass('no descriptor leaks');
  t.equal(await outcome(good), 'loaded');
  await save({ migrationSocket, output: before, afterwards: 'run' });
  t.equal(readFileSync(before).length, good.length, 'and the device is what it was');
  t.notOk(server.hasEnded);
});

t.test('a garbage client does not keep a server from the next one', async (t) => {
  const directory = await folder(t);
  const { migrationSocket, server } = await nvme(t, directory);
  for (const length of [1, 15, 16, 17, 4096]) {
    const { createConnection } = await import('node:net');
    await new Promise<void>((resolve) => {
      const socket = createConnection(migrationSocket, () => socket.end(randomBytes(length)));
      socket.on('error', () => {});
      socket.on('close', () => resolve());
    });
  }
  const saved = new Devstate(['save', '--migration-socket', migrationSocket, '-o', join(directory, 'x')]);
  t.equal(await saved.exited, 0);
  t.notOk(server.hasEnded);
});

t.test('upgrade: neither nothing nor two things are replaced', async (t) => {
  const both = ['--migration-socket', '/nowhere/a', '--control', '/nowhere/b'];
  for (const options of [[], both])
    t.match(await devstate('upgrade', ...options, '--', 'true'), {
      code: 2,
      stderr: /--migration-socket of a device server, --control of a relay, or --qemu/,
    });
  for (const [options, option] of [
    [['--control', '/nowhere/b', '--format', 'x'], '--format'],
    [['--migration-socket', '/nowhere/a', '--mode', 'cpr-exec'], '--mode'],
    [['--qemu', '--source-qmp', '/nowhere/q', '--freeze-ms', '5'], '--freeze-ms'],
  ] as const)
    t.match(await devstate('upgrade', ...options, '--', 'true'), {
      code: 2,
      stderr: new RegExp(`${option} says nothing of what ${options[0]} replaces: leave it out`),
    });
});
