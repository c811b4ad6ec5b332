// SPDX-License-Identifier: Apache-2.0
/**
 * The controller in a crash journal.
 *
 * | records              | put                                                                     |
 * | -------------------- | ----------------------------------------------------------------------- |
 * | identity … commands  | when a register was written, or an admin command ended: as the state format has them |
 * | indexes              | when a queue moved: heads, tails, phases of all queues, counters        |
 * | one of 2048 commands | when a command is under way at the end of the transaction that took it, and when it has ended |
 *
 * Most commands are done in the transaction that takes them, and cost nothing here. One that was under way in a crash is
 * carried out again: the guest has not been told of it, so it does the same to the same blocks.
 */

import type { DeviceJournal } from '../../../device/index.js';
import { Errno, RequestError } from '../../../wire/index.js';
import { Csts, SQ_ENTRY_SIZE } from '../spec/index.js';
import type { Command } from './command.js';
import {
  type CommandKeeper,
  type InheritedCommand,
  MAX_OUTSTANDING,
  NOT_KEPT,
  type QueueEngine,
} from './engine.js';
import type { Health } from './health.js';
import type { ControllerState } from './state.js';
import { AlderRecord, AlderRecords, encodeAlderState, type StatefulController } from './state-format.js';

/** Slow records, in this order. */
const SLOW = [
  { type: AlderRecord.IDENTITY, capacity: 16 * 1024 },
  { type: AlderRecord.FUNCTION, capacity: 64 * 1024 },
  { type: AlderRecord.QUEUES, capacity: 256 * 1024 },
  { type: AlderRecord.ADMIN, capacity: 64 * 1024 },
  // Those that came with a state and have not been begun.
  { type: AlderRecord.COMMANDS, capacity: 1024 * 1024 },
] as const;
const INDEXES = SLOW.length;
const FIRST_COMMAND = INDEXES + 1;

/** Words of one pair of queues: head and tail of the submission queue, of the completion queue, and its phase. 8 × u16. */
const PAIR_WORDS = 8;
const COUNTERS = 5;
/** `sq u32, reserved u32, entry` */
const COMMAND_HEADER = 8;
const NOTHING = new Uint8Array(0);

export interface KeptController extends StatefulController {
  readonly config: { readonly bytes: Uint8Array };
  readonly engine: QueueEngine;
  readonly health: Health;
}

export class AlderCrashRecords implements DeviceJournal, CommandKeeper {
  readonly records: DeviceJournal['records'];
  readonly #controller: KeptController;
  readonly #queues: number;
  readonly #indexes: Uint8Array;
  readonly #words: Uint16Array;
  readonly #counters: Float64Array;
  readonly #command = new Uint8Array(COMMAND_HEADER + SQ_ENTRY_SIZE);
  readonly #commandView = new DataView(this.#command.buffer);
  /** Taken in the transaction under way. */
  readonly #fresh = new Set<Command>();
  /** Records of commands that have ended. */
  #ended: number[] = [];
  readonly #used = new Set<number>();
  readonly #free: number[] = [];
  #slowChanged = true;
  #moved = true;

  /** @param queues pairs, the admin queues included */
  constructor(controller: KeptController, queues: number) {
    this.#controller = controller;
    this.#queues = queues;
    this.#indexes = new Uint8Array(queues * PAIR_WORDS * 2 + COUNTERS * 8);
    this.#words = new Uint16Array(this.#indexes.buffer, 0, queues * PAIR_WORDS);
    this.#counters = new Float64Array(this.#indexes.buffer, queues * PAIR_WORDS * 2, COUNTERS);
    this.records = [
      ...SLOW.map(({ type, capacity }) => ({ name: `record ${type.toString(16)}`, capacity })),
      { name: 'indexes', capacity: this.#indexes.length },
      ...Array.from({ length: MAX_OUTSTANDING }, (_, index) => ({
        name: `command ${index}`,
        capacity: this.#command.length,
      })),
    ];
    for (let record = MAX_OUTSTANDING - 1; record >= 0; record--) this.#free.push(record);
  }

  taken(command: Command): void {
    this.#moved = true;
    if (command.record === NOT_KEPT) this.#fresh.add(command);
  }

  ended(command: Command): void {
    this.#moved = true;
    if (command.record === NOT_KEPT) this.#fresh.delete(command);
    else this.#ended.push(command.record);
    command.record = NOT_KEPT;
  }

  cleared(): void {
    this.#ended = [...this.#used];
    this.changed();
  }

  changed(): void {
    this.#slowChanged = true;
    this.#moved = true;
  }

  /** A doorbell rang. */
  moved(): void {
    this.#moved = true;
  }

  save(put: (record: number, bytes: Uint8Array) => void): void {
    if (this.#slowChanged) {
      this.#slowChanged = false;
      this.#saveSlow(put);
    }
    if (!this.#moved) return;
    this.#moved = false;
    this.#saveIndexes();
    put(INDEXES, this.#indexes);
    for (const record of this.#ended) {
      put(FIRST_COMMAND + record, NOTHING);
      this.#used.delete(record);
      this.#free.push(record);
    }
    this.#ended.length = 0;
    for (const command of this.#fresh) this.#saveCommand(command, put);
    this.#fresh.clear();
  }

  #saveSlow(put: (record: number, bytes: Uint8Array) => void): void {
    const { parameters } = this.#controller;
    const state = this.#controller.captureState();
    // A shutdown that is under way begins anew.
    if ((state.registers.csts & Csts.SHST_MASK) === Csts.SHST_OCCURRING)
      state.registers.csts &= ~Csts.SHST_MASK;
    const commands = this.#controller.engine.inherited.filter(({ record }) => record === undefined);
    const payloads = new Map<number, Uint8Array>();
    for (const { type, payload } of encodeAlderState({ ...state, commands: [...commands] }, parameters))
      payloads.set(type, payload);
    for (const [index, { type }] of SLOW.entries()) put(index, payloads.get(type) ?? NOTHING);
  }

  #saveIndexes(): void {
    const { engine, health } = this.#controller;
    const words = this.#words;
    for (let id = 0; id < this.#queues; id++) {
      const sq = engine.submission[id];
      const cq = engine.completion[id];
      const at = id * PAIR_WORDS;
      words[at] = sq?.head ?? 0;
      words[at + 1] = sq?.tail ?? 0;
      words[at + 2] = cq?.head ?? 0;
      words[at + 3] = cq?.tail ?? 0;
      words[at + 4] = cq?.phase ?? 0;
    }
    const { bytesRead, bytesWritten, readCommands, writeCommands, mediaErrors } = health.counters;
    this.#counters.set([bytesRead, bytesWritten, readCommands, writeCommands, mediaErrors]);
  }

  #saveCommand(command: Command, put: (record: number, bytes: Uint8Array) => void): void {
    const record = this.#free.pop();
    // There are as many as can be under way.
    if (record === undefined) throw new RequestError(Errno.ENOSPC, 'too many commands are under way');
    command.record = record;
    this.#used.add(record);
    this.#commandView.setUint32(0, command.sq.id, true);
    this.#command.set(new Uint8Array(command.words.buffer), COMMAND_HEADER);
    put(FIRST_COMMAND + record, this.#command);
  }

  restore(get: (record: number) => Uint8Array | undefined): void {
    const records = new AlderRecords();
    for (const [index, { type }] of SLOW.entries()) {
      const payload = get(index);
      if (payload !== undefined && payload.length > 0) records.add({ type, payload });
    }
    const state = records.finish(this.#controller.parameters);
    const indexes = get(INDEXES);
    if (indexes !== undefined) this.#restoreIndexes(state, indexes);
    this.#controller.restoreState({ ...state, config: this.#controller.config.bytes.slice() });
    const { engine } = this.#controller;
    engine.inherited = [...engine.inherited, ...this.#restoreCommands(get)];
    this.#slowChanged = false;
    this.#moved = false;
  }

  #restoreIndexes(state: ControllerState, indexes: Uint8Array): void {
    this.#indexes.set(indexes);
    const words = this.#words;
    for (const sq of state.submission) {
      sq.head = words[sq.id * PAIR_WORDS]!;
      sq.tail = words[sq.id * PAIR_WORDS + 1]!;
    }
    for (const cq of state.completion) {
      cq.head = words[cq.id * PAIR_WORDS + 2]!;
      cq.tail = words[cq.id * PAIR_WORDS + 3]!;
      cq.phase = words[cq.id * PAIR_WORDS + 4]!;
    }
    const [bytesRead, bytesWritten, readCommands, writeCommands, mediaErrors] = this.#counters as unknown as [
      number,
      number,
      number,
      number,
      number,
    ];
    state.health.counters = { bytesRead, bytesWritten, readCommands, writeCommands, mediaErrors };
  }

  #restoreCommands(get: (record: number) => Uint8Array | undefined): InheritedCommand[] {
    const commands: InheritedCommand[] = [];
    this.#ended = [];
    this.#fresh.clear();
    this.#used.clear();
    this.#free.length = 0;
    for (let record = MAX_OUTSTANDING - 1; record >= 0; record--) {
      const kept = get(FIRST_COMMAND + record);
      if (kept === undefined || kept.length === 0) {
        this.#free.push(record);
        continue;
      }
      this.#used.add(record);
      const sq = new DataView(kept.buffer, kept.byteOffset).getUint32(0, true);
      commands.unshift({ record, sq, entry: kept.subarray(COMMAND_HEADER) });
    }
    return commands;
  }
}
