// SPDX-License-Identifier: Apache-2.0
/**
 * Relays that are to take over and fail, in each phase and in each way, under a guest that works: the old relay continues,
 * the guest loses nothing, the error names the phase. The old relay is in this process, each successor one of its own.
 */

import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { BLOCK_BYTES, BlockWriter, GuestMachine, NvmeDriver } from '../../src/guest-driver/index.js';
import { upgradeRelay } from '../../src/operations/index.js';
import { Session } from '../../src/relay/session.js';
import { Devstate, devstateCommand } from '../e2e/harness/devstate-process.js';
import { TestBed } from '../guest-driver/served-nvme.js';
import { RelayBed } from '../relay/support.js';
import { resources, until } from '../support/served.js';
import {
  failInFreeze,
  failInHandoff,
  failToStart,
  failure,
  LIMITS,
  type Limits,
  murder,
  type Replaced,
  VICTIMS,
} from './failing-successors.js';

t.setTimeout(900_000);

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
    upgrade: (command: readonly string[], limits: Limits = {}) =>
      upgradeRelay({ control, command, log, ...LIMITS, ...limits }),
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
  };
}

/** A relay that is a process of its own, and a guest behind it. */
async function startRelay(t: Test) {
  const served = await new TestBed(t, BLOCKS * BLOCK_BYTES).serve();
  const at = (name: string): string => `${served.socketPath}.${name}`;
  const paths = {
    listen: at('vmm'),
    server: served.socketPath,
    migration: at('manager'),
    control: at('control'),
  };
  const first = new Devstate(['relay', ...arguments_(paths)]);
  t.teardown(() => first.end());
  await first.saysOnStderr(/"msg":"relaying /);
  const guest = await Guest.start(t, paths.listen);
  await guest.goesOn(t);
  return { first, guest, paths, log: at('log') };
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
  const log = join(bed.folder, 'log');
  const { upgrade, faulty, relay } = successors(paths, log);
  await guest.goesOn(t);
  // What Node itself opens the first time.
  await failure(upgrade(['/no/such/program']));
  const steady = resources();

  const { freeze } = Session.prototype;
  const replaced: Replaced = {
    what: 'relay',
    log,
    upgrade,
    faulty,
    stopBy: (stop) => {
      Session.prototype.freeze =
        stop === undefined
          ? freeze
          : function (this: Session, signal) {
              return stop(() => freeze.call(this, signal));
            };
    },
    goesOn: async (t) => {
      await guest.goesOn(t);
      t.match(await bed.status(), { generation: 0, serving: true });
      for (let turn = 0; turn < 1000 && resources().fds > steady.fds; turn++) await new Promise(setImmediate);
      t.same(resources(), steady, 'nothing is left open');
    },
  };

  await failToStart(t, replaced, [
    {
      name: 'it would look for the server elsewhere',
      command: relay('--server', `${paths.server}.other`),
      message: /phase prepare: the relay to be replaced has --server .*start it with the same/,
      code: 'DEVSTATE_E_HANDOFF',
    },
  ]);
  await failInHandoff(t, replaced);
  await failInFreeze(t, replaced);

  await t.test('and then one that does not fail', async (t) => {
    const result = await upgrade(relay());
    t.match(result, { status: 'completed', generation: 1, warnings: [] });
    t.teardown(() => process.kill(result.pid));
    await bed.relay.ended;
    await bed.relay.close();
    await guest.finish(t);
    t.ok(resources().fds < steady.fds, 'the old one keeps nothing of what went over');
  });
});

for (const victim of VICTIMS) {
  t.test(`the ${victim} is killed when the successor has adopted: the successor goes on`, async (t) => {
    const { first, guest, paths, log } = await startRelay(t);
    const { faulty } = successors(paths, log);
    const options = ['--control', paths.control, '--', ...faulty('commit', 'murder')];
    await murder(t, victim, first, { what: 'relay', options, log });
    await guest.finish(t);
  });
}

t.test(`${RELAYS} relays, one after the other`, async (t) => {
  const { first, guest, paths, log } = await startRelay(t);
  const { upgrade, relay } = successors(paths, log);
  let current = first.process.pid ?? 0;
  t.teardown(() => process.kill(current));
  const pauses: number[] = [];
  let fewest = Number.POSITIVE_INFINITY;
  for (let generation = 1; generation <= RELAYS; generation++) {
    const result = await upgrade(relay());
    t.match(result, { generation, warnings: [] });
    current = result.pid;
    pauses.push(result.pauseMs ?? Number.NaN);
    await guest.goesOn(t);
    // The connection of who asked for the handoff is closed a moment later.
    await until(() => {
      const files = filesOf(current);
      fewest = Math.min(fewest, files);
      return files === fewest;
    });
  }
  t.equal(await first.exited, 0, 'the first one has ended by itself');
  t.pass('each has as many files open as the one before');
  pauses.sort((a, b) => a - b);
  t.comment(`pause: median ${pauses[RELAYS / 2]?.toFixed(1)} ms, longest ${pauses.at(-1)?.toFixed(1)} ms`);
  await guest.finish(t);
});
