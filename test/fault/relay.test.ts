// SPDX-License-Identifier: Apache-2.0
/**
 * Relays that are to take over and fail, in each phase and in each way, under a guest that works: the old relay goes on,
 * the guest loses nothing, the error names the phase. The old relay is in this process, each successor one of its own.
 */

import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import type { DevstateError } from '../../src/errors.js';
import { BLOCK_BYTES, BlockWriter, GuestMachine, NvmeDriver } from '../../src/guest-driver/index.js';
import { type UpgradeProgress, type UpgradeRelayOptions, upgradeRelay } from '../../src/operations/index.js';
import { Session } from '../../src/relay/session.js';
import { Devstate, devstateCommand } from '../e2e/harness/devstate-process.js';
import { TestBed } from '../guest-driver/served-nvme.js';
import { RelayBed } from '../relay/support.js';
import { kill } from '../support/kill.js';
import { resources } from '../support/served.js';

t.setTimeout(240_000);

const FAULTY = fileURLToPath(new URL('./faulty-relay.js', import.meta.url));
const BLOCKS = 256;
const RELAYS = 8;

/** A guest that writes to an NVMe device behind a relay's socket. */
class Guest {
  readonly writer: BlockWriter;

  private constructor(
    readonly driver: NvmeDriver,
    readonly machine: GuestMachine,
  ) {
    this.writer = new BlockWriter(driver, { blocks: BLOCKS, depth: 4 });
  }

  static async start(t: Test, socket: string): Promise<Guest> {
    const machine = await GuestMachine.start(socket, { memoryBytes: 8 * 1024 * 1024 });
    const driver = await NvmeDriver.start(machine, { queues: 2 });
    t.teardown(() => {
      driver.detach();
      machine.close();
    });
    return new Guest(driver, machine);
  }

  async goesOn(t: Test): Promise<void> {
    await this.writer.progress(100);
    t.match(this.driver.counters, { failed: 0, timedOut: 0, late: 0 });
  }

  async finish(t: Test): Promise<void> {
    await this.goesOn(t);
    await this.writer.stop();
    t.equal(await this.writer.readBack(), BLOCKS);
  }
}

interface Paths {
  readonly listen: string;
  readonly server: string;
  readonly migration: string;
  readonly control: string;
}

function arguments_({ listen, server, migration, control }: Paths): string[] {
  return ['--listen', listen, '--server', server, '--migration-socket', migration, '--control', control];
}

/** Command lines of successors, and how they are run. */
function successors(paths: Paths, log: string) {
  const { listen, server, migration, control } = paths;
  return {
    options: (command: readonly string[]): UpgradeRelayOptions => ({
      ...{ control, command, log },
      ...{ startMs: 30_000, freezeMs: 1000, adoptMs: 1500 },
    }),
    faulty: (step: string, action: string): string[] => [
      process.execPath,
      FAULTY,
      listen,
      server,
      migration,
      control,
      step,
      action,
    ],
    relay: (...more: string[]): string[] => devstateCommand('relay', ...arguments_(paths), ...more),
    /** Of the last faulty one: it says it first of all. */
    pid: (): number => Number([...readFileSync(log, 'utf8').matchAll(/^pid (\d+)$/gm)].at(-1)?.[1]),
  };
}

/** Runs an upgrade that fails. @returns its error */
async function failing(options: UpgradeRelayOptions): Promise<{ error: DevstateError; phases: string[] }> {
  const phases: string[] = [];
  const progress = ({ phase, ms }: UpgradeProgress): void => {
    if (ms === undefined) phases.push(phase);
  };
  try {
    await upgradeRelay(options, { progress });
  } catch (error) {
    return { error: error as DevstateError, phases };
  }
  throw new Error('the upgrade did not fail');
}

/** Open files of another process, by what they are. */
function filesOf(pid: number): number {
  return readdirSync(`/proc/${pid}/fd`).length;
}

t.test('a successor that fails in each phase and in each way', async (t) => {
  const served = await new TestBed(t, BLOCKS * BLOCK_BYTES).serve();
  const bed = new RelayBed(t, { serverPath: served.socketPath });
  const guest = await Guest.start(t, bed.listenPath);
  const paths = {
    listen: bed.listenPath,
    server: served.socketPath,
    migration: bed.migrationPath,
    control: bed.controlPath,
  };
  const { options, faulty, relay, pid } = successors(paths, join(bed.folder, 'log'));
  await guest.goesOn(t);
  // What Node itself opens the first time.
  await failing(options(['/no/such/program']));
  const steady = resources();

  const goesOn = async (t: Test): Promise<void> => {
    await guest.goesOn(t);
    t.match(await bed.status(), { generation: 0, serving: true });
    for (let turn = 0; turn < 1000 && resources().fds > steady.fds; turn++) await new Promise(setImmediate);
    t.same(resources(), steady, 'nothing is left open');
  };

  const starts: [string, () => UpgradeRelayOptions, RegExp, string][] = [
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
      'it would look for the server elsewhere',
      () => options(relay('--server', `${paths.server}.other`)),
      /phase prepare: the relay to be replaced has --server .*start it with the same/,
      'DEVSTATE_E_HANDOFF',
    ],
  ];
  for (const [name, make, message, code] of starts) {
    await t.test(name, async (t) => {
      const { error } = await failing(make());
      t.match(error.message, message);
      t.match(error.message, /the old relay goes on/);
      t.equal(error.code, code);
      await goesOn(t);
    });
  }

  for (const step of ['prepare', 'adopt', 'commit']) {
    for (const action of ['refuse', 'crash', 'kill', 'hang']) {
      await t.test(`${action} in ${step}`, async (t) => {
        const limits = step === 'prepare' && action === 'hang' ? { startMs: 3000 } : { adoptMs: 300 };
        const { error } = await failing({ ...options(faulty(step, action)), ...limits });
        // The giver sees what is adopted and not committed as not adopted yet.
        const phase = step === 'prepare' ? 'prepare' : 'adopt';
        t.match(error.message, new RegExp(`handoff failed in phase ${phase}: .*; the old relay goes on`));
        const why = { refuse: /does not want to/, hang: /not done within/ }[action] ?? /went away/;
        t.match(error.message, why);
        await goesOn(t);
      });
    }
  }

  const { freeze } = Session.prototype;
  for (const action of ['kill', 'hang'] as const) {
    await t.test(`${action} in freeze`, async (t) => {
      Session.prototype.freeze = async function (this: Session, signal) {
        await freeze.call(this, signal);
        if (action === 'kill') await kill(pid());
        else process.kill(pid(), 'SIGSTOP');
      };
      t.teardown(() => {
        Session.prototype.freeze = freeze;
      });
      const { error } = await failing({ ...options(faulty('none', 'nothing')), adoptMs: 300 });
      // That it hangs shows when it should answer.
      const phase = action === 'kill' ? 'freeze' : 'adopt';
      t.match(error.message, new RegExp(`handoff failed in phase ${phase}: .*; the old relay goes on`));
      await goesOn(t);
    });
  }

  await t.test('the old relay does not get to a stop in time', async (t) => {
    let stop: () => void = () => {};
    Session.prototype.freeze = async function (this: Session, signal) {
      await new Promise<void>((resolve) => {
        stop = resolve;
      });
      return freeze.call(this, signal);
    };
    const { error } = await failing({ ...options(faulty('none', 'nothing')), freezeMs: 100 });
    t.match(error.message, /handoff failed in phase freeze: not done within 100 ms; the old relay goes on/);
    Session.prototype.freeze = freeze;
    stop();
    await goesOn(t);
  });

  await t.test('and then one that does not fail', async (t) => {
    const result = await upgradeRelay(options(relay()));
    t.match(result, { status: 'completed', generation: 1, warnings: [] });
    t.teardown(() => process.kill(result.pid));
    await bed.relay.ended;
    await bed.relay.close();
    await guest.finish(t);
    t.ok(resources().fds < steady.fds, 'the old one keeps nothing of what went over');
  });
});

for (const victim of ['old relay', 'manager'] as const) {
  t.test(`the ${victim} is killed when the successor has adopted: the successor goes on`, async (t) => {
    const served = await new TestBed(t, BLOCKS * BLOCK_BYTES).serve();
    const at = (name: string): string => `${served.socketPath}.${name}`;
    const paths = {
      listen: at('vmm'),
      server: served.socketPath,
      migration: at('manager'),
      control: at('control'),
    };
    const { faulty, pid } = successors(paths, at('log'));
    const old = new Devstate(['relay', ...arguments_(paths)]);
    t.teardown(() => old.end());
    await old.saysOnStderr(/"msg":"relaying /);
    const guest = await Guest.start(t, paths.listen);
    await guest.goesOn(t);
    if (victim === 'old relay') process.env.VICTIM = String(old.process.pid);
    else delete process.env.VICTIM;
    const run = new Devstate([
      ...['upgrade', '--control', paths.control, '-o', 'json', '--log', at('log'), '--'],
      ...faulty('commit', 'murder'),
    ]);
    const code = await run.exited;
    t.teardown(() => process.kill(pid()));
    t.equal(await old.exited, victim === 'manager' ? 0 : 128 + 9);
    if (victim === 'manager') t.equal(code, 128 + 9);
    else {
      t.equal(code, 0, run.stderr);
      const { warnings } = JSON.parse(run.stdout) as { warnings: string[] };
      t.match(warnings, [/the old relay ended before it could report; its successor serves/]);
    }
    await guest.finish(t);
  });
}

t.test(`${RELAYS} relays, one after the other`, async (t) => {
  const served = await new TestBed(t, BLOCKS * BLOCK_BYTES).serve();
  const at = (name: string): string => `${served.socketPath}.${name}`;
  const paths = {
    listen: at('vmm'),
    server: served.socketPath,
    migration: at('manager'),
    control: at('control'),
  };
  const { options, relay } = successors(paths, at('log'));
  const first = new Devstate(['relay', ...arguments_(paths)]);
  t.teardown(() => first.end());
  await first.saysOnStderr(/"msg":"relaying /);
  const guest = await Guest.start(t, paths.listen);
  let current = first.process.pid ?? 0;
  t.teardown(() => process.kill(current));
  await guest.goesOn(t);
  const pauses: number[] = [];
  const files: number[] = [];
  for (let generation = 1; generation <= RELAYS; generation++) {
    const result = await upgradeRelay(options(relay()));
    t.match(result, { generation, warnings: [] });
    current = result.pid;
    pauses.push(result.pauseMs ?? Number.NaN);
    await guest.goesOn(t);
    files.push(filesOf(current));
  }
  t.equal(await first.exited, 0, 'the first one has ended by itself');
  t.equal(new Set(files).size, 1, `each has as many files open: ${files}`);
  pauses.sort((a, b) => a - b);
  t.comment(`pause: median ${pauses[RELAYS / 2]?.toFixed(1)} ms, longest ${pauses.at(-1)?.toFixed(1)} ms`);
  await guest.finish(t);
});
