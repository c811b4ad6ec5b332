// SPDX-License-Identifier: Apache-2.0
/**
 * A modelled host: its copy of the VM, which goes on when the agent is gone, and an agent that drives a machine of src/commit
 * with a journal that keeps, after a crash, what had reached the disk.
 */

import {
  type Attempt,
  type CommitRecord,
  type DestinationInput,
  type DestinationMessage,
  type DestinationOutput,
  type DestinationState,
  highestGeneration,
  lastAttempt,
  type SourceInput,
  type SourceMessage,
  type SourceOutput,
  type SourceState,
  type TimerName,
  type VmFound,
} from '../../src/commit/index.js';
import type { World } from './world.js';

export type Message = SourceMessage | DestinationMessage;
export type Machine =
  | { readonly role: 'source'; readonly state: SourceState }
  | { readonly role: 'destination'; readonly state: DestinationState };
/** An input that a machine of either role has. */
type Fact = Extract<
  SourceInput,
  { type: Exclude<SourceInput['type'], 'message' | 'persisted' | 'persistFailed'> }
>;

const SOURCE_MESSAGES: readonly string[] = ['offer', 'grant', 'withdrawn', 'done'];

export interface Copy {
  state: 'none' | 'incoming' | 'landed' | 'stopped' | 'running';
  /** How many times `run` was said and has not been carried out. */
  starting: number;
  /** How much of the VM's life the copy has in it: {@link World.life} when it stood still or was made. */
  life: number;
  /** Counts copies: what was said of an earlier one is not done to this one. */
  number: number;
}

export class Host {
  readonly copy: Copy = { state: 'none', starting: 0, life: 0, number: 0 };
  readonly journal: CommitRecord[] = [];
  machine: Machine | undefined;
  /** Whether the machine is on, and whether its agent runs. */
  up = true;
  alive = true;
  destroyed = false;
  /** How fast its clock goes. */
  readonly rate: number;
  /** Writing fails. */
  diskFull = false;
  /** Counts processes of the agent. What was meant for an earlier one is dropped. */
  process = 0;
  /** When the agent was told last of the connection, so that it is told in order. */
  toldAt = 0;
  /** What the agent was told of the connection. */
  link = false;
  readonly #writes: CommitRecord[] = [];
  #timers = new Map<TimerName, number>();
  #timerCount = 0;
  #boots = 0;
  #runs = 0;
  #commandedAt = 0;
  /** Cached: whether a process that starts now would run the VM. */
  #would: boolean | undefined;

  constructor(
    readonly world: World,
    readonly name: 'A' | 'B',
  ) {
    this.rate = world.random.pick([0.5, 0.9, 1, 1, 1.1, 2]);
  }

  get other(): Host {
    return this.world.hosts[this.name === 'A' ? 1 : 0];
  }

  get attempt(): Attempt | undefined {
    return this.machine?.state.attempt;
  }

  /** Nothing is left to do for the agent. */
  get idle(): boolean {
    return this.machine === undefined || this.machine.state.name === 'ended';
  }

  found(): VmFound {
    if (this.copy.state === 'running') return 'running';
    return this.copy.state === 'none' ? 'gone' : 'stopped';
  }

  /** It runs, or is about to, or would if the agent were started anew with what is on the disk or about to be. */
  mayRun(): boolean {
    if (this.copy.state === 'running' || this.copy.starting > 0) return true;
    if (this.copy.state === 'none') return false;
    this.#would ??=
      this.#wouldRun(this.journal) ||
      (this.#writes.length > 0 && this.#wouldRun([...this.journal, this.#writes[0]!]));
    return this.#would;
  }

  #wouldRun(journal: readonly CommitRecord[]): boolean {
    const last = lastAttempt(journal);
    if (last === undefined) return false;
    const { outputs } =
      last.role === 'source'
        ? this.world.protocol.restartSource(last.attempt, last.records, this.found(), this.world.settings)
        : this.world.protocol.restartDestination(
            last.attempt,
            last.records,
            this.found(),
            this.world.settings,
          );
    return outputs.some(({ type }) => type === 'run');
  }

  changed(): void {
    this.#would = undefined;
  }

  // What the agent is told.

  begin(attempt: Attempt): void {
    this.world.log(this, `begins to migrate the VM, generation ${attempt.generation}`);
    const { state, outputs } = this.world.protocol.beginSource(attempt, this.world.settings, this.link);
    this.#enter({ role: 'source', state }, outputs);
  }

  tell(input: Fact | { type: 'vmLanded' }): void {
    if (!this.alive) return;
    if (input.type === 'connected' || input.type === 'disconnected') this.link = input.type === 'connected';
    if (this.machine === undefined) return;
    if (input.type !== 'timer') this.world.log(this, `is told ${JSON.stringify(input)}`);
    this.#step(input);
  }

  receive(message: Message): void {
    if (!this.alive) return;
    this.world.log(this, `receives ${message.type} ${message.generation}`);
    const { machine } = this;
    const isNew = message.type === 'offer' && message.generation > highestGeneration(this.journal);
    if (isNew && this.idle && this.#writes.length === 0 && message.type === 'offer') {
      const { state, outputs } = this.world.protocol.beginDestination(
        message.attempt,
        this.world.settings,
        this.link,
      );
      this.#enter({ role: 'destination', state }, outputs);
      return;
    }
    if (machine === undefined) return;
    // What is of an earlier attempt, with the roles the other way round, is dropped.
    if (SOURCE_MESSAGES.includes(message.type) !== (machine.role === 'destination')) return;
    const before = machine.state.name;
    this.#step({ type: 'message', message } as SourceInput);
    if (
      message.type === 'ready' &&
      before === 'migrating' &&
      message.generation === machine.state.attempt.generation
    )
      this.world.transfer(this);
  }

  #step(input: SourceInput | DestinationInput): void {
    const { machine } = this;
    if (machine === undefined) return;
    if (machine.role === 'source') {
      const { state, outputs } = this.world.protocol.stepSource(machine.state, input as SourceInput);
      this.#enter({ role: 'source', state }, outputs);
    } else {
      const { state, outputs } = this.world.protocol.stepDestination(
        machine.state,
        input as DestinationInput,
      );
      this.#enter({ role: 'destination', state }, outputs);
    }
  }

  #enter(machine: Machine, outputs: readonly (SourceOutput | DestinationOutput)[]): void {
    if (this.world.traced && machine.state.name !== this.machine?.state.name)
      this.world.log(this, `is ${machine.role}, ${machine.state.name}`);
    if (machine.state.name === 'receiving' && this.machine?.state.name === 'accepting') {
      this.copy.state = 'incoming';
      this.copy.number++;
      this.changed();
    }
    this.machine = machine;
    const { process } = this;
    for (const output of outputs) {
      if (process !== this.process) return;
      this.#carryOut(output);
      this.world.check();
      this.world.maybeCrash(this, 'between two outputs');
    }
  }

  #carryOut(output: SourceOutput | DestinationOutput): void {
    const { world } = this;
    if (world.traced && output.type !== 'timer') world.log(this, `  ${describe(output)}`);
    switch (output.type) {
      case 'send':
        world.send(this, output.message);
        break;
      case 'persist':
        this.#persist(output.record);
        break;
      case 'run':
        this.#run();
        break;
      case 'stop':
        this.#command(1, 5, () => this.stopVm());
        break;
      case 'end':
        this.#command(1, 40, () => this.endVm());
        break;
      case 'ask':
        world.ask(this, output);
        break;
      case 'timer':
        this.#setTimer(output.name, output.ms);
        break;
      case 'finish':
        world.outcomes.push(output.outcome);
        break;
      case 'refuse':
        world.refusals.add(output.code);
        break;
    }
  }

  // The journal.

  #persist(record: CommitRecord): void {
    this.#writes.push(record);
    this.changed();
    const { world, process } = this;
    if (!world.protocol.waitsForDisk(record)) {
      world.agenda.in(0, () => {
        if (process === this.process) this.#step({ type: 'persisted', record: record.type } as SourceInput);
      });
    }
    if (this.#writes.length === 1) this.#write();
    world.maybeCrash(this, 'while it writes');
  }

  #write(): void {
    const { world, process } = this;
    world.agenda.in(world.random.between(1, 15), () => {
      if (process !== this.process) return;
      const record = this.#writes.shift()!;
      const failed = this.diskFull;
      if (!failed || world.random.chance(0.5)) this.journal.push(record);
      this.changed();
      if (this.#writes.length > 0) this.#write();
      world.check();
      if (world.maybeCrash(this, 'after it has written')) return;
      if (world.protocol.waitsForDisk(record) || failed)
        this.#step({ type: failed ? 'persistFailed' : 'persisted', record: record.type } as SourceInput);
    });
  }

  #setTimer(name: TimerName, ms: number): void {
    const { process, world } = this;
    const count = ++this.#timerCount;
    this.#timers.set(name, count);
    const skewed = Math.max(1, Math.round(ms * this.rate * (0.5 + world.random.next())));
    world.agenda.in(skewed, () => {
      if (process === this.process && this.#timers.get(name) === count) this.tell({ type: 'timer', name });
    });
  }

  // The VM. It has no part in a crash of the agent.

  /** A command to QEMU. One after the other is carried out, also those of an agent that has crashed meanwhile. */
  #command(low: number, high: number, act: () => void): void {
    const { world } = this;
    const { number } = this.copy;
    const boots = this.#boots;
    this.#commandedAt = Math.max(this.#commandedAt, world.agenda.now + world.random.between(low, high));
    world.agenda.at(this.#commandedAt, () => {
      if (boots === this.#boots && number === this.copy.number) act();
    });
  }

  #run(): void {
    const { world, copy } = this;
    if (copy.state === 'landed' || copy.state === 'stopped') world.history(this);
    copy.starting++;
    const runs = this.#runs;
    this.#command(1, 10, () => {
      if (runs === this.#runs) copy.starting--;
      if (copy.state === 'none') {
        this.tell({ type: 'vmGone' });
        return;
      }
      if (runs !== this.#runs) return;
      if (copy.state === 'landed' && world.faulty && world.random.chance(0.02)) {
        world.log(this, 'QEMU refuses to run the VM');
        this.tell({ type: 'vmRunFailed' });
        return;
      }
      if (copy.state !== 'running') {
        world.log(this, 'the VM RUNS');
        world.history(this);
        copy.state = 'running';
        copy.life = ++world.life;
        this.changed();
        world.check();
      }
      this.tell({ type: 'vmRuns' });
    });
  }

  /** What was said and is not carried out yet is not carried out any more. */
  #forgetRuns(): void {
    this.copy.starting = 0;
    this.#runs++;
  }

  stopVm(): void {
    if (this.copy.state !== 'running') return;
    this.copy.state = 'stopped';
    this.changed();
    this.world.log(this, 'the VM stands');
    this.tell({ type: 'vmStopped' });
  }

  /** The agent has said so. */
  endVm(): void {
    this.world.ends(this);
    this.copy.state = 'none';
    this.#forgetRuns();
    this.changed();
    this.tell({ type: 'vmGone' });
  }

  /** Its QEMU is killed. */
  killVm(): void {
    this.world.log(this, `QEMU is killed, its copy was ${this.copy.state}`);
    this.world.killed.add(this.name);
    this.copy.state = 'none';
    this.#forgetRuns();
    this.changed();
    this.tell({ type: 'vmGone' });
  }

  // Crashes.

  crashAgent(why: string): void {
    if (!this.alive) return;
    const { random } = this.world;
    this.world.log(this, `the agent CRASHES ${why}`);
    this.alive = false;
    this.link = false;
    this.process++;
    // A prefix of what was being written is on the disk. `cont` has been written to QMP, or not.
    while (this.#writes.length > 0 && random.chance(0.5)) this.journal.push(this.#writes.shift()!);
    this.#writes.length = 0;
    if (random.chance(0.5)) this.#forgetRuns();
    this.#timers.clear();
    this.changed();
    this.world.disconnect();
  }

  crashMachine(why: string): void {
    if (!this.up) return;
    this.crashAgent(why);
    this.world.log(this, `the machine CRASHES ${why}, its copy was ${this.copy.state}`);
    this.up = false;
    this.#boots++;
    if (this.copy.state !== 'none') this.world.killed.add(this.name);
    this.copy.state = 'none';
    this.#forgetRuns();
    this.changed();
  }

  start(): void {
    if (this.destroyed || this.alive) return;
    this.up = true;
    this.alive = true;
    this.process++;
    this.machine = undefined;
    const last = lastAttempt(this.journal);
    this.world.log(
      this,
      `the agent STARTS, journal: ${this.journal.map(({ type, generation }) => `${type} ${generation}`).join(', ')}`,
    );
    if (last?.role === 'source') {
      const { state, outputs } = this.world.protocol.restartSource(
        last.attempt,
        last.records,
        this.found(),
        this.world.settings,
      );
      this.#enter({ role: 'source', state }, outputs);
    } else if (last?.role === 'destination') {
      const { state, outputs } = this.world.protocol.restartDestination(
        last.attempt,
        last.records,
        this.found(),
        this.world.settings,
      );
      this.#enter({ role: 'destination', state }, outputs);
    }
    this.world.check();
  }
}

function describe(output: SourceOutput | DestinationOutput): string {
  switch (output.type) {
    case 'send':
      return `sends ${output.message.type}${'arbiter' in output.message ? ` (${output.message.arbiter})` : ''}`;
    case 'persist':
      return `writes ${JSON.stringify({ ...output.record, vm: undefined, attempt: undefined })}`;
    case 'ask':
      return `asks ${output.id}: ${output.expected.generation} ${output.expected.owner} -> ${output.next.generation} ${output.next.owner}`;
    case 'finish':
      return `FINISHES: ${output.outcome}`;
    case 'refuse':
      return `refuses: ${output.code}`;
    default:
      return output.type;
  }
}
