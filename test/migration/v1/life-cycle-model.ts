// SPDX-License-Identifier: Apache-2.0
/** A device of v2 for tests of what is in front of it: real state machine, a stream that the test can see through, faults on demand. */

import { BrokenDeviceError, type LifeCycle, MigrationMachine } from '../../../src/migration/index.js';
import { Errno, MigrationState, migrationStateName, RequestError } from '../../../src/wire/index.js';

const { RUNNING, STOP, STOP_COPY, RESUMING, PRE_COPY, RUNNING_P2P, PRE_COPY_P2P } = MigrationState;

export class TestLifeCycle implements LifeCycle {
  readonly #machine: MigrationMachine;
  readonly flags: number;
  generation = 0;
  /** Arcs since the test looked last. */
  arcs: string[] = [];
  /** Called at each arc, before anything is done. */
  hook: (arc: string) => void = () => {};
  /** What is still to be read: in PRE_COPY until it is empty, in STOP_COPY after `final` was added. */
  stream: number[] = [];
  /** What STOP_COPY adds. */
  final: number[] = [];
  loaded: number[] = [];
  reads = 0;
  committed: number[] | undefined;

  constructor(flags = 7) {
    this.flags = flags;
    this.#machine = new MigrationMachine(flags, (from, to) => this.#act(from, to));
  }

  #act(from: MigrationState, to: MigrationState): void {
    const arc = `${migrationStateName(from)} ${migrationStateName(to)}`;
    this.arcs.push(arc);
    this.hook(arc);
    const saves = (state: MigrationState) =>
      state === PRE_COPY || state === PRE_COPY_P2P || state === STOP_COPY;
    if (saves(to) !== saves(from) || to === RESUMING || from === RESUMING) this.generation++;
    if (saves(from) && !saves(to)) this.stream = [];
    if (to === STOP_COPY) this.stream.push(...this.final);
    if (to === RESUMING) this.loaded = [];
    if (from === RESUMING && to === STOP) this.committed = this.loaded;
  }

  /** Fails the arc for good. */
  static broken(): never {
    throw new BrokenDeviceError(new RequestError(Errno.ENOSPC, 'no room'));
  }

  takeArcs(): string[] {
    return this.arcs.splice(0);
  }

  get state(): MigrationState {
    return this.#machine.state;
  }

  get runs(): boolean {
    return [RUNNING, PRE_COPY, RUNNING_P2P].includes(this.state as 2);
  }

  setState(target: MigrationState): Promise<void> {
    return this.#machine.setState(target);
  }

  reset(): void {
    this.generation++;
    this.stream = [];
    this.#machine.reset();
  }

  async breakDown(): Promise<void> {
    this.#machine.breakDown();
  }

  get dataSize(): number {
    return this.stream.length;
  }

  async read(size: number): Promise<Uint8Array[]> {
    this.reads++;
    const bytes = Uint8Array.from(this.stream.splice(0, size));
    // In parts, as a session gives them.
    const middle = bytes.length >> 1;
    return bytes.length === 0 ? [] : [bytes.subarray(0, middle), bytes.subarray(middle)];
  }

  write(bytes: Uint8Array): void {
    this.loaded.push(...bytes);
  }
}
