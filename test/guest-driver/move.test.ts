// SPDX-License-Identifier: Apache-2.0
/** Moves of the built-in guest between servers, under load. */

import t, { type Test } from 'tap';
import { GuestMachine, moveGuest, NvmeDriver, PAGE_SIZE } from '../../src/guest-driver/index.js';
import { MigrationState } from '../../src/wire/index.js';
import { TestBed } from './served-nvme.js';

const BLOCK = PAGE_SIZE;
const BLOCKS = 1024;

/** Writes numbered blocks and reads earlier ones back, `depth` at a time, until told to stop. */
class Load {
  readonly #driver: NvmeDriver;
  /** Number last written to each block. */
  readonly ledger = new Uint32Array(BLOCKS);
  readonly #busy = new Set<number>();
  readonly #workers: Promise<void>[];
  #number = 0;
  #stopping = false;
  operations = 0;

  constructor(driver: NvmeDriver, depth: number) {
    this.#driver = driver;
    this.#workers = Array.from({ length: depth }, (_, i) => this.#work(i));
  }

  async #work(seed: number): Promise<void> {
    const buffer = this.#driver.allocate(BLOCK);
    for (let turn = seed; !this.#stopping; turn++) {
      const block = (turn * 7919 + seed * 104729) % BLOCKS;
      if (this.#busy.has(block)) continue;
      this.#busy.add(block);
      if (turn % 3 === 0) await this.check(block, buffer);
      else {
        const number = ++this.#number;
        buffer.fill(pattern(block, number));
        await this.#driver.write(block * (BLOCK / this.#driver.namespace.blockSize), buffer);
        this.ledger[block] = number;
      }
      this.#busy.delete(block);
      this.operations++;
    }
    buffer.free();
  }

  async check(block: number, buffer = this.#driver.allocate(BLOCK)): Promise<void> {
    await this.#driver.read(block * (BLOCK / this.#driver.namespace.blockSize), buffer);
    if (Buffer.compare(buffer.bytes(), pattern(block, this.ledger[block]!)) !== 0)
      throw new Error(`block ${block} is not number ${this.ledger[block]}`);
  }

  /** Settles when so many more operations have been done. */
  async progress(count: number): Promise<void> {
    const goal = this.operations + count;
    while (this.operations < goal)
      await Promise.race([...this.#workers, new Promise((r) => setTimeout(r, 1))]);
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    await Promise.all(this.#workers);
  }
}

/** What block `block` holds when it was written last as number `number`; zeros if never. */
function pattern(block: number, number: number): Uint8Array {
  const words = new Uint32Array(BLOCK / 4);
  if (number > 0)
    for (let i = 0; i < words.length; i++) words[i] = (number * 2654435761 + block * 40503 + i) >>> 0;
  return new Uint8Array(words.buffer);
}

async function bootAt(t: Test, socketPath: string, shareMemory = true) {
  const machine = await GuestMachine.start(socketPath, { memoryBytes: 8 * 1024 * 1024, shareMemory });
  const driver = await NvmeDriver.start(machine, { queues: 4, queueEntries: 16 });
  t.teardown(() => {
    driver.detach();
    driver.machine.close();
  });
  return driver;
}

for (const shareMemory of [true, false]) {
  t.test(`there and back under load, memory ${shareMemory ? 'shared' : 'by messages'}`, async (t) => {
    const bed = new TestBed(t, BLOCKS * BLOCK);
    const [a, b] = [await bed.serve(), await bed.serve({ incoming: true })];
    const driver = await bootAt(t, a.socketPath, shareMemory);
    const load = new Load(driver, 24);
    let outstanding = 0;
    for (const [source, destination] of [
      [a, b],
      [b, a],
      [a, b],
      [b, a],
    ] as const) {
      await load.progress(200);
      const report = await moveGuest(driver, source, destination, {
        onRound: () => load.progress(50),
        onCopied: (from, to) =>
          t.ok(Buffer.compare(from.ram.bytes, to.ram.bytes) === 0, 'memories are equal'),
      });
      t.ok(report.devicePages.total > 0, `${report.devicePages.total} pages written by the device`);
      t.ok(report.stateBytes.paused > 0);
      outstanding += report.outstanding;
    }
    t.ok(outstanding > 0, 'the device had commands when it was stopped');
    await load.progress(200);
    await load.stop();
    await driver.flush();
    const content = bed.content();
    const wrong = [...load.ledger.entries()].filter(
      ([block, number]) =>
        Buffer.compare(content.subarray(block * BLOCK, (block + 1) * BLOCK), pattern(block, number)) !== 0,
    );
    t.same(wrong, [], `${load.operations} operations: the image is what was written`);
    t.match(driver.counters, { failed: 0, timedOut: 0, late: 0 });
  });
}

t.test('a destination that refuses leaves the guest where it is', async (t) => {
  const bed = new TestBed(t, BLOCKS * BLOCK);
  const source = await bed.serve();
  const other = await bed.serve({ incoming: true, parameters: { serial: 'ANOTHER' } });
  const good = await bed.serve({ incoming: true });
  const driver = await bootAt(t, source.socketPath);
  const load = new Load(driver, 8);
  await load.progress(50);
  await t.rejects(moveGuest(driver, source, other), { code: 'DEVSTATE_E_REFUSED' });
  t.equal(await source.manager.state(), MigrationState.RUNNING);
  await load.progress(50);
  await moveGuest(driver, source, good);
  await load.progress(50);
  await load.stop();
  for (let block = 0; block < BLOCKS; block += 17) await load.check(block);
  t.equal(driver.counters.failed, 0);
});

t.test('a guest that was paused with commands in flight goes on where it was', async (t) => {
  const bed = new TestBed(t, BLOCKS * BLOCK);
  const { socketPath } = await bed.serve();
  const driver = await bootAt(t, socketPath);
  const buffers = Array.from({ length: 32 }, () => driver.allocate(BLOCK));
  const reads = buffers.map((buffer, i) => driver.read(i, buffer));
  const pausing = driver.pause();
  t.equal(driver.outstanding, 32, 'entries are in the rings, their doorbells not rung');
  await pausing;
  t.equal(driver.counters.completed, driver.counters.submitted - 33, 'nothing is looked at while paused');
  driver.resume();
  await Promise.all(reads);
});
