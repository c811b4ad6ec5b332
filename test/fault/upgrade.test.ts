// SPDX-License-Identifier: Apache-2.0
/**
 * Upgrades that fail, in each phase and in each way, under a guest that works: the old server continues, the guest loses
 * nothing, the error names the phase. The old server is in this process, each successor is one of its own.
 */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { BlockWriter, GuestMachine, NvmeDriver } from '../../src/guest-driver/index.js';
import { upgrade } from '../../src/operations/index.js';
import { devstateCommand, serveNvme } from '../e2e/harness/devstate-process.js';
import { Succession } from '../guest-driver/successors.js';
import { openNumbers, requireClosed } from '../support/closes.js';
import {
  failInFreeze,
  failInHandoff,
  failToStart,
  failure,
  HANG_MS,
  LIMITS,
  type Limits,
  murder,
  type Replaced,
  VICTIMS,
} from './failing-successors.js';

t.setTimeout(900_000);

const FAULTY = fileURLToPath(new URL('./faulty-successor.js', import.meta.url));

async function boot(t: Test) {
  const succession = new Succession(t);
  const first = succession.start('alder');
  const machine = await GuestMachine.start(succession.socketPath);
  t.teardown(() => machine.close());
  const driver = await NvmeDriver.start(machine, { queues: 2 });
  t.teardown(() => driver.detach());
  const writer = new BlockWriter(driver, { blocks: 1024, depth: 4 });
  const log = join(succession.directory, 'log');
  const replace = (command: readonly string[], limits: Limits = {}) =>
    upgrade({ migrationSocket: succession.migrationSocketPath, command, log, ...LIMITS, ...limits });
  const faulty = (step: string, action: string): string[] => {
    const { socketPath, migrationSocketPath, imagePath } = succession;
    return [process.execPath, FAULTY, socketPath, migrationSocketPath, imagePath, step, action];
  };
  /** The last of an option counts. */
  const serve = (...args: string[]): string[] => {
    const { socketPath, migrationSocketPath, imagePath } = succession;
    const where = ['--socket', socketPath, '--migration-socket', migrationSocketPath, '--image', imagePath];
    return devstateCommand('serve', 'nvme', ...where, ...args);
  };
  return { succession, first, driver, writer, replace, faulty, serve, log };
}

t.test('a successor that fails in each phase and in each way', async (t) => {
  const { succession, first, driver, writer, replace, faulty, serve, log } = await boot(t);
  const { quiesce } = first.device;
  await writer.progress(100);
  const files = openNumbers();
  const replaced: Replaced = {
    what: 'server',
    log,
    upgrade: replace,
    faulty,
    stopBy: (stop) => {
      first.device.quiesce =
        stop === undefined ? quiesce : () => stop(async () => quiesce.call(first.device));
    },
    goesOn: async (t) => {
      await writer.progress(100);
      t.ok(first.image.locked, 'the old server has the image');
      const manager = await succession.manager();
      t.match(await manager.handoffStatus(), { generation: 0, serving: true });
      manager.close();
      await manager.client.closed();
      t.match(driver.counters, { failed: 0, timedOut: 0, late: 0 });
      await requireClosed(t, files);
    },
  };

  const other = `${succession.imagePath}.other`;
  writeFileSync(other, new Uint8Array(16 * 1024 * 1024));
  await failToStart(t, replaced, [
    {
      name: 'it is of another model',
      command: serve('--param', 'serial=OTHER'),
      message: /phase negotiate: the successor cannot continue the work: .*serial/,
      code: 'DEVSTATE_E_INCOMPATIBLE',
    },
    {
      name: 'it has no format in common',
      command: serve('--vendor', 'birch', '--format', 'org.devstate.nvme.birch'),
      message: /phase negotiate: .*no format can be used/,
      code: 'DEVSTATE_E_INCOMPATIBLE',
    },
    {
      name: 'it would listen elsewhere',
      command: serve('--socket', `${succession.socketPath}.other`),
      message: /phase prepare: the server to be replaced has --socket .*start it with the same/,
      code: 'DEVSTATE_E_HANDOFF',
    },
    {
      name: 'it has another image',
      command: serve('--image', other),
      message: /phase adopt: .*is not the image of the server that is replaced/,
      code: 'DEVSTATE_E_HANDOFF',
    },
  ]);

  for (const action of ['crash', 'kill', 'hang']) {
    await t.test(`${action} in negotiate`, async (t) => {
      const limits = action === 'hang' ? { startMs: HANG_MS } : {};
      const error = await failure(replace(faulty('negotiate', action), limits));
      t.match(error.message, /upgrade failed in phase negotiate: .*; the old server continues/);
      t.match(
        error.message,
        action === 'hang' ? new RegExp(`not ready within ${HANG_MS} ms`) : /closed|lost/,
      );
      await replaced.goesOn(t);
    });
  }

  await failInHandoff(t, replaced);
  await failInFreeze(t, replaced);

  await t.test('and then one that does not fail', async (t) => {
    const result = await replace(faulty('none', 'nothing'));
    t.match(result, { status: 'completed', generation: 1, warnings: [] });
    t.teardown(() => process.kill(result.pid));
    await first.server.ended;
    t.notOk(first.image.locked);
    await writer.progress(200);
    await writer.stop();
    t.equal(await writer.readBack(), 1024);
    t.match(driver.counters, { failed: 0, timedOut: 0, late: 0 });
  });
});

for (const victim of VICTIMS) {
  t.test(`the ${victim} is killed when the successor has adopted: the successor goes on`, async (t) => {
    const succession = new Succession(t);
    const paths = {
      socket: succession.socketPath,
      migrationSocket: succession.migrationSocketPath,
      image: succession.imagePath,
    };
    const old = await serveNvme({ ...paths, args: ['--size', '16M'] });
    t.teardown(() => old.end());
    const machine = await GuestMachine.start(paths.socket);
    t.teardown(() => machine.close());
    const driver = await NvmeDriver.start(machine, { queues: 2 });
    t.teardown(() => driver.detach());
    const writer = new BlockWriter(driver, { blocks: 1024, depth: 4 });
    await writer.progress(100);
    const log = join(succession.directory, 'log');
    const { socket, migrationSocket, image } = paths;
    const successor = [process.execPath, FAULTY, socket, migrationSocket, image, 'commit', 'murder'];
    const options = ['--migration-socket', migrationSocket, '--', ...successor];
    await murder(t, victim, old, { what: 'server', options, log });
    await writer.progress(200);
    await writer.stop();
    t.equal(await writer.readBack(), 1024);
    t.match(driver.counters, { failed: 0, timedOut: 0, late: 0 });
  });
}
