// SPDX-License-Identifier: Apache-2.0
/**
 * `devstate vfio hold`, as root, lends to processes of a user who may open nothing of VFIO: all they do, DMA, interrupts
 * and moves from one to the next included, runs without a privilege.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readlinkSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { Group, listVfio, type StationStatus } from '../../../src/vfio/index.js';
import { start } from './operators.js';
import { check, finish, remark } from './report.js';

const MAIN = fileURLToPath(new URL('../../../src/cli/main.js', import.meta.url));
const EDU = '0000:00:03.0';
const GROUP = readlinkSync(`/sys/bus/pci/devices/${EDU}/iommu_group`).split('/').at(-1)!;
/** With the argument `iommufd`: the device by its own file. */
const IOMMUFD = process.argv.includes('iommufd');
const CDEVS = IOMMUFD ? readdirSync(`/sys/bus/pci/devices/${EDU}/vfio-dev`) : [];
const lists = IOMMUFD ? { cdevs: CDEVS } : { groups: [GROUP] };
const SOCKET = '/tmp/holder';
const USER = 1000;
const MEMORY = 0x40000;

interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs `devstate vfio …` to its end, as a user. */
async function vfio(args: readonly string[], uid = 0): Promise<Outcome> {
  try {
    const run = promisify(execFile);
    const done = await run(process.execPath, [MAIN, 'vfio', ...args], { uid, gid: uid });
    return { code: 0, ...done };
  } catch (error) {
    const { code, stdout = '', stderr = '' } = error as unknown as Outcome;
    return { code, stdout, stderr };
  }
}

/** What a process of the user is told when it asks. */
const statusAt = (path: string) => second.ask<StationStatus>('askStatus', path);

/** The user has one process give to another. */
const give = (from: string, to: string) => second.ask('askToGive', { from, to });

/** A running `devstate vfio hold`. */
class Holder {
  readonly process: ChildProcess;
  #said = '';

  constructor(...args: string[]) {
    const command = [MAIN, 'vfio', 'hold', '--socket', SOCKET, ...args];
    this.process = spawn(process.execPath, command, { stdio: ['ignore', 'ignore', 'pipe'] });
    this.process.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.#said += text;
    });
  }

  /** Settles when it has said something like `pattern`. */
  async says(pattern: RegExp): Promise<void> {
    while (!pattern.test(this.#said)) {
      if (this.process.exitCode !== null) throw new Error(`the holder ended: ${this.#said}`);
      await Promise.race([once(this.process.stderr!, 'data'), once(this.process, 'exit')]);
    }
  }

  async end(): Promise<number | null> {
    this.process.kill('SIGTERM');
    const [code] = await once(this.process, 'exit');
    return code;
  }
}

await check('list', () => {
  const { groups, container } = listVfio();
  assert.ok(container);
  const group = groups.find(({ id }) => id === GROUP);
  assert.ok(group?.viable);
  assert.deepEqual(group.reasons, []);
  assert.equal(group.devices.find(({ name }) => name === EDU)?.driver, 'vfio-pci');
  const others = groups.filter(({ viable }) => !viable);
  assert.ok(others.length > 0 && others.every(({ reasons }) => reasons.length > 0), 'others say why not');
});

const holder = new Holder(
  ...(IOMMUFD ? CDEVS.flatMap((name) => ['--device', name]) : ['--group', GROUP]),
  ...['--user', String(USER)],
);
const [first, second] = start(2, { uid: USER });
await Promise.all([first.ask('listen', {}), second.ask('listen', {}), holder.says(/holding/)]);

await check('a user without rights opens nothing, and is told what to do', async () => {
  await assert.rejects(first.ask('reopen', lists), {
    code: 'DEVSTATE_E_VFIO_ACCESS',
    message: /permission denied: run "devstate vfio hold" as a user that may/,
  });
  await first.ask('listen', {});
});

await check('everything but opening runs as another user', async () => {
  const lent = await vfio(['lend', '--socket', SOCKET, '--to', first.path, '--timeout-s', '30'], USER);
  assert.equal(lent.code, 0, lent.stderr);
  remark(lent.stdout);
  await first.ask('setUp');
  await first.ask('dma', 1);
  await first.ask('mark', 42);
  const before = await first.ask('registers');
  await give(first.path, second.path);
  await first.ask('reopen', {});
  assert.deepEqual(await second.ask('registers'), before);
  await second.ask('interrupts');
  await second.ask('acknowledge', 0x20);
  await second.ask('dma', 2);
  assert.equal(await second.ask('unmap'), MEMORY);
  await second.ask('map');
  await second.ask('dma', 3);
  assert.throws(() => Group.open(GROUP), { code: 'DEVSTATE_E_VFIO_BUSY' });
});

await check('the holder knows who has the devices, and lends them to no other process', async () => {
  const { owner, held, lends, generation } = await statusAt(SOCKET);
  assert.deepEqual(owner, { pid: second.pid, running: true });
  assert.deepEqual({ held, lends, generation }, { held: false, lends: true, generation: 2 });
  await assert.rejects(give(SOCKET, first.path), {
    code: 'DEVSTATE_E_VFIO_LEASE',
    message: new RegExp(`process ${second.pid} has the devices`),
  });
});

await check('they come back as they were, and go again', async () => {
  await second.ask('mark', 43);
  const before = await second.ask('registers');
  await give(second.path, SOCKET);
  assert.equal((await statusAt(SOCKET)).held, true);
  assert.equal((await statusAt(second.path)).devices.length, 0);
  await give(SOCKET, first.path);
  assert.deepEqual(await first.ask('registers'), before, 'nothing has reset the device');
  await first.ask('interrupts');
  await first.ask('acknowledge', 0x20);
  await first.ask('dma', 4);
});

await check('the devices of a process that has ended are reset, and can be lent again', async () => {
  await first.end();
  await holder.says(new RegExp(`process ${first.pid} ended with the devices`));
  const { held, dmaMappings } = await statusAt(SOCKET);
  assert.deepEqual({ held, dmaMappings }, { held: true, dmaMappings: 0 });
  await give(SOCKET, second.path);
  assert.equal((await second.ask<{ command: number }>('registers')).command & 4, 0, 'reset');
  await second.ask('setUp');
  await second.ask('dma', 5);
});

await check('a destination that may not lock the memory is refused before anything moves', async () => {
  const [poor] = start(1, { uid: USER, lockedKiB: 128 });
  await poor.ask('listen', {});
  await assert.rejects(give(second.path, poor.path), {
    message:
      /phase prepare: this process \(\d+\) would have 262144 bytes locked for DMA, and RLIMIT_MEMLOCK allows 131072/,
  });
  await second.ask('dma', 6);
  await poor.end();
});

await check('another user is not served', async () => {
  const [stranger] = start(1, { uid: USER + 1 });
  await assert.rejects(stranger.ask('askStatus', SOCKET), { code: 'DEVSTATE_E_CONNECTION_CLOSED' });
  await stranger.end();
});

await second.end();
await check('the holder ends, and with it what it holds', async () => {
  assert.equal(await holder.end(), 0);
  Group.open(GROUP).close();
});

finish();
