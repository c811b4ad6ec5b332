// SPDX-License-Identifier: Apache-2.0
/** The worked example of `docs/write-a-device.md`: used by a client, and moved from one process to another. */

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { Control, Register, Status } from '../../docs/examples/adder.js';
import { Client, MigrationClient } from '../../src/client/index.js';
import { PciCommand, PciRegister } from '../../src/device/index.js';
import { findFormat } from '../../src/formats/index.js';
import { GuestRam } from '../../src/guest-driver/index.js';
import type { Fd } from '../../src/transport/index.js';
import { DmaMapFlag, MigrationState, PciIrq, PciRegion } from '../../src/wire/index.js';
import { devstate } from '../e2e/harness/devstate-process.js';
import { eventfd, signals } from '../support/memory.js';
import { socketFolder, type Test, until } from '../support/served.js';

/** `serve-adder` in a process of its own, with a VMM's client, its memory and its INTx. */
class Machine {
  readonly ram: GuestRam;
  readonly migrationPath: string;
  readonly #client: Client;
  readonly #intx: Fd;

  private constructor(client: Client, ram: GuestRam, intx: Fd, migrationPath: string) {
    this.#client = client;
    this.ram = ram;
    this.#intx = intx;
    this.migrationPath = migrationPath;
  }

  static async start(
    t: Test,
    options: { maxLength?: number; shareMemory?: boolean; memory?: Uint8Array } = {},
  ): Promise<Machine> {
    const folder = socketFolder(t);
    const [path, migrationPath] = [join(folder, 'vmm'), join(folder, 'manager')];
    const program = fileURLToPath(new URL('../../docs/examples/serve-adder.js', import.meta.url));
    const args = [program, path, migrationPath, String(options.maxLength ?? 65536)];
    const server = spawn(process.execPath, args, { stdio: 'ignore' });
    t.teardown(() => endServer(server));
    await until(() => (existsSync(path) && existsSync(migrationPath)) || server.exitCode !== null);

    const ram = new GuestRam(1024 * 1024);
    if (options.memory !== undefined) ram.bytes.set(options.memory);
    const dma = {
      read: (address: number, target: Uint8Array) => target.set(ram.at(address, target.length)),
      write: (address: number, source: Uint8Array) => ram.at(address, source.length).set(source),
    };
    const client = await Client.connect(path, { dma });
    const map = { flags: DmaMapFlag.READ | DmaMapFlag.WRITE, offset: 0, address: ram.base, size: ram.length };
    await client.dmaMap(map, options.shareMemory === false ? undefined : ram.fd);
    const intx = eventfd();
    await client.assignEventfds(PciIrq.INTX, [intx]);
    t.teardown(() => {
      client.close();
      intx.close();
      ram.close();
    });
    return new Machine(client, ram, intx, migrationPath);
  }

  async read(register: number, length: 4 | 8): Promise<number> {
    const bytes = new Uint8Array(8);
    await this.#client.regionRead(PciRegion.BAR0, register, bytes.subarray(0, length));
    return Number(new DataView(bytes.buffer).getBigUint64(0, true));
  }

  write(register: number, length: 4 | 8, value: number): Promise<void> {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, BigInt(value), true);
    return this.#client.regionWrite(PciRegion.BAR0, register, bytes.subarray(0, length));
  }

  /** Sets COMMAND of the config space. */
  async command(value: number): Promise<void> {
    const bytes = new Uint8Array(2);
    new DataView(bytes.buffer).setUint16(0, value, true);
    await this.#client.regionWrite(PciRegion.CONFIG, PciRegister.COMMAND, bytes);
  }

  /** Tells the device to add `length` bytes from the start of memory, and to store the total behind them. */
  async begin(length: number): Promise<void> {
    await this.write(Register.SOURCE, 8, this.ram.base);
    await this.write(Register.LENGTH, 4, length);
    await this.write(Register.RESULT, 8, this.ram.base + 0x80000);
    await this.write(Register.CONTROL, 4, Control.BEGIN);
  }

  async untilDone(): Promise<void> {
    await until(async () => (await this.read(Register.STATUS, 4)) !== Status.BUSY);
  }

  get stored(): number {
    return Number(this.ram.view.getBigUint64(0x80000, true));
  }

  interrupts(): number {
    return signals(this.#intx);
  }
}

async function endServer(server: ChildProcess): Promise<void> {
  if (server.exitCode !== null) return;
  const exit = once(server, 'exit');
  server.kill('SIGTERM');
  await exit;
}

async function save(machine: Machine, file: string, afterwards: 'run' | 'stop'): Promise<void> {
  const args = ['--migration-socket', machine.migrationPath, '-o', file, '--then', afterwards, '--unproven'];
  const { code, stderr } = await devstate('save', ...args);
  if (code !== 0) throw new Error(stderr);
}

function load(machine: Machine, file: string) {
  return devstate('load', '--migration-socket', machine.migrationPath, file, '--unproven');
}

for (const shareMemory of [true, false]) {
  t.test(`adds up memory that is reached ${shareMemory ? 'directly' : 'by messages'}`, async (t) => {
    const machine = await Machine.start(t, { shareMemory });
    machine.ram.bytes.fill(3, 0, 1000);
    await machine.begin(1000);
    await machine.untilDone();
    t.equal(await machine.read(Register.STATUS, 4), Status.DONE);
    t.equal(await machine.read(Register.TOTAL, 8), 3000);
    t.equal(machine.stored, 3000);
    t.equal(machine.interrupts(), 1);

    await machine.write(Register.CONTROL, 4, Control.ACKNOWLEDGE);
    t.equal(await machine.read(Register.STATUS, 4), 0);
    await machine.write(Register.TOTAL, 8, 0);
    await machine.begin(10);
    await machine.untilDone();
    t.equal(await machine.read(Register.TOTAL, 8), 3030, 'TOTAL cannot be written and continues');
  });
}

t.test('says when memory cannot be reached, or the length is beyond its model', async (t) => {
  const machine = await Machine.start(t, { maxLength: 100 });
  await machine.begin(101);
  await machine.untilDone();
  t.equal(await machine.read(Register.STATUS, 4), Status.FAILED);
  await machine.write(Register.CONTROL, 4, Control.ACKNOWLEDGE);
  await machine.write(Register.SOURCE, 8, 0x1000);
  await machine.write(Register.LENGTH, 4, 100);
  await machine.write(Register.CONTROL, 4, Control.BEGIN);
  await machine.untilDone();
  t.equal(await machine.read(Register.STATUS, 4), Status.FAILED);
  t.equal(await machine.read(Register.TOTAL, 8), 0);
});

t.test('moves, work that was asked for in the pause included', async (t) => {
  const file = join(socketFolder(t), 'adder.state');
  const source = await Machine.start(t);
  source.ram.bytes.fill(7, 0, 100);
  await source.begin(100);
  await source.untilDone();
  await source.write(Register.CONTROL, 4, Control.ACKNOWLEDGE);
  source.interrupts();

  const manager = new MigrationClient(await Client.connect(source.migrationPath));
  await manager.setState(MigrationState.STOP);
  await source.begin(50);
  t.equal(await source.read(Register.STATUS, 4), Status.BUSY, 'a stopped device takes accesses');
  t.equal(source.stored, 700, 'and leaves memory alone');
  manager.close();
  await save(source, file, 'stop');

  const destination = await Machine.start(t, { memory: source.ram.bytes });
  t.match(await load(destination, file), { code: 0 });
  await destination.untilDone();
  t.equal(await destination.read(Register.TOTAL, 8), 1050);
  t.equal(destination.stored, 1050);
  t.equal(destination.interrupts(), 1);
  t.equal(source.stored, 700, 'the source did nothing any more');
  t.equal(source.interrupts(), 0);
});

t.test('an interrupt that was not taken is handed over', async (t) => {
  const file = join(socketFolder(t), 'adder.state');
  const source = await Machine.start(t);
  await source.begin(1);
  await source.untilDone();
  await save(source, file, 'stop');
  const destination = await Machine.start(t);
  await destination.command(PciCommand.INTX_DISABLE);
  t.match(await load(destination, file), { code: 0 });
  t.equal(destination.interrupts(), 1, 'COMMAND came with the state');
  await destination.command(PciCommand.INTX_DISABLE);
  await destination.command(0);
  t.equal(await destination.read(Register.STATUS, 4), Status.DONE);
});

t.test('a device of another model refuses the state and starts afresh', async (t) => {
  const file = join(socketFolder(t), 'adder.state');
  const source = await Machine.start(t);
  await save(source, file, 'run');
  const destination = await Machine.start(t, { maxLength: 100 });
  t.match(await load(destination, file), {
    code: 3,
    stderr: /parameter max_length is 65536 at the source, 100 at the destination.*DEVSTATE_E_INCOMPATIBLE/,
  });
  destination.ram.bytes.fill(1, 0, 100);
  await destination.begin(100);
  await destination.untilDone();
  t.equal(destination.stored, 100);
});

t.test('its format is its own', async (t) => {
  t.equal(findFormat('org.example.adder'), undefined);
});
