// SPDX-License-Identifier: Apache-2.0
/**
 * A device server that is killed, under `devstate run`: every command of its guest takes effect once. The device is one
 * whose commands do not bear doing twice; what it counts is compared with what the guest has issued.
 */

import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { Client, MigrationClient } from '../../src/client/index.js';
import { CounterStatus } from '../../src/devices/counter/index.js';
import { BlockWriter, CounterDriver, GuestMachine, NvmeDriver } from '../../src/guest-driver/index.js';
import { run } from '../../src/operations/index.js';
import { MigrationState } from '../../src/wire/index.js';
import { MAIN } from '../support/main.js';
import { Supervised } from './supervised.js';

t.setTimeout(1_800_000);

const COUNTER_SERVER = fileURLToPath(new URL('./counter-server.js', import.meta.url));
/** How often the server is killed at random moments, and at how many of its stores. */
const KILLS = Number(process.env.DEVSTATE_TEST_KILLS ?? 10);
const EVERY_STORE = process.env.DEVSTATE_TEST_EVERY_STORE !== undefined;

/** What a process has open, but for what every Node.js process has. */
function openFiles(pid: number): string[] {
  return readdirSync(`/proc/${pid}/fd`)
    .map((number) => {
      try {
        return readlinkSync(`/proc/${pid}/fd/${number}`);
      } catch {
        return 'gone';
      }
    })
    .map((link) => link.replace(/\[\d+\]/, '').replace(' (deleted)', ''))
    .filter((link) => link.startsWith('socket') || link.startsWith('/memfd') || link.includes('eventfd'))
    .sort();
}

/** Issues commands of all kinds, and knows what must come of them. */
class Load {
  expected = 0n;
  additions = 0n;
  exchanges = 0n;
  readonly #driver: CounterDriver;
  #running = true;
  readonly done: Promise<void>;

  constructor(driver: CounterDriver) {
    this.#driver = driver;
    this.done = this.#issue();
    this.done.catch(() => {});
  }

  async #issue(): Promise<void> {
    for (let round = 1; this.#running; round++) {
      const amount = this.#count(round % 1000);
      if (round % 5 < 2) await this.#driver.add(amount);
      else if (round % 5 === 2) await this.#driver.post(amount);
      else
        await Promise.all(
          [amount, ...[1, 2, 3, 4].map((n) => this.#count(n))].map((n) => this.#driver.submitAdd(n)),
        );
      if (round % 4 === 0) await this.#exchange();
    }
  }

  #count(amount: number): number {
    this.additions++;
    this.expected += BigInt(amount);
    return amount;
  }

  /** Of two that expect the same, the first finds it: exactly one winner, by the registers and by the ring. */
  async #exchange(): Promise<void> {
    const value = this.expected;
    if (!(await this.#driver.compareAndSwap(value, value + 5n)))
      throw new Error(`the value ${value} was not exchanged`);
    if (await this.#driver.compareAndSwap(value, value + 7n)) throw new Error(`${value} was exchanged twice`);
    this.expected += 5n;
    const second = this.expected;
    const [winner, loser] = await Promise.all([
      this.#driver.submitCompareAndSwap(second, second + 3n),
      this.#driver.submitCompareAndSwap(second, second + 9n),
    ]);
    if (winner.status !== CounterStatus.DONE || loser.status !== CounterStatus.DIFFERENT)
      throw new Error(`${second}: ${winner.status}, ${loser.status}`);
    this.expected += 3n;
    this.exchanges += 2n;
  }

  async stop(): Promise<void> {
    this.#running = false;
    await this.done;
  }
}

t.test(`SIGKILL at ${KILLS} random moments under load: nothing is lost, nothing is doubled`, async (t) => {
  const server = new Supervised(t);
  server.start([
    MAIN,
    'serve',
    'counter',
    '--socket',
    server.socket,
    '--migration-socket',
    server.migrationSocket,
  ]);
  await server.serving();
  const machine = await GuestMachine.start(server.socket);
  t.teardown(() => machine.close());
  const driver = await CounterDriver.start(machine);
  const before = openFiles(await server.serving());
  const load = new Load(driver);
  for (let kill = 1; kill <= KILLS; kill++) {
    const pid = await server.serving(kill);
    await Promise.race([delay(Math.random() * 250), load.done]);
    process.kill(pid, 'SIGKILL');
  }
  const pid = await server.serving(KILLS + 1);
  await load.stop();
  t.equal(server.crashes, KILLS);
  t.equal(await driver.value(), load.expected, `after ${load.additions} additions`);
  t.equal(await driver.additions(), load.additions);
  t.equal(await driver.exchanges(), load.exchanges);
  t.ok(load.additions > 10n * BigInt(KILLS), 'there was load');
  t.same(openFiles(pid), before, 'the last has open what the first had');
  const times = server.restartTimes.sort((a, b) => a - b).map(Math.round);
  t.comment(`crash to serving, ms: p50 ${times[times.length >> 1]}, max ${times.at(-1)}`);

  machine.close();
  const next = await GuestMachine.start(server.socket);
  t.equal(await (await CounterDriver.start(next)).value(), load.expected, 'the next VMM finds the counter');
  next.close();
  t.same(await server.stop(), { exitCode: 0, restarts: KILLS });
  t.same(readdirSync(server.directory), [], 'its sockets are gone');
});

t.test('NVMe under load, killed at random moments: no command fails, no block is lost', async (t) => {
  const server = new Supervised(t);
  const image = join(server.directory, 'image');
  server.start([MAIN, 'serve', 'nvme', '--socket', server.socket, '--image', image, '--size', '8M']);
  await server.serving();
  const machine = await GuestMachine.start(server.socket);
  t.teardown(() => machine.close());
  const driver = await NvmeDriver.start(machine, { queues: 2 });
  const writer = new BlockWriter(driver, { blocks: 512, depth: 16 });
  const kills = Math.ceil(KILLS / 2);
  for (let kill = 1; kill <= kills; kill++) {
    const pid = await server.serving(kill);
    // A flush is under way when it happens, as a rule: it takes longer than anything else.
    await Promise.race([delay(Math.random() * 250), driver.flush().then(() => driver.flush())]);
    process.kill(pid, 'SIGKILL');
  }
  await server.serving(kills + 1);
  const before = writer.operations;
  await writer.progress(100);
  t.ok(writer.operations >= before + 100, 'it continues');
  await writer.stop();
  t.match(driver.counters, { failed: 0, timedOut: 0, late: 0 });
  t.equal(await writer.readBack(), 512);
  t.ok(writer.checkImage(readFileSync(image)) > 100);
  t.equal(server.crashes, kills);
  await driver.shutdown();
  machine.close();
  t.same(await server.stop(), { exitCode: 0, restarts: kills });
});

t.test('killed while a manager has it stopped: it stays stopped, and its note is there', async (t) => {
  const server = new Supervised(t);
  const sockets = ['--socket', server.socket, '--migration-socket', server.migrationSocket];
  server.start([MAIN, 'serve', 'counter', ...sockets]);
  await server.serving();
  const machine = await GuestMachine.start(server.socket);
  t.teardown(() => machine.close());
  const driver = await CounterDriver.start(machine);
  const manager = async () => {
    const client = new MigrationClient(await Client.connect(server.migrationSocket));
    t.teardown(() => client.close());
    return client;
  };
  const first = await manager();
  await first.setNote(Uint8Array.of(1, 2, 3));
  await first.setState(MigrationState.STOP_COPY);
  const waiting = driver.submitAdd(5);
  await driver.add(1);
  server.restart();
  await server.serving(2);
  t.equal(await driver.value(), 1n, 'its registers answer');
  const second = await manager();
  t.equal(await second.state(), MigrationState.STOP);
  t.same(await second.note(), Uint8Array.of(1, 2, 3));
  await second.setState(MigrationState.RUNNING);
  t.equal((await waiting).value, 6n, 'what came while it was stopped is done when it runs');

  // A pre-copy is given up, as when its manager leaves.
  await second.setState(MigrationState.PRE_COPY);
  server.restart();
  await server.serving(3);
  t.equal((await driver.submitAdd(1)).value, 7n);
  t.equal(await (await manager()).state(), MigrationState.RUNNING);
});

t.test('killed at each store to the journal', async (t) => {
  // Every store takes minutes; some of them, others each time, are a part of each run.
  const stride = EVERY_STORE ? 1 : 29;
  let at = EVERY_STORE ? 1 : 1 + Math.floor(Math.random() * stride);
  for (let survived = false; !survived; at += stride) survived = await killAtStore(t, at);
  t.ok(at > 60, `${at} stores at most`);
});

/** @returns whether the server made fewer stores than that, and was not killed */
async function killAtStore(t: Test, at: number): Promise<boolean> {
  const server = new Supervised(t);
  server.start([COUNTER_SERVER, server.socket, String(at)]);
  await server.serving();
  const machine = await GuestMachine.start(server.socket);
  const driver = await CounterDriver.start(machine, 4);
  await driver.add(13);
  await driver.add(1000);
  await driver.post(5);
  const completions = await Promise.all([7, 8, 9].map((amount) => driver.submitAdd(amount)));
  const swapped = await driver.compareAndSwap(13n + 1000n + 5n + 24n, 1n);
  const found = [await driver.value(), await driver.additions(), await driver.exchanges(), swapped];
  t.same(found, [1n, 6n, 1n, true], `killed at store ${at}`);
  t.equal(completions.at(-1)?.value, 1042n);
  const { crashes } = server;
  machine.close();
  await server.stop();
  return crashes === 0;
}

t.test('an access that ends the server again and again is refused, and the device lives on', async (t) => {
  const server = new Supervised(t);
  server.start([COUNTER_SERVER, server.socket]);
  await server.serving();
  const machine = await GuestMachine.start(server.socket);
  t.teardown(() => machine.close());
  const driver = await CounterDriver.start(machine);
  await driver.add(1);
  await t.rejects(driver.add(66), { code: 'DEVSTATE_E_REFUSED' });
  t.equal(server.crashes, 3);
  await driver.add(2);
  t.equal(await driver.value(), 3n);
});

t.test('a server that crashes at every start is given up, with its VMM', async (t) => {
  const server = new Supervised(t);
  server.start([COUNTER_SERVER, server.socket, '1'], 2);
  await server.serving();
  const machine = await GuestMachine.start(server.socket);
  t.teardown(() => machine.close());
  for (let crash = 1; crash <= 3; crash++) process.kill(await server.serving(crash), 'SIGKILL');
  await t.rejects(server.ended, { code: 'DEVSTATE_E_CRASHED', message: /3 times in a row/ });
  await machine.client.closed();
  t.equal(server.crashes, 3);
});

t.test('what is not a crash is not restarted', async (t) => {
  for (const [command, exitCode] of [
    [['-e', 'process.exit(0)'], 0],
    [['-e', 'process.exit(3)'], 3],
    [[MAIN, 'serve', 'counter'], 2],
    [[MAIN, 'serve', 'sample', '--socket', '/tmp/devstate-never-there'], 2],
  ] as const) {
    const server = new Supervised(t);
    server.start(command);
    t.same(await server.ended, { exitCode, restarts: 0 }, command.join(' '));
    t.equal(server.crashes, 0);
  }
  const server = new Supervised(t);
  server.start(['-e', 'process.kill(process.pid, "SIGKILL")']);
  await t.rejects(server.ended, { code: 'DEVSTATE_E_CRASHED' }, 'it never served');
  await t.rejects(
    run({ command: [], restart: 'never', maxCrashes: 1, maxFds: 1, stop: new AbortController().signal }),
    { code: 'DEVSTATE_E_USAGE' },
  );
});
