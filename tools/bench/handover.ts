// SPDX-License-Identifier: Apache-2.0
/**
 * What an upgrade of a device server costs its VMM: register reads one after the other while `devstate upgrade` replaces
 * the server, the successor being started already. The handover is the time from the last answer of the old server to the
 * first of the new one, as the reader sees it.
 */

import { join } from 'node:path';
import { BlockWriter, GuestMachine, NvmeDriver } from '../../src/guest-driver/index.js';
import { type UpgradePhase, type UpgradeResult, upgrade } from '../../src/operations/index.js';
import { devstateCommand, serveNvme } from '../../test/e2e/harness/devstate-process.js';
import { type Bound, type Result, type RunOptions, type Section, summarise } from './report.js';

const BOUND: Bound = { of: 'value', at: 'most', limit: 10 };
const BLOCKS = 2048;
/** A register that a read of changes nothing: controller status. */
const CSTS = 0x1c;

/** One upgrade as all who saw it tell. */
interface Observed {
  /** Between the two answers before and after the new server began, at the reader. */
  readonly gapMs: number;
  readonly result: UpgradeResult;
}

export const handover: Section = {
  name: 'handover',
  title: 'Replacing a device server under its VMM, NVMe device',
  async run(options) {
    const same = await measure(options, 'idle', ['alder']);
    const other = await measure(options, 'idle-vendors', ['birch', 'alder']);
    const busy = await measure(options, 'busy', ['alder'], true);
    return [
      ...rows('alder to alder', same, BOUND),
      ...rows('alder to birch, and back', other, BOUND),
      ...rows('alder to alder, guest writing', busy),
    ];
  },
};

async function measure(
  { folder, rounds, note }: RunOptions,
  name: string,
  vendors: readonly string[],
  writes = false,
): Promise<Observed[]> {
  const socket = join(folder, name);
  const paths = { socket, migrationSocket: `${socket}.migration`, image: `${socket}.img` };
  const server = await serveNvme({ ...paths, args: ['--size', String(BLOCKS * 4096)] });
  const machine = await GuestMachine.start(socket);
  const driver = await NvmeDriver.start(machine, { queues: 2 });
  const writer = writes ? new BlockWriter(driver, { blocks: BLOCKS, depth: 2 }) : undefined;
  const reader = new Reader(machine);
  const all: Observed[] = [];
  let pid = server.process.pid;
  try {
    for (let round = 0; round < rounds; round++) {
      await writer?.progress(500);
      reader.forget();
      const vendor = vendors[round % vendors.length] ?? '';
      const result = await upgrade({
        migrationSocket: paths.migrationSocket,
        command: devstateCommand('serve', 'nvme', ...arguments_(paths), '--vendor', vendor),
        log: `${socket}.log`,
        startMs: 30_000,
        freezeMs: 1000,
        adoptMs: 1500,
      });
      pid = result.pid;
      await reader.answered();
      all.push({ gapMs: reader.gapAt(result.startedAtMs ?? 0), result });
    }
    const gaps = all.map(({ gapMs }) => gapMs);
    note(`${name}: longest gaps between two answers ${gaps.map((ms) => ms.toFixed(1)).join(', ')} ms`);
    await writer?.stop();
    return all;
  } finally {
    await reader.stop();
    machine.close();
    await server.end();
    if (pid !== undefined && pid !== server.process.pid) process.kill(pid);
  }
}

function arguments_({
  socket,
  migrationSocket,
  image,
}: Record<'socket' | 'migrationSocket' | 'image', string>) {
  return ['--socket', socket, '--migration-socket', migrationSocket, '--image', image];
}

/** Two answers after one another, in milliseconds of CLOCK_MONOTONIC. */
interface Gap {
  readonly from: number;
  readonly to: number;
}

/** Gaps that are too short to be remembered, ms. */
const SHORT = 1;

function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

/** Reads a register without end. */
class Reader {
  #gaps: Gap[] = [];
  #stopping = false;
  readonly #ended: Promise<void>;
  #answers = 0;

  constructor(machine: GuestMachine) {
    this.#ended = this.#run(machine);
    this.#ended.catch(() => {});
  }

  async #run(machine: GuestMachine): Promise<void> {
    for (let from = monotonicMs(); !this.#stopping; ) {
      await machine.read32(CSTS);
      const to = monotonicMs();
      if (to - from > SHORT) this.#gaps.push({ from, to });
      from = to;
      this.#answers++;
      // Others have their turn.
      if (this.#answers % 16 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
  }

  forget(): void {
    this.#gaps = [];
  }

  /** How long nothing was answered around a moment, ms. */
  gapAt(moment: number): number {
    const gap = this.#gaps.find(({ from, to }) => from <= moment && moment <= to);
    return gap === undefined ? SHORT : gap.to - gap.from;
  }

  /** Settles when some more reads have been answered. @throws what a read failed with */
  async answered(): Promise<void> {
    const goal = this.#answers + 100;
    while (this.#answers < goal)
      await Promise.race([this.#ended, new Promise((resolve) => setImmediate(resolve))]);
  }

  stop(): Promise<void> {
    this.#stopping = true;
    return this.#ended;
  }
}

function rows(what: string, observed: readonly Observed[], bound?: Bound): Result[] {
  const part = (phase: UpgradePhase) => observed.map(({ result }) => result.phases[phase] ?? Number.NaN);
  const gaps = observed.map(({ gapMs }) => gapMs);
  const pauses = observed.map(({ result }) => result.pauseMs ?? Number.NaN);
  const limits = bound === undefined ? {} : { bound };
  return [
    summarise(`${what}: last answer to first`, 'ms', gaps, limits),
    summarise('  the longest of them', 'ms', [Math.max(...gaps)]),
    summarise('  as the servers tell', 'ms', pauses),
    summarise('  freeze', 'ms', part('freeze')),
    summarise('  transfer', 'ms', part('transfer')),
    summarise('  adopt', 'ms', part('adopt')),
    summarise('  commit', 'ms', part('commit')),
    summarise('  before: prepare', 'ms', part('prepare')),
    summarise('  before: start of the process', 'ms', part('start')),
  ];
}
