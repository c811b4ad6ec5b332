// SPDX-License-Identifier: Apache-2.0
/**
 * One submission queue and its completion queue, as a driver works them (NVMe 1.4, section 4.1):
 *
 *     issue ─▶ entry at tail ─▶ doorbell (one for all of a turn)        process ◀─ phase bit at head ◀─ interrupt
 *       └─ full or paused ─▶ backlog ◀──────────── room ───────────────────┘
 *
 * All that the device sees is in guest memory; what is here is the driver's own memory, and survives a migration as the
 * guest's does.
 */

import {
  CQ_ENTRY_SIZE,
  DOORBELL_BASE,
  SQ_ENTRY_SIZE,
  STATUS_MASK,
  Status,
} from '../devices/nvme/spec/index.js';
import { DevstateError } from '../errors.js';
import { writeU64 } from '../wire/index.js';
import { type DataPointer, type DmaBuffer, describeByPrps, type MemoryOwner } from './dma-buffer.js';
import type { GuestMachine } from './machine.js';
import { PAGE_SIZE } from './page-allocator.js';

/** A command as its issuer describes it; dwords that are left out are 0. */
export interface NvmeCommand {
  readonly opcode: number;
  readonly nsid?: number;
  /** Data from or to the device, described by PRPs. */
  readonly buffer?: DmaBuffer;
  /** Instead of a buffer: these very PRP entries. */
  readonly prp1?: number;
  readonly prp2?: number;
  readonly cdw10?: number;
  readonly cdw11?: number;
  readonly cdw12?: number;
  readonly cdw13?: number;
  readonly cdw14?: number;
  readonly cdw15?: number;
}

/** What happened, over the driver's life. */
export interface DriverCounters {
  submitted: number;
  completed: number;
  /** Commands that completed with an error status. */
  failed: number;
  /** Commands given up because no completion came in time. */
  timedOut: number;
  /** Completions of commands that had been given up. */
  late: number;
  interrupts: number;
  doorbells: number;
  bytesRead: number;
  bytesWritten: number;
  asyncEvents: number;
}

/** What a queue pair needs of the driver. */
export interface QueueOwner extends MemoryOwner {
  readonly machine: GuestMachine;
  readonly counters: DriverCounters;
  readonly paused: boolean;
  /** The driver cannot continue: the connection is gone, or the controller does what it must not. */
  fail(error: DevstateError): void;
}

export interface QueueShape {
  /** Queue identifier of both queues; 0 for admin. */
  readonly id: number;
  readonly entries: number;
  /** Bytes from one doorbell to the next: 4 << CAP.DSTRD. */
  readonly doorbellStride: number;
}

interface Pending {
  readonly command: NvmeCommand;
  /** Milliseconds; Infinity for a command that may stay for ever. */
  readonly timeoutMs: number;
  readonly resolve: (result: number) => void;
  readonly reject: (error: DevstateError) => void;
}

/** A command the device has. */
interface Slot extends Pending {
  readonly lists: readonly number[];
  /** On the clock of performance.now(), ms. */
  deadline: number;
  /** Its issuer has been told of a time-out; the device may still use its memory. */
  abandoned: boolean;
}

/** Dword 3 of a completion: command identifier, then phase, then status. */
const PHASE = 0x10000;

export class QueuePair {
  readonly id: number;
  readonly entries: number;
  /** Guest-physical addresses of the rings. */
  readonly sqAddress: number;
  readonly cqAddress: number;
  readonly #owner: QueueOwner;
  readonly #sqDoorbell: number;
  readonly #cqDoorbell: number;
  /** By command identifier. */
  readonly #slots: (Slot | undefined)[];
  readonly #freeIds: number[] = [];
  #backlog: Pending[] = [];
  #outstanding = 0;
  #tail = 0;
  #head = 0;
  #phase = PHASE;
  /** The tail has moved since the doorbell was rung. */
  #doorbellDue = false;

  constructor(owner: QueueOwner, shape: QueueShape) {
    this.#owner = owner;
    this.id = shape.id;
    this.entries = shape.entries;
    const { pages } = owner.machine;
    this.sqAddress = pages.contiguous(Math.ceil((shape.entries * SQ_ENTRY_SIZE) / PAGE_SIZE));
    this.cqAddress = pages.contiguous(Math.ceil((shape.entries * CQ_ENTRY_SIZE) / PAGE_SIZE));
    this.#sqDoorbell = DOORBELL_BASE + 2 * shape.id * shape.doorbellStride;
    this.#cqDoorbell = this.#sqDoorbell + shape.doorbellStride;
    // One entry fewer than the ring has: a full ring would look empty.
    this.#slots = new Array<Slot | undefined>(shape.entries - 1).fill(undefined);
    for (let id = shape.entries - 2; id >= 0; id--) this.#freeIds.push(id);
  }

  /** Commands the device has. */
  get outstanding(): number {
    return this.#outstanding;
  }

  /** Issues a command, or keeps it until there is room. Dword 0 of its completion. @throws DEVSTATE_E_GUEST_* */
  issue(command: NvmeCommand, timeoutMs: number): Promise<number> {
    return new Promise((resolve, reject) => {
      this.#backlog.push({ command, timeoutMs, resolve, reject });
      this.drainBacklog();
    });
  }

  /** Issues what waits, as far as there is room. */
  drainBacklog(): void {
    if (this.#owner.paused) return;
    let taken = 0;
    while (taken < this.#backlog.length && this.#freeIds.length > 0) this.#start(this.#backlog[taken++]!);
    if (taken === this.#backlog.length) this.#backlog = [];
    else if (taken > 0) this.#backlog = this.#backlog.slice(taken);
  }

  #start(pending: Pending): void {
    const { ram, pages } = this.#owner.machine;
    const { command } = pending;
    let pointer: DataPointer = { prp1: command.prp1 ?? 0, prp2: command.prp2 ?? 0, lists: [] };
    try {
      if (command.buffer !== undefined) pointer = describeByPrps(command.buffer, ram, pages);
    } catch (error) {
      pending.reject(error as DevstateError);
      return;
    }
    const id = this.#freeIds.pop()!;
    const address = this.sqAddress + SQ_ENTRY_SIZE * this.#tail;
    const at = ram.offset(address, SQ_ENTRY_SIZE);
    const { view } = ram;
    ram.bytes.fill(0, at, at + SQ_ENTRY_SIZE);
    view.setUint32(at, command.opcode | (id << 16), true);
    view.setUint32(at + 4, command.nsid ?? 0, true);
    writeU64(view, at + 24, pointer.prp1);
    writeU64(view, at + 32, pointer.prp2);
    view.setUint32(at + 40, command.cdw10 ?? 0, true);
    view.setUint32(at + 44, command.cdw11 ?? 0, true);
    view.setUint32(at + 48, command.cdw12 ?? 0, true);
    view.setUint32(at + 52, command.cdw13 ?? 0, true);
    view.setUint32(at + 56, command.cdw14 ?? 0, true);
    view.setUint32(at + 60, command.cdw15 ?? 0, true);
    ram.touch(address, SQ_ENTRY_SIZE);
    this.#tail = (this.#tail + 1) % this.entries;
    const deadline = performance.now() + pending.timeoutMs;
    this.#slots[id] = { ...pending, lists: pointer.lists, deadline, abandoned: false };
    this.#outstanding++;
    this.#owner.counters.submitted++;
    if (this.#doorbellDue) return;
    this.#doorbellDue = true;
    queueMicrotask(() => this.ringDoorbell());
  }

  /** Tells the device of new entries, unless the guest is paused: then that is for later, as it is for a stopped CPU. */
  ringDoorbell(): void {
    if (!this.#doorbellDue || this.#owner.paused) return;
    this.#doorbellDue = false;
    this.#post(this.#sqDoorbell, this.#tail);
  }

  #post(register: number, value: number): void {
    this.#owner.counters.doorbells++;
    this.#owner.machine.post32(register, value).catch((error: DevstateError) => this.#owner.fail(error));
  }

  /** Takes the completions that have come; how many. */
  process(): number {
    const { ram } = this.#owner.machine;
    let count = 0;
    for (;;) {
      const at = ram.offset(this.cqAddress + CQ_ENTRY_SIZE * this.#head, CQ_ENTRY_SIZE);
      const last = ram.view.getUint32(at + 12, true);
      if ((last & PHASE) !== this.#phase) break;
      this.#head++;
      if (this.#head === this.entries) {
        this.#head = 0;
        this.#phase ^= PHASE;
      }
      count++;
      if (!this.#complete(last & 0xffff, (last >>> 17) & STATUS_MASK, ram.view.getUint32(at, true))) break;
    }
    if (count > 0) {
      this.#post(this.#cqDoorbell, this.#head);
      this.drainBacklog();
    }
    return count;
  }

  #complete(id: number, status: number, result: number): boolean {
    const slot = this.#slots[id];
    if (slot === undefined) {
      this.#owner.fail(
        new DevstateError(
          'DEVSTATE_E_GUEST_CONTROLLER',
          `the controller completed command ${id} of queue ${this.id}, which it does not have; its state is wrong`,
        ),
      );
      return false;
    }
    this.#slots[id] = undefined;
    this.#freeIds.push(id);
    this.#outstanding--;
    this.#owner.machine.pages.free(slot.lists);
    const { counters } = this.#owner;
    if (slot.abandoned) {
      counters.late++;
      return true;
    }
    counters.completed++;
    if (status === Status.SUCCESS) slot.resolve(result);
    else {
      counters.failed++;
      slot.reject(
        new DevstateError(
          'DEVSTATE_E_GUEST_COMMAND',
          `the controller failed command 0x${slot.command.opcode.toString(16)} of queue ${this.id} with status 0x${status.toString(16)}`,
        ),
      );
    }
    return true;
  }

  /** Gives up commands whose time is over. */
  expire(now: number): void {
    for (const slot of this.#slots) {
      if (slot === undefined || slot.abandoned || slot.deadline > now) continue;
      slot.abandoned = true;
      this.#owner.counters.timedOut++;
      slot.reject(
        new DevstateError(
          'DEVSTATE_E_GUEST_TIMEOUT',
          `no completion of command 0x${slot.command.opcode.toString(16)} of queue ${this.id} within ${slot.timeoutMs} ms`,
        ),
      );
    }
  }

  /** The guest stood still for so long: its clock did, too. */
  postpone(milliseconds: number): void {
    for (const slot of this.#slots) if (slot !== undefined) slot.deadline += milliseconds;
  }

  /** Rejects everything that has not ended. */
  abort(error: DevstateError): void {
    const backlog = this.#backlog;
    this.#backlog = [];
    for (const pending of backlog) pending.reject(error);
    for (const slot of this.#slots) {
      if (slot === undefined || slot.abandoned) continue;
      slot.abandoned = true;
      slot.reject(error);
    }
  }
}
