// SPDX-License-Identifier: Apache-2.0
/**
 * Two modelled hosts, the connection between them and a witness, with everything that happens to them. Each step is followed
 * by the question that the protocol is about: may two run?
 */

import type {
  AskOutput,
  Attempt,
  CommitSettings,
  Outcome,
  RefusalCode,
  Token,
  WitnessAnswer,
} from '../../src/commit/index.js';
import { highestGeneration, lastAttempt, nextGeneration } from '../../src/commit/index.js';
import { Agenda } from './agenda.js';
import { Host, type Message } from './host.js';
import type { Protocol } from './protocol.js';
import type { Random } from './random.js';

/** Something that must never be. */
export class Violation extends Error {
  override readonly name = 'Violation';
}

/** How likely what is, in one schedule. Probabilities are of one occasion. */
export interface Weather {
  readonly witness: boolean;
  readonly loss: number;
  readonly late: number;
  readonly crashAtWrite: number;
  readonly crashAtStep: number;
  readonly slowWitness: number;
  readonly maxDelay: number;
}

const VM = 'vm';

export class World {
  readonly agenda = new Agenda();
  readonly settings: CommitSettings = { patienceMs: 300, repeatMs: 100, witnessMs: 120 };
  readonly hosts: readonly [Host, Host];
  /** Faults go on. */
  faulty = true;
  /** How many times the VM has been made to run: a copy that has less in it is an older state. */
  life = 1;
  /** The token, if there is a witness. */
  token: Token | undefined;
  /** Hosts whose copy of the VM was destroyed by a fault. */
  readonly killed = new Set<string>();
  readonly outcomes: Outcome[] = [];
  readonly refusals = new Set<RefusalCode>();
  readonly trace: string[] = [];
  network = true;
  readonly witnessFor = { A: true, B: true };
  /** Attempts that have not begun. */
  migrations: number;
  /** An operator has said of a copy that the VM runs elsewhere. */
  givenAway = false;

  #epoch = 0;
  #connected = false;
  #connecting = false;
  /** No message of this connection is delivered before one that was sent before it, per direction. */
  readonly #deliveredAt = { A: 0, B: 0 };

  constructor(
    readonly random: Random,
    readonly weather: Weather,
    readonly protocol: Protocol,
    readonly traced: boolean,
  ) {
    this.hosts = [new Host(this, 'A'), new Host(this, 'B')];
    const { copy } = this.hosts[0];
    copy.state = 'running';
    copy.life = this.life;
    if (weather.witness) this.token = { vm: VM, generation: 1, owner: 'A' };
    this.migrations = random.between(1, 4);
  }

  log(host: Host | undefined, text: string): void {
    if (this.traced)
      this.trace.push(`${String(this.agenda.now).padStart(6)} ms  ${(host?.name ?? ' ').padEnd(2)} ${text}`);
  }

  violate(what: string): never {
    this.log(undefined, `VIOLATION: ${what}`);
    throw new Violation(what);
  }

  // What must hold after every step.

  check(): void {
    const [a, b] = this.hosts;
    if (a.mayRun() && b.mayRun())
      this.violate(
        `two may run: A ${a.found()}, B ${b.found()}${a.copy.starting + b.copy.starting > 0 ? ', one of them starts' : ''}`,
      );
  }

  /** A copy begins to run: no other may have run since it was made. */
  history(host: Host): void {
    if (host.copy.life !== this.life)
      this.violate(`${host.name} runs an older state of the VM, although another copy has run since`);
  }

  /** An agent ends its copy on purpose: not the last one that is up to date, unless a fault has destroyed the other. */
  ends(host: Host): void {
    const { copy, other } = host;
    const isLast = copy.life === this.life && !(other.copy.state !== 'none' && other.copy.life === this.life);
    if (copy.state === 'running') this.violate(`${host.name} ends a VM that runs`);
    const isWhole = copy.state === 'stopped' || copy.state === 'landed';
    if (isLast && isWhole && !this.killed.has(other.name) && !this.givenAway)
      this.violate(`${host.name} ends the only copy of the VM that is up to date`);
  }

  // The connection.

  /** There is a connection, and both agents know of it. */
  isQuiet(): boolean {
    const { now } = this.agenda;
    return this.#connected && this.hosts.every(({ link, toldAt }) => link && toldAt < now);
  }

  connect(): void {
    if (this.#connecting || this.#connected) return;
    this.#connecting = true;
    this.agenda.in(this.random.between(5, 60), () => {
      this.#connecting = false;
      if (!this.network || this.#connected || !this.hosts.every(({ alive }) => alive)) return;
      this.#connected = true;
      this.#epoch++;
      for (const host of this.hosts) {
        this.#deliveredAt[host.name] = 0;
        this.#tellLater(host, 'connected', 3);
      }
    });
  }

  disconnect(): void {
    if (!this.#connected) return;
    this.#connected = false;
    this.#epoch++;
    for (const host of this.hosts) this.#tellLater(host, 'disconnected', this.random.pick([2, 30, 200]));
    if (this.network) this.reconnectSoon();
  }

  reconnectSoon(): void {
    this.agenda.in(this.random.between(10, 150), () => this.connect());
  }

  /** In the order in which it happened, however long the heartbeats take to notice. */
  #tellLater(host: Host, type: 'connected' | 'disconnected', max: number): void {
    const { process } = host;
    host.toldAt = Math.max(host.toldAt, this.agenda.now + this.random.between(0, max));
    this.agenda.at(host.toldAt, () => process === host.process && host.tell({ type }));
  }

  send(from: Host, message: Message): void {
    const { random, agenda, weather } = this;
    const to = from.other;
    const epoch = this.#epoch;
    const deliver = () => to.receive(message);
    if (this.#connected && !random.chance(this.faulty ? weather.loss : 0)) {
      const at = Math.max(this.#deliveredAt[to.name], agenda.now + random.between(1, weather.maxDelay));
      this.#deliveredAt[to.name] = at;
      // What is under way when the connection ends is lost, or comes late, when there may be a new one.
      agenda.at(at, () => {
        if (epoch === this.#epoch) return deliver();
        if (this.faulty && random.chance(0.5)) agenda.in(random.between(1, 600), deliver);
      });
    }
    // And what has come may come again.
    if (this.faulty && random.chance(weather.late)) agenda.in(random.between(50, 1500), deliver);
  }

  // The witness.

  ask(from: Host, { generation, id, expected, next }: AskOutput): void {
    const { random, agenda, weather } = this;
    const { process } = from;
    const answer = (answer: WitnessAnswer, delay: number) =>
      agenda.in(
        delay,
        () => process === from.process && from.tell({ type: 'answer', generation, id, answer }),
      );
    const slow = this.faulty && random.chance(weather.slowWitness);
    const delay = random.between(1, slow ? 500 : 20);
    if (!this.witnessFor[from.name] || this.token === undefined) {
      // Some failures are noticed, of others only the time tells.
      if (random.chance(0.5)) answer({ type: 'unreachable' }, delay);
      return;
    }
    const request = () => {
      if (this.token === undefined) return;
      const result = this.protocol.compareAndSet(this.token, expected);
      if (result.type === 'set') {
        this.token = next;
        this.log(undefined, `token: generation ${next.generation}, ${next.owner}`);
      }
      if (this.faulty && random.chance(weather.loss)) answer({ type: 'unreachable' }, delay);
      else if (this.witnessFor[from.name]) answer(result, delay);
      if (this.faulty && random.chance(weather.late)) answer(result, delay + random.between(1, 300));
    };
    agenda.in(delay, request);
    if (this.faulty && random.chance(weather.late)) agenda.in(delay + random.between(1, 400), request);
  }

  // Migrations.

  /** The host that runs the VM and has nothing else to do begins to migrate it. */
  maybeBegin(): boolean {
    const source = this.hosts.find(({ copy, alive, idle }) => copy.state === 'running' && alive && idle);
    if (source === undefined || this.migrations === 0) return false;
    const { other } = source;
    const from =
      this.token ?? ({ vm: VM, generation: highestGeneration(source.journal), owner: source.name } as const);
    // An agent asks the witness first, and does not begin when the token is not its own.
    if (this.token !== undefined && (this.token.owner !== source.name || !this.witnessFor[source.name]))
      return false;
    this.migrations--;
    const generation = nextGeneration(highestGeneration(source.journal), from.generation);
    const attempt: Attempt = {
      ...{ vm: VM, generation, from, witness: this.token !== undefined },
      ...{ source: source.name, destination: other.name },
    };
    this.killed.clear();
    this.givenAway = false;
    source.begin(attempt);
    return true;
  }

  /** RAM and device state: the source's VM stands in the end, and what it was lands. */
  transfer(source: Host): void {
    const { random, agenda } = this;
    const attempt = source.attempt!;
    const destination = source.other;
    const goesOn = () =>
      source.alive && source.attempt === attempt && source.machine?.state.name === 'migrating';
    agenda.in(random.between(5, 60), () => {
      if (!goesOn() || source.copy.state !== 'running') return;
      source.stopVm();
      this.check();
      const { life } = source.copy;
      agenda.in(random.between(2, 60), () => {
        const { machine, copy } = destination;
        // The streams went with the source's agent, or were cut when it gave up.
        if (!goesOn() || source.copy.state === 'running' || source.copy.starting > 0) return;
        const isReady = destination.alive && machine?.state.name === 'receiving' && copy.state === 'incoming';
        if (!isReady || machine.state.attempt.generation !== attempt.generation) {
          source.tell({ type: 'cancel' });
          return;
        }
        copy.state = 'landed';
        copy.life = life;
        destination.changed();
        this.log(destination, 'the VM has landed');
        destination.tell({ type: 'vmLanded' });
        this.check();
      });
    });
  }

  // Faults.

  maybeCrash(host: Host, why: string): boolean {
    if (!this.faulty || !host.alive) return false;
    const { crashAtWrite, crashAtStep } = this.weather;
    if (!this.random.chance(why === 'between two outputs' ? crashAtStep : crashAtWrite)) return false;
    if (this.random.chance(0.1)) this.crashMachine(host, why);
    else host.crashAgent(why);
    this.restartLater(host);
    return true;
  }

  crashMachine(host: Host, why: string): void {
    host.crashMachine(why);
    if (this.random.chance(0.15)) {
      this.log(host, 'and is gone for good');
      host.destroyed = true;
    }
  }

  /** After a while, or when the faults have ended. */
  restartLater(host: Host): void {
    if (this.random.chance(0.2)) return;
    this.agenda.in(this.random.between(5, 700), () => this.restart(host));
  }

  restart(host: Host): void {
    if (host.alive || host.destroyed) return;
    host.start();
    this.connect();
  }

  /** The operator fences the other host, or believes so, and decides. */
  decideHere(host: Host): void {
    const { other } = host;
    this.log(host, `the operator decides: here; ${other.name} is fenced`);
    if (this.protocol.operatorFences) {
      other.crashMachine('as it is fenced');
      // Whatever has run there since is given up, knowingly.
      this.life = host.copy.life;
      this.restartLater(other);
    }
    host.tell({ type: 'operator', decision: 'here', fenced: true });
  }

  /** The source of the last attempt that either host knows of. */
  lastSource(): Host | undefined {
    const last = this.hosts
      .map((host) => ({ host, last: lastAttempt(host.journal) }))
      .sort((x, y) => (y.last?.attempt.generation ?? 0) - (x.last?.attempt.generation ?? 0))[0]!;
    if (last.last === undefined) return undefined;
    return this.hosts.find(({ name }) => name === last.last!.attempt.source);
  }
}
