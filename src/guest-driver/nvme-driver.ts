// SPDX-License-Identifier: Apache-2.0
/**
 * An NVMe driver for a {@link GuestMachine}: does what a guest's own driver does, through guest memory alone, so that a
 * device server cannot tell the two apart. It can be paused between any two instructions and continue with another machine.
 */

import {
  AdminOpcode,
  Cc,
  CDW12_FUA,
  CQES,
  Csts,
  FeatureId,
  IdentifyCns,
  IoOpcode,
  LogPage,
  NSID,
  Register,
  SQES,
} from '../devices/nvme/spec/index.js';
import { asDevstateError, DevstateError } from '../errors.js';
import { DmaBuffer } from './dma-buffer.js';
import { type ControllerInfo, decodeController, decodeNamespace, type NamespaceInfo } from './identify.js';
import type { GuestMachine } from './machine.js';
import { PAGE_SIZE } from './page-allocator.js';
import { type DriverCounters, type NvmeCommand, type QueueOwner, QueuePair } from './queue-pair.js';

export interface NvmeDriverOptions {
  /** I/O queue pairs to ask for; the controller may give fewer. Default 1. */
  readonly queues?: number;
  /** Entries of each I/O queue, at most what the controller can. Default 128. */
  readonly queueEntries?: number;
  /** A command without completion for this long is given up. Milliseconds, default 30,000. */
  readonly timeoutMs?: number;
  /** How completions are noticed. Default `msix`. */
  readonly completion?: 'msix' | 'polling';
}

export interface WriteOptions {
  /** On stable storage before the command completes. */
  readonly forceUnitAccess?: boolean;
}

const ADMIN_ENTRIES = 32;
/** Most blocks of one command: NLB has 16 bits, 0's based. */
const MAX_BLOCKS = 0x10000;
/** CC.SHN: normal shutdown. */
const SHUTDOWN_NORMAL = 1 << 14;
/** CDW11 of the commands that create queues. */
const PHYSICALLY_CONTIGUOUS = 1;
const INTERRUPTS_ENABLED = 2;

export class NvmeDriver implements QueueOwner {
  readonly counters: DriverCounters = {
    submitted: 0,
    completed: 0,
    failed: 0,
    timedOut: 0,
    late: 0,
    interrupts: 0,
    doorbells: 0,
    bytesRead: 0,
    bytesWritten: 0,
    asyncEvents: 0,
  };
  readonly #timeoutMs: number;
  readonly #polling: boolean;
  #machine: GuestMachine;
  #queues: QueuePair[] = [];
  #next = 0;
  #controller: ControllerInfo | undefined;
  #namespace: NamespaceInfo | undefined;
  #pausedSince: number | undefined;
  #failed: DevstateError | undefined;
  #pollScheduled = false;
  readonly #clock: NodeJS.Timeout;
  #doorbellStride = 4;

  private constructor(machine: GuestMachine, options: NvmeDriverOptions) {
    this.#machine = machine;
    this.#timeoutMs = options.timeoutMs ?? 30_000;
    this.#polling = options.completion === 'polling';
    this.#clock = setInterval(() => this.#expire(), Math.min(1000, Math.max(10, this.#timeoutMs / 4)));
    this.#clock.unref();
  }

  /** Resets and enables the controller, identifies it and creates the queues. @throws DEVSTATE_E_GUEST_* */
  static async start(machine: GuestMachine, options: NvmeDriverOptions = {}): Promise<NvmeDriver> {
    const driver = new NvmeDriver(machine, options);
    try {
      await driver.#start(options);
    } catch (error) {
      driver.detach();
      throw error;
    }
    return driver;
  }

  /** The machine that the driver runs in at present. */
  get machine(): GuestMachine {
    return this.#machine;
  }

  get controller(): ControllerInfo {
    return this.#controller!;
  }

  get namespace(): NamespaceInfo {
    return this.#namespace!;
  }

  /** I/O queue pairs in use. */
  get queueCount(): number {
    return this.#queues.length - 1;
  }

  get paused(): boolean {
    return this.#pausedSince !== undefined;
  }

  /** Commands the device has, the waiting Asynchronous Event Request not counted. */
  get outstanding(): number {
    return this.#queues.slice(1).reduce((sum, queue) => sum + queue.outstanding, 0);
  }

  /** A buffer in guest memory. @param offset in its first page, a multiple of 4 */
  allocate(length: number, offset = 0): DmaBuffer {
    return DmaBuffer.allocate(this, length, offset);
  }

  async #start(options: NvmeDriverOptions): Promise<void> {
    const machine = this.#machine;
    const low = await machine.read32(Register.CAP);
    const high = await machine.read32(Register.CAP + 4);
    const readyTimeoutMs = ((low >>> 24) & 0xff) * 500;
    const minPageSize = 4096 * 2 ** ((high >>> 16) & 0xf);
    if (minPageSize > PAGE_SIZE) throw controllerError(`the controller needs pages of ${minPageSize} bytes`);
    this.#doorbellStride = 4 << (high & 0xf);

    await machine.write32(Register.CC, 0);
    await this.#waitStatus(Csts.RDY, 0, readyTimeoutMs);
    const admin = this.#addQueue(0, ADMIN_ENTRIES);
    await machine.write32(Register.AQA, ((ADMIN_ENTRIES - 1) << 16) | (ADMIN_ENTRIES - 1));
    await this.#write64(Register.ASQ, admin.sqAddress);
    await this.#write64(Register.ACQ, admin.cqAddress);
    await machine.write32(Register.CC, Cc.EN | (SQES << Cc.IOSQES_SHIFT) | (CQES << Cc.IOCQES_SHIFT));
    await this.#waitStatus(Csts.RDY, Csts.RDY, readyTimeoutMs);
    this.#adopt(machine);

    this.#controller = decodeController(await this.#identify(IdentifyCns.CONTROLLER, 0), minPageSize);
    this.#namespace = decodeNamespace(await this.#identify(IdentifyCns.NAMESPACE, NSID));
    await this.#createIoQueues(options, (low & 0xffff) + 1);
    // It would be polled for as long as the driver lives.
    if (!this.#polling) this.#awaitEvent();
  }

  /** Listens to the machine's interrupts, and to its end. */
  #adopt(machine: GuestMachine): void {
    if (!this.#polling) {
      for (let vector = 0; vector < machine.vectors; vector++) machine.onInterrupt(vector, this.#interrupted);
    }
    void machine.client.closed().then(() => {
      if (machine !== this.#machine) return;
      this.fail(new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', 'the device server has left the guest'));
    });
  }

  #addQueue(id: number, entries: number): QueuePair {
    const queue = new QueuePair(this, { id, entries, doorbellStride: this.#doorbellStride });
    this.#queues[id] = queue;
    return queue;
  }

  async #write64(register: number, value: number): Promise<void> {
    await this.#machine.write32(register, value >>> 0);
    await this.#machine.write32(register + 4, Math.floor(value / 2 ** 32));
  }

  async #waitStatus(mask: number, value: number, timeoutMs: number): Promise<void> {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      const status = await this.#machine.read32(Register.CSTS);
      if ((status & mask) === value) return;
      if ((status & Csts.CFS) !== 0) throw controllerError('the controller reports a fatal error (CSTS.CFS)');
      if (performance.now() > deadline) {
        throw controllerError(`CSTS is 0x${status.toString(16)} after ${timeoutMs} ms`);
      }
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  async #identify(cns: number, nsid: number): Promise<Uint8Array> {
    const buffer = this.allocate(PAGE_SIZE);
    await this.admin({ opcode: AdminOpcode.IDENTIFY, nsid, buffer, cdw10: cns });
    const bytes = buffer.bytes();
    buffer.free();
    return bytes;
  }

  async #createIoQueues(options: NvmeDriverOptions, maxEntries: number): Promise<void> {
    const wanted = options.queues ?? 1;
    const granted = await this.admin({
      opcode: AdminOpcode.SET_FEATURES,
      cdw10: FeatureId.NUMBER_OF_QUEUES,
      cdw11: ((wanted - 1) << 16) | (wanted - 1),
    });
    const count = Math.min(wanted, (granted & 0xffff) + 1, (granted >>> 16) + 1);
    const entries = Math.min(options.queueEntries ?? 128, maxEntries);
    for (let id = 1; id <= count; id++) {
      const queue = this.#addQueue(id, entries);
      const { vectors } = this.#machine;
      const vector = Math.min(id, Math.max(vectors - 1, 0));
      const interrupts = this.#polling || vectors === 0 ? 0 : INTERRUPTS_ENABLED;
      await this.admin({
        opcode: AdminOpcode.CREATE_IO_CQ,
        prp1: queue.cqAddress,
        cdw10: ((entries - 1) << 16) | id,
        cdw11: (vector << 16) | interrupts | PHYSICALLY_CONTIGUOUS,
      });
      await this.admin({
        opcode: AdminOpcode.CREATE_IO_SQ,
        prp1: queue.sqAddress,
        cdw10: ((entries - 1) << 16) | id,
        cdw11: (id << 16) | PHYSICALLY_CONTIGUOUS,
      });
    }
  }

  /** Keeps one Asynchronous Event Request with the controller, and reads the log page that each event points to. */
  #awaitEvent(): void {
    this.#queues[0]!.issue({ opcode: AdminOpcode.ASYNC_EVENT_REQUEST }, Infinity)
      .then(async (result) => {
        this.counters.asyncEvents++;
        await this.#readLog((result >>> 16) & 0xff);
        this.#awaitEvent();
      })
      .catch(() => {});
  }

  async #readLog(page: number): Promise<void> {
    const buffer = this.allocate(512);
    const dwords = (page === LogPage.ERROR_INFORMATION ? 64 : 512) / 4;
    await this.admin({
      opcode: AdminOpcode.GET_LOG_PAGE,
      nsid: 0xffffffff,
      buffer,
      cdw10: ((dwords - 1) << 16) | page,
    });
    buffer.free();
  }

  readonly #interrupted = (): void => {
    this.counters.interrupts++;
    this.#processAll();
  };

  #processAll(): void {
    for (const queue of this.#queues) if (this.#failed === undefined) queue.process();
  }

  /** Looks for completions once a turn of the event loop, while there is something to wait for. */
  #poll(): void {
    this.#pollScheduled = false;
    if (this.paused || this.#failed !== undefined) return;
    this.#processAll();
    if (this.#queues.some((queue) => queue.outstanding > 0)) this.#schedulePoll();
  }

  #schedulePoll(): void {
    if (!this.#polling || this.#pollScheduled) return;
    this.#pollScheduled = true;
    setImmediate(() => this.#poll());
  }

  #expire(): void {
    if (this.paused) return;
    const now = performance.now();
    for (const queue of this.#queues) queue.expire(now);
  }

  /** Any admin command; dword 0 of its completion. @throws DEVSTATE_E_GUEST_COMMAND, DEVSTATE_E_GUEST_TIMEOUT */
  admin(command: NvmeCommand): Promise<number> {
    return this.#issue(this.#queues[0]!, command);
  }

  /** Any I/O command, on I/O queue `queue` (from 1) or on each in turn. */
  io(command: NvmeCommand, queue?: number): Promise<number> {
    this.#next = (this.#next % this.queueCount) + 1;
    const chosen = this.#queues[queue ?? this.#next];
    if (chosen === undefined) throw new RangeError(`there is no I/O queue ${queue}`);
    return this.#issue(chosen, command);
  }

  #issue(queue: QueuePair, command: NvmeCommand): Promise<number> {
    if (this.#failed !== undefined) return Promise.reject(this.#failed);
    this.#schedulePoll();
    return queue.issue(command, this.#timeoutMs);
  }

  /** Reads blocks from `lba` on into the whole buffer, in several commands if one cannot hold it. */
  async read(lba: number, buffer: DmaBuffer): Promise<void> {
    await this.#transfer(IoOpcode.READ, lba, buffer, 0);
    this.counters.bytesRead += buffer.length;
  }

  /** Writes the whole buffer to blocks from `lba` on. */
  async write(lba: number, buffer: DmaBuffer, options: WriteOptions = {}): Promise<void> {
    await this.#transfer(IoOpcode.WRITE, lba, buffer, options.forceUnitAccess === true ? CDW12_FUA : 0);
    this.counters.bytesWritten += buffer.length;
  }

  #transfer(opcode: number, lba: number, buffer: DmaBuffer, flags: number): Promise<unknown> {
    const { blockSize } = this.namespace;
    if (buffer.length % blockSize !== 0) {
      throw new RangeError(`a buffer of ${buffer.length} bytes is not whole blocks of ${blockSize}`);
    }
    const step = Math.min(this.controller.maxTransfer, MAX_BLOCKS * blockSize);
    if (buffer.length <= step) return this.#transferPart(opcode, lba, buffer, flags);
    const parts: Promise<number>[] = [];
    for (let done = 0; done < buffer.length; done += step) {
      const part = buffer.slice(done, Math.min(step, buffer.length - done));
      parts.push(this.#transferPart(opcode, lba + done / blockSize, part, flags));
    }
    return Promise.all(parts);
  }

  #transferPart(opcode: number, lba: number, buffer: DmaBuffer, flags: number): Promise<number> {
    return this.io({ ...blocks(lba, buffer.length / this.namespace.blockSize, flags), opcode, buffer });
  }

  /** Everything written before is on stable storage when it settles. */
  async flush(): Promise<void> {
    await this.io({ opcode: IoOpcode.FLUSH, nsid: NSID });
  }

  /** Makes blocks read as zeros. */
  async writeZeroes(lba: number, count: number): Promise<void> {
    for (let done = 0; done < count; done += MAX_BLOCKS) {
      const part = Math.min(MAX_BLOCKS, count - done);
      await this.io({ ...blocks(lba + done, part, 0), opcode: IoOpcode.WRITE_ZEROES });
    }
  }

  /**
   * Stops the guest's processor, as a VMM does for a migration: at once no more entries, doorbells or completions are
   * looked at, whatever the device has continues. Settles when the device has taken every doorbell that was rung.
   */
  async pause(): Promise<void> {
    if (this.paused) return;
    this.#pausedSince = performance.now();
    this.#machine.holdInterrupts();
    await this.#machine.fence();
  }

  /**
   * Continues: where it was, or in `machine`, a successor of the one it was paused in, whose memory and device are as this
   * one's. Interrupts that were pending in the old machine are pending in the new one.
   */
  resume(machine: GuestMachine = this.#machine): void {
    if (this.#pausedSince === undefined) return;
    const pause = performance.now() - this.#pausedSince;
    if (machine !== this.#machine) {
      machine.holdInterrupts();
      machine.inject(this.#machine.takePending());
      this.#machine = machine;
      this.#adopt(machine);
    }
    this.#pausedSince = undefined;
    for (const queue of this.#queues) {
      queue.postpone(pause);
      queue.ringDoorbell();
    }
    machine.releaseInterrupts();
    for (const queue of this.#queues) queue.drainBacklog();
    this.#schedulePoll();
  }

  /** Part of {@link QueueOwner}. */
  fail(error: DevstateError): void {
    if (this.#failed !== undefined) return;
    this.#failed = asDevstateError(error);
    for (const queue of this.#queues) queue.abort(this.#failed);
  }

  /** Shuts the controller down in order (CC.SHN) and detaches. The machine stays. */
  async shutdown(): Promise<void> {
    const cc = await this.#machine.read32(Register.CC);
    await this.#machine.write32(Register.CC, cc | SHUTDOWN_NORMAL);
    await this.#waitStatus(Csts.SHST_MASK, Csts.SHST_COMPLETE, this.#timeoutMs);
    this.detach();
  }

  /** Lets go without telling the controller: commands that wait fail. */
  detach(): void {
    clearInterval(this.#clock);
    this.fail(
      new DevstateError('DEVSTATE_E_GUEST_CONTROLLER', 'the built-in driver has released the controller'),
    );
  }
}

/** Command dwords of an I/O command on `count` blocks. */
function blocks(lba: number, count: number, flags: number): Omit<NvmeCommand, 'opcode'> {
  return {
    nsid: NSID,
    cdw10: lba >>> 0,
    cdw11: Math.floor(lba / 2 ** 32),
    cdw12: flags | (count - 1),
  };
}

function controllerError(message: string): DevstateError {
  return new DevstateError('DEVSTATE_E_GUEST_CONTROLLER', message);
}
