// SPDX-License-Identifier: Apache-2.0
/**
 * Every state × every target by both protocols, over a socket and with a real device: what comes of it, which steps of
 * the device it takes, and what is left when any of them fails, when the device is reset, and when the client leaves.
 */

import t from 'tap';
import { type Client, MigrationClient } from '../../src/client/index.js';
import { deviceStateOf, migrationPath, supportedStates } from '../../src/migration/index.js';
import {
  DeviceState,
  deviceStateName,
  Errno,
  MigrationRegister,
  MigrationState,
  migrationStateName,
  RequestError,
} from '../../src/wire/index.js';
import { scratchBlob } from '../support/scratch-blob.js';
import type { ScratchDevice } from '../support/scratch-device.js';
import { outcome, type Served, serveScratch, type Test } from '../support/served.js';

const { STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P, ERROR } = MigrationState;

/** Steps of the device by the letters of the tables: `-` for none, `.` for a target that is refused with EINVAL. */
const STEPS: Record<string, string> = {
  q: 'quiesce',
  r: 'resume',
  h: 'releaseExclusive',
  t: 'acquireExclusive',
  c: 'commit',
};

interface Table {
  readonly targets: readonly number[];
  /** From each state of v2 that the protocol can bring about; in RESUMING, when all has been loaded. */
  readonly rows: readonly (readonly [from: MigrationState, cells: string])[];
  /** Numbers that are no target from anywhere. */
  readonly never: readonly number[];
}

const TABLES: Record<'v1' | 'v2', Table> = {
  v2: {
    targets: [STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P],
    rows: [
      //               STOP RUN  S_COPY RESUM R_P2P PRE  PRE_P2P
      [STOP, '         -    r    h      -     -     r    -'],
      [RUNNING, '      q    -    qh     q     q     -    q'],
      [STOP_COPY, '    -    tr   -      -     t     .    .'],
      [RESUMING, '     ct   ctr  cth    -     ct    ctr  ct'],
      [RUNNING_P2P, '  -    r    h      -     -     r    -'],
      [PRE_COPY, '     q    -    qh     q     q     -    q'],
      [PRE_COPY_P2P, ' -    r    h      -     -     r    -'],
      [ERROR, '        .    .    .      .     .     .    .'],
    ],
    never: [ERROR, 8, 255, 0xffffffff],
  },
  v1: {
    targets: [0b000, 0b001, 0b010, 0b011, 0b100],
    rows: [
      //               000  001  010  011  100
      [STOP, '         -    r    h    .    .'],
      [RUNNING, '      q    -    qh   -    q'],
      [STOP_COPY, '    -    tr   -    .    .'],
      [PRE_COPY, '     .    -    qh   -    .'],
      [RESUMING, '     .    ctr  .    .    -'],
      [ERROR, '        .    .    .    .    .'],
    ],
    never: [0b101, 0b110, 0b111, 8, 9, 0x80000001, 0xffffffff],
  },
};
const PROTOCOLS = ['v1', 'v2'] as const;
type Protocol = (typeof PROTOCOLS)[number];

/** A device and the VMM that drives it, by one of the protocols. */
class Driven {
  readonly served: Served;
  readonly device: ScratchDevice;
  readonly client: MigrationClient;
  readonly protocol: Protocol;

  private constructor(
    served: Served & { scratch: ScratchDevice },
    client: MigrationClient,
    protocol: Protocol,
  ) {
    this.served = served;
    this.device = served.scratch;
    this.client = client;
    this.protocol = protocol;
  }

  static async start(t: Test, protocol: Protocol): Promise<Driven> {
    const served = serveScratch(t, { migration: 'both' });
    return new Driven(served, await connect(served, protocol), protocol);
  }

  get vmm(): Client {
    return this.client.client;
  }

  /** Asks for a state by its number in the protocol; the errno. */
  set(target: number): Promise<number | string> {
    if (this.protocol === 'v2') return outcome(this.client.setState(target as MigrationState));
    const bytes = new Uint8Array(Uint32Array.of(target).buffer);
    return outcome(this.vmm.regionWrite(9, MigrationRegister.DEVICE_STATE, bytes));
  }

  name(target: number): string {
    return this.protocol === 'v2' ? migrationStateName(target) : deviceStateName(target);
  }

  /** Brings the device there, with nothing left to notice. */
  async goTo(state: MigrationState): Promise<void> {
    if (state === ERROR) {
      await this.client.setState(RESUMING);
      await outcome(this.client.setState(RUNNING));
    } else await this.client.setState(state);
    if (state === RESUMING) await this.client.writeData(await blob);
    this.device.takeCalls();
  }

  /** The steps that the tables speak of, by their letters. */
  steps(): string {
    const letters = Object.keys(STEPS);
    const found = this.device.takeCalls().flatMap((call) => letters.find((one) => STEPS[one] === call) ?? []);
    return found.join('') || '-';
  }
}

function connect(served: Served, protocol: Protocol): Promise<MigrationClient> {
  return protocol === 'v1'
    ? served.region(served.path)
    : served.vmm().then((client) => new MigrationClient(client));
}

const blob = scratchBlob();

for (const protocol of PROTOCOLS) {
  const { targets, rows, never } = TABLES[protocol];

  t.test(`${protocol}: every state × every target`, async (t) => {
    for (const [from, row] of rows) {
      for (const [i, cell] of row.trim().split(/\s+/).entries()) {
        const driven = await Driven.start(t, protocol);
        await driven.goTo(from);
        const target = targets[i]!;
        const what = `${migrationStateName(from)} → ${driven.name(target)}`;
        t.equal(await driven.set(target), cell === '.' ? Errno.EINVAL : 0, what);
        // The check of its own state is a commit too, at the begin of a load.
        const checked = cell !== '.' && isResuming(protocol, target) && from !== RESUMING;
        const steps = checked ? driven.steps().replace('c', '') || '-' : driven.steps();
        t.equal(steps, cell === '.' ? '-' : cell, `${what}: steps`);
        const left = cell === '.' ? from : stateOf(protocol, target);
        t.equal(await driven.client.state(), left, `${what}: state`);
        // To be where one is asked to go is no transition, and no error of v2's.
        for (const number of never.filter((state) => protocol === 'v1' || state !== left))
          t.equal(await driven.set(number), Errno.EINVAL, `${what}, then ${driven.name(number)}`);
        driven.client.close();
      }
    }
  });

  t.test(`${protocol}: every step failing`, async (t) => {
    let failures = 0;
    for (const [from, row] of rows) {
      for (const [i, cell] of row.trim().split(/\s+/).entries()) {
        for (const [at, letter] of [...cell].entries()) {
          if (letter === '.' || letter === '-') continue;
          const driven = await Driven.start(t, protocol);
          await driven.goTo(from);
          const target = targets[i]!;
          const what = `${migrationStateName(from)} → ${driven.name(target)}, ${STEPS[letter]} failing`;
          driven.device.hook = (step) => {
            if (step === STEPS[letter]) throw new RequestError(Errno.ENOSPC, 'no');
          };
          t.equal(await driven.set(target), Errno.ENOSPC, what);
          t.equal(await driven.client.state(), leftBy(protocol, from, target, cell.slice(0, at + 1)), what);
          driven.device.hook = () => {};
          await driven.vmm.reset();
          t.equal(await driven.client.state(), RUNNING, 'a reset helps');
          t.equal(driven.device.running, true);
          failures++;
          driven.client.close();
        }
      }
    }
    t.ok(failures > 12, `${failures} failures`);
  });

  t.test(`${protocol}: reset in each state`, async (t) => {
    for (const [from] of rows) {
      const driven = await Driven.start(t, protocol);
      await driven.goTo(from);
      await driven.vmm.reset();
      const what = migrationStateName(from);
      t.equal(await driven.client.state(), RUNNING, what);
      t.equal(driven.device.running, true);
      t.equal(driven.device.takeCalls()[0], 'reset requested');
      await driven.client.setState(STOP_COPY);
      const stream = await readAll(driven.client);
      t.ok(stream.length > 4096, `${what}: a whole state can be saved afterwards`);
      driven.client.close();
    }
  });

  t.test(`${protocol}: the client leaves in each state`, async (t) => {
    for (const [from] of rows) {
      const driven = await Driven.start(t, protocol);
      await driven.goTo(from);
      await driven.client.startLogging({ pageSize: 4096, ranges: [] });
      driven.device.state.memory.fill(9);
      driven.client.close();
      const other = await connect(driven.served, protocol === 'v1' ? 'v2' : 'v1');
      const what = migrationStateName(from);
      t.equal(await other.state(), RUNNING, `${what}: the next one finds it running`);
      t.equal(driven.device.running, true);
      t.equal(driven.device.state.memory[0], 0, 'and reset');
      const report = { iova: 0, length: 4096, pageSize: 4096 };
      t.equal(await outcome(other.reportLogging(report)), Errno.EINVAL, 'the log is off');
      await other.startLogging({ pageSize: 4096, ranges: [] });
      await other.setState(PRE_COPY);
      t.equal(await other.state(), PRE_COPY, 'and is served by the other protocol');
      other.close();
    }
  });
}

function isResuming(protocol: Protocol, target: number): boolean {
  return target === (protocol === 'v1' ? DeviceState.RESUMING : RESUMING);
}

/** The state of v2 that a target means. */
function stateOf(protocol: Protocol, target: number): MigrationState {
  if (protocol === 'v2') return target as MigrationState;
  const all = Object.values(MigrationState);
  const found = all.find(
    (state) => state !== RUNNING_P2P && state !== PRE_COPY_P2P && deviceStateOf(state) === target,
  );
  if (found === undefined) throw new Error(`${target}`);
  return found;
}

/** Steps that an arc may take, for the table's letters. */
const ARC_STEPS: [from: MigrationState, to: MigrationState, letters: string][] = [
  [RUNNING, RUNNING_P2P, 'q'],
  [PRE_COPY, PRE_COPY_P2P, 'q'],
  [RUNNING_P2P, RUNNING, 'r'],
  [PRE_COPY_P2P, PRE_COPY, 'r'],
  [STOP, STOP_COPY, 'h'],
  [PRE_COPY_P2P, STOP_COPY, 'h'],
  [RESUMING, STOP, 'ct'],
  [STOP, RUNNING_P2P, 't'],
];

/**
 * Where the device is left when the last of `steps` fails. By v2, at the state before the arc that failed; by v1 where
 * it was, or in ERROR. A load that fails is ERROR by either.
 */
function leftBy(protocol: Protocol, from: MigrationState, target: number, steps: string): MigrationState {
  if (from === RESUMING && (protocol === 'v1' || steps === 'c' || steps === 'ct')) return ERROR;
  if (protocol === 'v1') return from;
  const failing = steps.at(-1)!;
  let state = from;
  for (const next of migrationPath(from, target, supportedStates(7))) {
    if (ARC_STEPS.some(([a, b, letters]) => a === state && b === next && letters.includes(failing)))
      return state;
    state = next;
  }
  throw new Error('no arc takes this step');
}

async function readAll(client: MigrationClient): Promise<Uint8Array> {
  const buffer = new Uint8Array(client.maxChunk);
  const chunks: Uint8Array[] = [];
  for (let size = await client.readData(buffer); size > 0; size = await client.readData(buffer))
    chunks.push(buffer.slice(0, size));
  return Buffer.concat(chunks);
}
