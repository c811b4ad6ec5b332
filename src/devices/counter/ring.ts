// SPDX-License-Identifier: Apache-2.0
/**
 * Takes commands from a ring in guest memory, some at a time and not within the guest's access, and writes completions
 * to another: each batch is one transaction.
 */

import type { DeviceHost } from '../../device/index.js';
import { COMMAND_LENGTH, COMPLETION_LENGTH, COMPLETION_VECTOR } from './registers.js';
import type { CounterState } from './state.js';

/** Commands of one transaction. */
const BATCH = 16;

export interface RingOwner {
  state(): CounterState;
  /** @returns `CounterStatus` */
  execute(opcode: number, operand: bigint, expected: bigint): number;
}

export class CounterRing {
  readonly #host: DeviceHost;
  readonly #owner: RingOwner;
  readonly #command = new DataView(new ArrayBuffer(COMMAND_LENGTH));
  readonly #commandBytes = new Uint8Array(this.#command.buffer);
  readonly #completion = new DataView(new ArrayBuffer(COMPLETION_LENGTH));
  readonly #completionBytes = new Uint8Array(this.#completion.buffer);
  #running = true;
  #scheduled: NodeJS.Immediate | undefined;

  constructor(host: DeviceHost, owner: RingOwner) {
    this.#host = host;
    this.#owner = owner;
  }

  start(): void {
    this.#running = true;
    this.serve();
  }

  /** No command is taken any more. */
  stop(): void {
    this.#running = false;
    if (this.#scheduled !== undefined) clearImmediate(this.#scheduled);
    this.#scheduled = undefined;
  }

  /** There may be commands. */
  serve(): void {
    const { head, tail } = this.#owner.state();
    if (!this.#running || head === tail || this.#scheduled !== undefined) return;
    this.#scheduled = setImmediate(() => {
      this.#scheduled = undefined;
      this.#host.journal.transaction(() => this.#takeBatch());
      this.serve();
    });
  }

  #takeBatch(): void {
    const state = this.#owner.state();
    for (let left = BATCH; left > 0 && state.head !== state.tail; left--) {
      try {
        // Mapped memory is read at once; a ring that is not in it cannot be served.
        if (
          this.#host.memory.read(state.commands + state.head * COMMAND_LENGTH, this.#commandBytes) !==
          undefined
        )
          throw new Error('the command ring is not in memory that can be mapped');
      } catch (error) {
        this.#host.log('error', `ring: ${error instanceof Error ? error.message : error}`);
        state.tail = state.head;
        return;
      }
      this.#take(state);
    }
    this.#host.interrupts.triggerMsix(COMPLETION_VECTOR);
  }

  #take(state: CounterState): void {
    const command = this.#command;
    const status = this.#owner.execute(
      command.getUint32(0, true),
      command.getBigUint64(8, true),
      command.getBigUint64(16, true),
    );
    const completion = this.#completion;
    completion.setUint32(0, command.getUint32(4, true), true);
    completion.setUint32(4, status, true);
    completion.setBigUint64(8, state.value, true);
    completion.setUint32(28, state.phase, true);
    this.#host.journal.write(state.completions + state.head * COMPLETION_LENGTH, this.#completionBytes);
    state.head++;
    if (state.head < state.entries) return;
    state.head = 0;
    state.phase ^= 1;
  }
}
