// SPDX-License-Identifier: Apache-2.0
/** A driver of the counter device: by registers, and by its rings. Counts what it has issued. */

import {
  COMMAND_LENGTH,
  COMPLETION_LENGTH,
  COMPLETION_VECTOR,
  CounterOpcode,
  CounterRegister,
} from '../devices/counter/index.js';
import { DevstateError } from '../errors.js';
import { PciRegion } from '../wire/index.js';
import type { GuestMachine } from './machine.js';

export interface CounterCompletion {
  /** `CounterStatus` */
  readonly status: number;
  /** The counter after the command. */
  readonly value: bigint;
}

interface Pending {
  readonly id: number;
  readonly resolve: (completion: CounterCompletion) => void;
}

export class CounterDriver {
  readonly machine: GuestMachine;
  /** Commands of the rings in the order in which they were submitted, which is that of their completions. */
  readonly #pending: Pending[] = [];
  readonly #entries: number;
  readonly #commands: number;
  readonly #completions: number;
  #tail = 0;
  #head = 0;
  #phase = 1;
  #nextId = 1;
  readonly #room: (() => void)[] = [];

  private constructor(machine: GuestMachine, entries: number) {
    this.machine = machine;
    this.#entries = entries;
    this.#commands = machine.pages.allocate(1)[0]!;
    this.#completions = machine.pages.allocate(1)[0]!;
  }

  /** Gives the device its rings, of `entries` entries. */
  static async start(machine: GuestMachine, entries = 64): Promise<CounterDriver> {
    const driver = new CounterDriver(machine, entries);
    await driver.#setUp();
    return driver;
  }

  async #setUp(): Promise<void> {
    const { machine } = this;
    await machine.write32(CounterRegister.ENTRIES, 0);
    for (const [register, address] of [
      [CounterRegister.COMMANDS, this.#commands],
      [CounterRegister.COMPLETIONS, this.#completions],
    ] as const) {
      await machine.write32(register, address % 2 ** 32);
      await machine.write32(register + 4, Math.floor(address / 2 ** 32));
    }
    await machine.write32(CounterRegister.ENTRIES, this.#entries);
    machine.onInterrupt(COMPLETION_VECTOR, () => this.#collect());
  }

  /** The counter. */
  value(): Promise<bigint> {
    return this.#read64(CounterRegister.VALUE);
  }

  additions(): Promise<bigint> {
    return this.#read64(CounterRegister.ADDITIONS);
  }

  exchanges(): Promise<bigint> {
    return this.#read64(CounterRegister.EXCHANGES);
  }

  async #read64(register: number): Promise<bigint> {
    const bytes = new Uint8Array(8);
    await this.machine.client.regionRead(PciRegion.BAR0, register, bytes);
    return new DataView(bytes.buffer).getBigUint64(0, true);
  }

  /** Adds by the register, and waits until the device has taken it. */
  add(amount: number): Promise<void> {
    return this.machine.write32(CounterRegister.ADD, amount);
  }

  /** Adds by a posted write, as a CPU's write to a device is: nothing answers it. */
  post(amount: number): Promise<void> {
    return this.machine.post32(CounterRegister.ADD, amount);
  }

  /** Compare-and-swap by the registers. @returns whether the counter was `expected`, and is `desired` */
  async compareAndSwap(expected: bigint, desired: bigint): Promise<boolean> {
    const { machine } = this;
    await this.#write64(CounterRegister.CAS_EXPECTED, expected);
    await this.#write64(CounterRegister.CAS_DESIRED, desired);
    await machine.write32(CounterRegister.CAS, 1);
    return (await machine.read32(CounterRegister.CAS)) === 1;
  }

  async #write64(register: number, value: bigint): Promise<void> {
    await this.machine.write32(register, Number(value & 0xffffffffn));
    await this.machine.write32(register + 4, Number(value >> 32n));
  }

  /** Adds by the ring; settles with the command's completion. Waits while the ring is full. */
  submitAdd(amount: number): Promise<CounterCompletion> {
    return this.#submit(CounterOpcode.ADD, BigInt(amount), 0n);
  }

  submitCompareAndSwap(expected: bigint, desired: bigint): Promise<CounterCompletion> {
    return this.#submit(CounterOpcode.COMPARE_AND_SWAP, desired, expected);
  }

  async #submit(opcode: number, operand: bigint, expected: bigint): Promise<CounterCompletion> {
    // One entry stays free: full and empty would look alike.
    while (this.#pending.length >= this.#entries - 1)
      await new Promise<void>((resolve) => this.#room.push(resolve));
    const { ram } = this.machine;
    const at = this.#commands + this.#tail * COMMAND_LENGTH;
    const offset = ram.offset(at, COMMAND_LENGTH);
    const id = this.#nextId++ >>> 0;
    ram.view.setUint32(offset, opcode, true);
    ram.view.setUint32(offset + 4, id, true);
    ram.view.setBigUint64(offset + 8, operand, true);
    ram.view.setBigUint64(offset + 16, expected, true);
    ram.touch(at, COMMAND_LENGTH);
    this.#tail = this.#tail + 1 === this.#entries ? 0 : this.#tail + 1;
    const completion = new Promise<CounterCompletion>((resolve) => this.#pending.push({ id, resolve }));
    await this.machine.post32(CounterRegister.TAIL, this.#tail);
    return completion;
  }

  #collect(): void {
    const { ram } = this.machine;
    for (;;) {
      const offset = ram.offset(this.#completions + this.#head * COMPLETION_LENGTH, COMPLETION_LENGTH);
      const [first] = this.#pending;
      // After as many ways round the ring as there can be, an entry of the last one has the other phase.
      if (first === undefined || ram.view.getUint32(offset + 28, true) !== this.#phase) break;
      const id = ram.view.getUint32(offset, true);
      if (id !== first.id) {
        throw new DevstateError(
          'DEVSTATE_E_GUEST_DATA',
          `command ${first.id} was due and ${id} was completed: one was lost or done twice`,
        );
      }
      this.#pending.shift();
      first.resolve({
        status: ram.view.getUint32(offset + 4, true),
        value: ram.view.getBigUint64(offset + 8, true),
      });
      this.#head++;
      if (this.#head === this.#entries) {
        this.#head = 0;
        this.#phase ^= 1;
      }
    }
    for (const resolve of this.#room.splice(0)) resolve();
  }
}
