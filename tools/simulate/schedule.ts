// SPDX-License-Identifier: Apache-2.0
/** One schedule: faults from a seed, then a time in which only some can talk, then one in which all can. */

import { isOwnedSince } from '../../src/commit/index.js';
import type { Host } from './host.js';
import { PROTOCOL, type Protocol } from './protocol.js';
import { Random } from './random.js';
import { Violation, type Weather, World } from './world.js';

/** Each as often as it is here. */
const FAULTS = [
  ...(['cut', 'cut', 'cut', 'cut', 'cut', 'cut', 'agent', 'agent', 'machine'] as const),
  ...([
    'witness',
    'witness',
    'witness',
    'witness',
    'disk',
    'disk',
    'request',
    'request',
    'qemu',
    'qemu',
  ] as const),
];

export interface Result {
  readonly seed: number;
  /** What was violated; undefined if all was as it must be. */
  readonly violation: string | undefined;
  readonly trace: readonly string[];
  /** Outcomes, refusals and the way it ended, for counting. */
  readonly features: ReadonlySet<string>;
}

/** Events of one schedule. One that has more goes in circles. */
const MAX_EVENTS = 100_000;
/** How long it may take until all is decided, in ms: many times the longest time that a machine waits for anything. */
const LONG = 6_000;

export function runSchedule(seed: number, options: { traced?: boolean; protocol?: Protocol } = {}): Result {
  const { traced = false, protocol = PROTOCOL } = options;
  const random = new Random(seed);
  const world = new World(random, makeWeather(random), protocol, traced);
  const features = new Set<string>([world.weather.witness ? 'witness' : 'no witness']);
  let violation: string | undefined;
  try {
    new Schedule(world, features).run();
  } catch (error) {
    if (!(error instanceof Violation)) throw error;
    violation = error.message;
  }
  for (const outcome of world.outcomes) features.add(`outcome ${outcome}`);
  for (const code of world.refusals) features.add(`refused ${code}`);
  return { seed, violation, trace: world.trace, features };
}

function makeWeather(random: Random): Weather {
  return {
    witness: random.chance(0.6),
    loss: random.pick([0, 0, 0.02, 0.15]),
    late: random.pick([0, 0.05, 0.3]),
    crashAtWrite: random.pick([0, 0.03, 0.12]),
    crashAtStep: random.pick([0, 0, 0.01, 0.04]),
    slowWitness: random.pick([0, 0.1, 0.6]),
    maxDelay: random.pick([2, 20, 120]),
  };
}

class Schedule {
  readonly #world: World;
  readonly #features: Set<string>;
  #events = 0;

  constructor(world: World, features: Set<string>) {
    this.#world = world;
    this.#features = features;
  }

  run(): void {
    const world = this.#world;
    const { random } = world;
    const until = random.between(300, 2500);
    this.#beginNow();
    this.#plan(until);
    this.#runUntil(until, () => false);
    this.#endFaults();
    if (world.token !== undefined && random.chance(0.6)) this.#someTalk();
    this.#allTalk();
    this.#migrateOnceMore();
    if (world.hosts.some(({ destroyed }) => destroyed)) this.#features.add('a machine is gone for good');
  }

  #beginNow(): void {
    const world = this.#world;
    world.connect();
    const again = () => {
      if (!world.faulty) return;
      world.maybeBegin();
      world.agenda.in(world.random.between(10, 250), again);
    };
    again();
  }

  /** Faults, at any time. */
  #plan(until: number): void {
    const { random, agenda } = this.#world;
    const faults = random.pick([0, 1, 2, 4, 8]);
    for (let i = 0; i < faults; i++) agenda.at(random.between(0, until), () => this.#fault());
  }

  #fault(): void {
    const world = this.#world;
    const { random, agenda } = world;
    if (!world.faulty) return;
    const host = random.pick(world.hosts);
    const duration = random.pick([20, 100, 400, 1500]);
    switch (random.pick(FAULTS)) {
      case 'cut':
        world.log(undefined, `network: cut for ${duration} ms`);
        world.network = false;
        world.disconnect();
        agenda.in(duration, () => this.#mendNetwork());
        break;
      case 'agent':
        host.crashAgent('at some time');
        world.restartLater(host);
        break;
      case 'machine':
        world.crashMachine(host, 'at some time');
        world.restartLater(host);
        break;
      case 'witness': {
        const names = random.pick<readonly ('A' | 'B')[]>([['A'], ['B'], ['A', 'B']]);
        world.log(undefined, `witness: unreachable for ${names.join(' and ')}, for ${duration} ms`);
        for (const name of names) world.witnessFor[name] = false;
        agenda.in(duration, () => {
          if (world.faulty) for (const name of names) world.witnessFor[name] = true;
        });
        break;
      }
      case 'disk':
        world.log(host, `disk full for ${duration} ms`);
        host.diskFull = true;
        agenda.in(duration, () => {
          host.diskFull = false;
        });
        break;
      case 'request':
        this.#request(host);
        break;
      case 'qemu':
        if (host.copy.state === 'stopped' || host.copy.state === 'landed') host.killVm();
        break;
    }
  }

  #mendNetwork(): void {
    const world = this.#world;
    if (!world.faulty) return;
    world.network = true;
    world.connect();
  }

  #request(host: Host): void {
    const world = this.#world;
    const { random } = world;
    const request = random.pick(['cancel', 'cancel', 'decide', 'decide without proof'] as const);
    if (request === 'cancel') host.tell({ type: 'cancel' });
    else if (request === 'decide') this.#operator(host);
    // Nothing may follow from it.
    else host.tell({ type: 'operator', decision: 'here', fenced: false });
  }

  #operator(host: Host): void {
    const world = this.#world;
    const name = host.machine?.state.name;
    const { other } = host;
    if (world.random.chance(0.5)) {
      if (name === 'granted' || name === 'contending') world.decideHere(host);
      return;
    }
    // Said of a source only where the operator sees the VM run at the destination.
    const sees = other.copy.state === 'running';
    if ((name === 'granted' && sees) || name === 'contending' || name === 'landed')
      host.tell({ type: 'operator', decision: 'elsewhere', fenced: false });
  }

  #endFaults(): void {
    const world = this.#world;
    world.faulty = false;
    world.log(undefined, 'the faults have ended');
    for (const host of world.hosts) host.diskFull = false;
  }

  /** With a witness: two of three can talk, and one is cut off. */
  #someTalk(): void {
    const world = this.#world;
    const source = world.lastSource();
    if (source === undefined) return;
    const { other: destination } = source;
    const pair = world.random.pick([
      'source and destination',
      'source and witness',
      'destination and witness',
    ]);
    const isolated = { 'source and witness': destination, 'destination and witness': source }[pair];
    world.log(undefined, `only ${pair} can talk`);
    world.network = pair === 'source and destination';
    if (!world.network) world.disconnect();
    for (const host of world.hosts)
      world.witnessFor[host.name] = pair !== 'source and destination' && host !== isolated;
    this.#startAll();
    this.#runUntil(world.agenda.now + LONG, () => this.#isDecided());
    this.#features.add(`only ${pair}`);
    if (this.#running() === 1 || this.#noHostCan()) return;
    // The one that is cut off may have the right without knowing: no other host can then (docs/commit.md).
    const records = (host: Host) =>
      host.journal.filter(({ generation }) => generation === source.attempt?.generation);
    const attempt = source.attempt ?? destination.attempt;
    const promised = records(source).some((record) => record.type === 'granted' && record.arbiter === 'none');
    const taken = records(destination).some(({ type }) => type === 'taken');
    const tokenOf = (host: Host) => isOwnedSince(attempt!, world.token!, host.name);
    // A copy that may have run was destroyed with its machine: only the witness knows whether it has.
    const unknown = destination.machine?.state.name === 'lost' && isolated === undefined;
    // A machine that is gone for good is not connected to any other.
    const oneLeft = world.hosts.some((host) => host.destroyed && host !== isolated);
    const excused =
      unknown ||
      oneLeft ||
      (isolated === destination && (promised || tokenOf(destination) || source.copy.state === 'none')) ||
      (isolated === source && (!taken || tokenOf(source) || destination.copy.state === 'none'));
    if (excused) this.#features.add('the one that is cut off has the right');
    else if (!this.#isForOperator()) world.violate(`no host runs the VM, although ${pair} can talk`);
  }

  #allTalk(): void {
    const world = this.#world;
    world.log(undefined, 'all can talk');
    world.network = true;
    world.witnessFor.A = true;
    world.witnessFor.B = true;
    this.#startAll();
    this.#runUntil(world.agenda.now + LONG, () => this.#isOver());
    if (this.#running() === 0 && this.#isForOperator()) {
      const host = world.hosts.find(({ machine }) => machine?.state.name === 'granted')!;
      this.#features.add('an operator had to decide');
      world.decideHere(host);
      this.#startAll();
      this.#runUntil(world.agenda.now + LONG, () => this.#isOver());
    }
    if (this.#running() === 0) {
      if (!this.#noHostCan()) world.violate('no host runs the VM, although all can talk');
      this.#features.add('the VM is lost');
    } else this.#features.add(`runs`);
    if (!this.#isOver())
      world.violate(`not over: ${world.hosts.map(({ machine }) => machine?.state.name).join(', ')}`);
  }

  /** After whatever has happened the next migration is one like any other. */
  #migrateOnceMore(): void {
    const world = this.#world;
    if (this.#running() !== 1 || world.hosts.some(({ alive }) => !alive)) return;
    world.migrations = 1;
    world.connect();
    this.#runUntil(world.agenda.now + LONG, () => world.isQuiet());
    const before = world.hosts.find(({ copy }) => copy.state === 'running')!;
    if (!world.maybeBegin()) world.violate('no migration can begin any more');
    this.#runUntil(world.agenda.now + LONG, () => before.other.copy.state === 'running' && this.#isOver());
    if (before.other.copy.state !== 'running' || !this.#isOver()) world.violate('the next migration fails');
  }

  #startAll(): void {
    const world = this.#world;
    for (const host of world.hosts) world.restart(host);
    if (world.network) world.connect();
  }

  #running(): number {
    return this.#world.hosts.filter(({ copy }) => copy.state === 'running').length;
  }

  #isDecided(): boolean {
    return this.#running() === 1 && !this.#world.hosts.some(({ copy }) => copy.starting > 0);
  }

  /** Both are done with the attempt, but for one that waits for a machine that is gone for good. */
  #isOver(): boolean {
    const { hosts } = this.#world;
    if (hosts.some(({ copy, alive, destroyed }) => copy.starting > 0 || (!alive && !destroyed))) return false;
    const waits = ({ other, copy, machine }: Host) => {
      const name = machine?.state.name;
      const isSaid = name === 'running' || name === 'lost' || (name === 'granted' && copy.state === 'none');
      return other.destroyed && isSaid;
    };
    return hosts.every((host) => host.idle || host.destroyed || waits(host));
  }

  /** Every copy that could run was destroyed by a fault. */
  #noHostCan(): boolean {
    const { hosts, killed, givenAway } = this.#world;
    return (
      hosts.every(({ copy }) => copy.state === 'none' || copy.state === 'incoming') &&
      (killed.size > 0 || givenAway)
    );
  }

  /** The source's promise stands, and the destination's copy was destroyed when it may have run. */
  #isForOperator(): boolean {
    const world = this.#world;
    return world.hosts.some((host) => {
      const state = host.machine?.state;
      // The last: it could not write that it gave up, so after a restart it does not know that any more.
      const { destroyed, machine } = host.other;
      const isGone = world.killed.has(host.other.name) || destroyed || machine?.state.name === 'lost';
      if (state?.name !== 'granted' || !isGone || host.copy.state === 'none') return false;
      if (!state.attempt.witness || state.arbiter === 'none') return true;
      return isOwnedSince(state.attempt, world.token!, host.other.name);
    });
  }

  #runUntil(limit: number, isReached: () => boolean): void {
    const world = this.#world;
    while (!isReached() && world.agenda.next(limit)) {
      if (++this.#events > MAX_EVENTS) world.violate('it goes in circles');
    }
    if (!isReached()) world.agenda.now = limit;
  }
}
