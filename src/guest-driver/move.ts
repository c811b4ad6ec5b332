// SPDX-License-Identifier: Apache-2.0
/**
 * Moves the built-in guest and its device to another server, in the order in which a VMM and its manager do:
 *
 *     guest runs    device state: PRE_COPY rounds          memory: all of it, then what was written since, again and again
 *     guest paused  device state: STOP_COPY to the end     memory: what guest and device have written since
 *     guest runs    on the other server
 *
 * Memory is copied by what the two dirty logs say and by nothing else: a page that the device wrote without logging it
 * would be wrong at the destination.
 */

import type { MigrationClient } from '../client/index.js';
import { dirtyRanges } from '../migration/index.js';
import { type DmaRange, MigrationState } from '../wire/index.js';
import { GuestMachine } from './machine.js';
import type { NvmeDriver } from './nvme-driver.js';
import { PAGE_SIZE } from './page-allocator.js';

/** One of the two servers. */
export interface GuestPlace {
  /** Where a VMM connects. */
  readonly socketPath: string;
  /** Connected to the migration socket. */
  readonly manager: MigrationClient;
}

export interface MoveOptions {
  /** Rounds of copying while the guest runs, at least 1. Default 3. */
  readonly rounds?: number;
  /** Called after each round while the guest runs. */
  readonly onRound?: (round: number) => void | Promise<void>;
  /** Called in the pause, when everything is at the destination and nothing runs: both memories must be equal now. */
  readonly onCopied?: (from: GuestMachine, to: GuestMachine) => void;
}

export interface MoveReport {
  readonly rounds: number;
  /** Bytes of guest memory copied while the guest ran, and while it was paused. */
  readonly memoryBytes: { readonly running: number; readonly paused: number };
  /** Pages that the device's log named, all in all and in the pause. */
  readonly devicePages: { readonly total: number; readonly paused: number };
  /** Bytes of device state moved while the guest ran, and while it was paused. */
  readonly stateBytes: { readonly running: number; readonly paused: number };
  /** Commands that the device had when the guest was paused. */
  readonly outstanding: number;
  /** Milliseconds: the whole pause, and what it is made of. */
  readonly pauseMs: number;
  readonly partsMs: {
    readonly fence: number;
    readonly quiesceAndSave: number;
    readonly memory: number;
    readonly load: number;
    readonly resume: number;
  };
}

const CHUNK = 1024 * 1024;

/**
 * Moves what runs in `driver.machine` (at `source`) to a new machine at `destination`. Afterwards the guest runs there;
 * the source's device is stopped, its machine closed. When it fails before the guest is paused, or before the destination
 * runs, the guest continues at the source and the new machine is closed. @throws what failed
 */
export async function moveGuest(
  driver: NvmeDriver,
  source: GuestPlace,
  destination: GuestPlace,
  options: MoveOptions = {},
): Promise<MoveReport> {
  const from = driver.machine;
  const to = await GuestMachine.successor(from, destination.socketPath);
  try {
    const report = await new Move(driver, source.manager, destination.manager, to).run(options);
    from.close();
    return report;
  } catch (error) {
    await source.manager.setState(MigrationState.RUNNING);
    await source.manager.stopLogging().catch(() => {}); // It may not have been on.
    driver.resume();
    to.close();
    throw error;
  }
}

class Move {
  readonly #driver: NvmeDriver;
  readonly #source: MigrationClient;
  readonly #destination: MigrationClient;
  readonly #to: GuestMachine;
  readonly #buffer = new Uint8Array(CHUNK);
  #devicePages = 0;

  constructor(driver: NvmeDriver, source: MigrationClient, destination: MigrationClient, to: GuestMachine) {
    this.#driver = driver;
    this.#source = source;
    this.#destination = destination;
    this.#to = to;
  }

  async run(options: MoveOptions): Promise<MoveReport> {
    const { ram } = this.#driver.machine;
    const all: DmaRange = { iova: ram.base, length: ram.length };
    const memoryBytes = { running: 0, paused: 0 };
    const stateBytes = { running: 0, paused: 0 };
    const rounds = options.rounds ?? 3;

    await this.#source.startLogging({ pageSize: PAGE_SIZE, ranges: [all] });
    ram.takeTouched();
    await this.#destination.setState(MigrationState.RESUMING);
    await this.#source.setState(MigrationState.PRE_COPY);
    for (let round = 1; round <= rounds; round++) {
      const ranges = round === 1 ? [all] : await this.#written();
      memoryBytes.running += this.#to.ram.copyFrom(ram, ranges);
      stateBytes.running += await this.#copyState();
      await options.onRound?.(round);
    }

    const start = performance.now();
    const laps: number[] = [];
    const lap = () => laps.push(performance.now() - start - laps.reduce((sum, part) => sum + part, 0));
    const { outstanding } = this.#driver;
    await this.#driver.pause();
    lap();
    await this.#source.setState(MigrationState.STOP_COPY);
    stateBytes.paused = await this.#copyState();
    lap();
    const before = this.#devicePages;
    memoryBytes.paused = this.#to.ram.copyFrom(ram, await this.#written());
    lap();
    options.onCopied?.(this.#driver.machine, this.#to);
    await this.#destination.setState(MigrationState.STOP);
    lap();
    await this.#to.enableDevice();
    await this.#source.setState(MigrationState.STOP);
    await this.#destination.setState(MigrationState.RUNNING);
    this.#driver.resume(this.#to);
    lap();
    const pauseMs = performance.now() - start;
    await this.#source.stopLogging();
    const [fence, quiesceAndSave, memory, load, resume] = laps as [number, number, number, number, number];
    return {
      rounds,
      memoryBytes,
      devicePages: { total: this.#devicePages, paused: this.#devicePages - before },
      stateBytes,
      outstanding,
      pauseMs,
      partsMs: { fence, quiesceAndSave, memory, load, resume },
    };
  }

  /** What guest and device have written since this was asked last. */
  async #written(): Promise<DmaRange[]> {
    const { ram } = this.#driver.machine;
    const bitmap = await this.#source.reportLogging({
      iova: ram.base,
      length: ram.length,
      pageSize: PAGE_SIZE,
    });
    const byDevice = [...dirtyRanges(bitmap, ram.base, ram.length, PAGE_SIZE)];
    for (const { length } of byDevice) this.#devicePages += length / PAGE_SIZE;
    return [...ram.takeTouched(), ...byDevice];
  }

  /** Moves the device state that is there now; bytes. */
  async #copyState(): Promise<number> {
    for (let total = 0; ; ) {
      const size = await this.#source.readData(this.#buffer);
      if (size === 0) return total;
      await this.#destination.writeData(this.#buffer.subarray(0, size));
      total += size;
    }
  }
}
