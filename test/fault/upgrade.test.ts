// SPDX-License-Identifier: Apache-2.0
/**
 * Upgrades that fail, in each phase and in each way, under a guest that works: the old server goes on, the guest loses
 * nothing, the error names the phase. The old server is in this process, each successor is one of its own.
 */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import type { DevstateError } from '../../src/errors.js';
import { BlockWriter, GuestMachine, NvmeDriver } from '../../src/guest-driver/index.js';
import { type UpgradeOptions, type UpgradeProgress, upgrade } from '../../src/operations/index.js';
import { Devstate, serveNvme } from '../e2e/harness/devstate-process.js';
import { Succession } from '../guest-driver/successors.js';
import { openFiles } from '../handoff/support.js';
import { kill } from '../support/kill.js';

t.setTimeout(240_000);

const FAULTY = fileURLToPath(new URL('./faulty-successor.js', import.meta.url));
const MAIN = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));

async function boot(t: Test) {
  const succession = new Succession(t);
  const first = succession.start('alder');
  const machine = await GuestMachine.start(succession.socketPath);
  t.teardown(() => machine.close());
  const driver = await NvmeDriver.start(machine, { queues: 2 });
  t.teardown(() => driver.detach());
  const writer = new BlockWriter(driver, { blocks: 1024, depth: 4 });
  const log = join(succession.directory, 'log');
  const options = (command: readonly string[]): UpgradeOptions => ({
    migrationSocket: succession.migrationSocketPath,
    command,
    startMs: 30_000,
    freezeMs: 1000,
    adoptMs: 1500,
    log,
  });
  const faulty = (step: string, action: string): string[] => {
    const { socketPath, migrationSocketPath, imagePath } = succession;
    return [process.execPath, FAULTY, socketPath, migrationSocketPath, imagePath, step, action];
  };
  const serve = (socketPath: string, ...args: string[]): string[] => {
    const { migrationSocketPath, imagePath } = succession;
    const where = ['--socket', socketPath, '--migration-socket', migrationSocketPath, '--image', imagePath];
    return [process.execPath, MAIN, 'serve', 'nvme', ...where, ...args];
  };
  return { succession, first, machine, driver, writer, options, faulty, serve, log };
}

/** Runs an upgrade that fails. @returns its error, and the phases that it got to */
async function failing(options: UpgradeOptions): Promise<{ error: DevstateError; phases: string[] }> {
  const phases: string[] = [];
  const progress = ({ phase, ms }: UpgradeProgress): void => {
    if (ms === undefined) phases.push(phase);
  };
  try {
    await upgrade(options, { progress });
  } catch (error) {
    return { error: error as DevstateError, phases };
  }
  throw new Error('the upgrade did not fail');
}

t.test('a successor that fails in each phase and in each way', async (t) => {
  const { succession, first, driver, writer, options, faulty, serve, log } = await boot(t);
  const { quiesce } = first.device;
  await writer.progress(100);
  const files = openFiles().length;

  const goesOn = async (t: Test): Promise<void> => {
    await writer.progress(100);
    t.ok(first.image.locked, 'the old server has the image');
    const manager = await succession.manager();
    t.match(await manager.handoffStatus(), { generation: 0, serving: true });
    manager.close();
    await manager.client.closed();
    t.match(driver.counters, { failed: 0, timedOut: 0, late: 0 });
    for (let turn = 0; turn < 100 && openFiles().length > files; turn++)
      await new Promise((resolve) => setImmediate(resolve));
    t.equal(openFiles().length, files, 'no file is left open');
  };

  const other = `${succession.imagePath}.other`;
  const starts: [string, () => UpgradeOptions, RegExp, string][] = [
    [
      'it cannot be started',
      () => options(['/no/such/program']),
      /phase start: the successor cannot be started: .*ENOENT/,
      'DEVSTATE_E_HANDOFF',
    ],
    [
      'it ends at once',
      () => options([process.execPath, '-e', 'process.exit(3)']),
      /phase start: the successor ended with exit code 3/,
      'DEVSTATE_E_HANDOFF',
    ],
    [
      'it never listens',
      () => ({ ...options([process.execPath, '-e', 'setInterval(() => {}, 1000)']), startMs: 300 }),
      /phase start: the successor was not ready within 300 ms/,
      'DEVSTATE_E_TIMEOUT',
    ],
    [
      'it is of another model',
      () => options(serve(succession.socketPath, '--param', 'serial=OTHER')),
      /phase negotiate: the successor cannot go on: .*serial/,
      'DEVSTATE_E_INCOMPATIBLE',
    ],
    [
      'it has no format in common',
      () => options(serve(succession.socketPath, '--vendor', 'birch', '--format', 'org.devstate.nvme.birch')),
      /phase negotiate: .*no format can be used/,
      'DEVSTATE_E_INCOMPATIBLE',
    ],
    [
      'it would listen elsewhere',
      () => options(serve(`${succession.socketPath}.other`)),
      /phase prepare: the server to be replaced has --socket .*start it with the same/,
      'DEVSTATE_E_HANDOFF',
    ],
    [
      'it has another image',
      () => {
        const command = serve(succession.socketPath);
        command[command.indexOf('--image') + 1] = other;
        return options(command);
      },
      /phase adopt: .*is not the image of the server that is replaced/,
      'DEVSTATE_E_HANDOFF',
    ],
  ];
  writeFileSync(other, new Uint8Array(16 * 1024 * 1024));
  for (const [name, make, message, code] of starts) {
    await t.test(name, async (t) => {
      const { error } = await failing(make());
      t.match(error.message, message);
      t.match(error.message, /the old server goes on/);
      t.equal(error.code, code);
      await goesOn(t);
    });
  }

  for (const action of ['crash', 'kill', 'hang']) {
    await t.test(`${action} in negotiate`, async (t) => {
      const { error } = await failing({ ...options(faulty('negotiate', action)), startMs: 3000 });
      t.match(error.message, /upgrade failed in phase negotiate: .*; the old server goes on/);
      t.match(error.message, action === 'hang' ? /not ready within 3000 ms/ : /closed|lost/);
      await goesOn(t);
    });
  }

  for (const step of ['prepare', 'adopt', 'commit']) {
    for (const action of ['refuse', 'crash', 'kill', 'hang']) {
      await t.test(`${action} in ${step}`, async (t) => {
        const started = performance.now();
        const limits = step === 'prepare' && action === 'hang' ? { startMs: 3000 } : { adoptMs: 300 };
        const { error } = await failing({ ...options(faulty(step, action)), ...limits });
        // The giver sees what is adopted and not committed as not adopted yet.
        const phase = step === 'prepare' ? 'prepare' : 'adopt';
        t.match(error.message, new RegExp(`handoff failed in phase ${phase}: .*; the old server goes on`));
        const why = { refuse: /does not want to/, hang: /not done within/ }[action] ?? /went away/;
        t.match(error.message, why);
        t.ok(performance.now() - started < 10_000);
        await goesOn(t);
      });
    }
  }

  // While the old server stops

  for (const action of ['kill', 'hang'] as const) {
    await t.test(`${action} in freeze`, async (t) => {
      let child: number | undefined;
      first.device.quiesce = async () => {
        await quiesce.call(first.device);
        const pid = successorPid(log);
        child = pid;
        if (action === 'kill') await kill(pid);
        else process.kill(pid, 'SIGSTOP');
      };
      const { error } = await failing({ ...options(faulty('none', 'nothing')), adoptMs: 300 });
      first.device.quiesce = quiesce;
      t.ok(child);
      // That it hangs shows when it should answer.
      const phase = action === 'kill' ? 'freeze' : 'adopt';
      t.match(error.message, new RegExp(`handoff failed in phase ${phase}: .*; the old server goes on`));
      await goesOn(t);
    });
  }

  await t.test('the old server does not get to a stop in time', async (t) => {
    let stop: () => void = () => {};
    first.device.quiesce = async () => {
      await new Promise<void>((resolve) => {
        stop = resolve;
      });
      return quiesce.call(first.device);
    };
    const { error } = await failing({ ...options(faulty('none', 'nothing')), freezeMs: 100 });
    t.match(error.message, /handoff failed in phase freeze: not done within 100 ms; the old server goes on/);
    stop();
    first.device.quiesce = quiesce;
    await goesOn(t);
  });

  await t.test('and then one that does not fail', async (t) => {
    const result = await upgrade(options(faulty('none', 'nothing')));
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

/** Of the last faulty successor: it says it first of all. */
function successorPid(log: string): number {
  return Number([...readFileSync(log, 'utf8').matchAll(/^pid (\d+)$/gm)].at(-1)?.[1]);
}

for (const victim of ['old server', 'manager'] as const) {
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
    if (victim === 'old server') process.env.VICTIM = String(old.process.pid);
    else delete process.env.VICTIM;
    const run = new Devstate([
      ...['upgrade', '--migration-socket', paths.migrationSocket, '-o', 'json', '--log', log, '--'],
      ...[process.execPath, FAULTY, paths.socket, paths.migrationSocket, paths.image, 'commit', 'murder'],
    ]);
    const code = await run.exited;
    t.teardown(() => process.kill(successorPid(log)));
    t.equal(await old.exited, victim === 'manager' ? 0 : 128 + 9);
    if (victim === 'manager') t.equal(code, 128 + 9);
    else {
      t.equal(code, 0, run.stderr);
      const { warnings } = JSON.parse(run.stdout) as { warnings: string[] };
      t.match(warnings, [/the old server ended before it could report; its successor serves/]);
    }
    await writer.progress(200);
    await writer.stop();
    t.equal(await writer.readBack(), 1024);
    t.match(driver.counters, { failed: 0, timedOut: 0, late: 0 });
  });
}
