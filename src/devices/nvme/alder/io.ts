// SPDX-License-Identifier: Apache-2.0
/** NVM command set (NVMe 1.4, section 6): the data path. */

import type { GuestMemory, MemoryRange } from '../../../device/index.js';
import { DevstateError } from '../../../errors.js';
import { Comparing } from '../comparing.js';
import type { Extent } from '../image-file.js';
import {
  CDW0_FUSE_PSDT,
  CDW11_ATTRIBUTE_DEALLOCATE,
  CDW12_DEALLOCATE,
  CDW12_FUA,
  counted,
  DSM_RANGE_SIZE,
  Dword,
  IoOpcode,
  MIN_PAGE_SIZE,
  NSID,
  NSID_ALL,
  Status,
} from '../spec/index.js';
import { type Command, CommandError } from './command.js';
import type { Controller } from './controller.js';
import { collectPrps, type Ranges, readFromPrps } from './prp.js';

/** Longer reads go through the thread pool even when they are cached: copying them would hold up everything else. */
const DIRECT_READ_MAX = 256 * 1024;

export class IoCommands {
  readonly #controller: Controller;
  readonly #blockSize: number;
  readonly #blocks: number;
  readonly #maximumTransfer: number;
  readonly #comparing: Comparing;
  /** Reused by transfers that are done before the next command starts. */
  readonly #ranges: MemoryRange[] = [];

  constructor(controller: Controller) {
    const { parameters } = controller;
    this.#controller = controller;
    this.#blockSize = parameters.lba_size;
    this.#blocks = parameters.namespace_size / parameters.lba_size;
    this.#comparing = new Comparing(controller.image);
    this.#maximumTransfer = MIN_PAGE_SIZE << parameters.mdts;
  }

  /** Starts a command; it ends now or later. @throws to fail it */
  execute(command: Command): void {
    const cdw0 = command.dword(Dword.CDW0);
    if ((cdw0 & CDW0_FUSE_PSDT) !== 0) throw new CommandError(Status.INVALID_FIELD);
    const { opcode, nsid } = command;
    if (nsid !== NSID && !(opcode === IoOpcode.FLUSH && nsid === NSID_ALL) && knownOpcodes.has(opcode)) {
      throw new CommandError(Status.INVALID_NAMESPACE);
    }
    switch (opcode) {
      case IoOpcode.READ:
        this.#read(command);
        return;
      case IoOpcode.WRITE:
        this.#write(command);
        return;
      case IoOpcode.FLUSH:
        this.#finish(command, this.#controller.image.flush(), Status.WRITE_FAULT);
        return;
      case IoOpcode.COMPARE:
        this.#finish(command, this.#compare(command), Status.UNRECOVERED_READ_ERROR);
        return;
      case IoOpcode.WRITE_ZEROES:
        this.#finish(command, this.#writeZeroes(command), Status.WRITE_FAULT);
        return;
      case IoOpcode.DATASET_MANAGEMENT:
        this.#finish(command, this.#datasetManagement(command), Status.WRITE_FAULT);
        return;
      default:
        throw new CommandError(Status.INVALID_OPCODE);
    }
  }

  #read(command: Command): void {
    const extent = this.#extent(command, this.#maximumTransfer);
    const { counters } = this.#controller.health;
    counters.readCommands = counted(counters.readCommands);
    counters.bytesRead = counted(counters.bytesRead, extent.length);
    const ranges = this.#collect(command, extent.length);
    const { memory } = this.#controller.host;
    if (Array.isArray(ranges) && extent.length <= DIRECT_READ_MAX) {
      const buffers = directViews(memory, ranges, 'write');
      if (buffers !== undefined && this.#controller.image.readNow(buffers, extent.position, extent.length)) {
        for (const range of ranges) memory.written(range.address, range.length);
        this.#controller.engine.complete(command, Status.SUCCESS);
        return;
      }
    }
    const later = Array.isArray(ranges) ? ranges.slice() : ranges;
    this.#finish(command, this.#readLater(later, extent), Status.UNRECOVERED_READ_ERROR);
  }

  async #readLater(ranges: Ranges, extent: Extent): Promise<void> {
    const pin = await this.#controller.host.memory.pin(await ranges, 'write');
    try {
      await this.#controller.image.read(pin.buffers, extent.position);
    } finally {
      await pin.release();
    }
  }

  #write(command: Command): void {
    const extent = this.#extent(command, this.#maximumTransfer);
    const { health, host, image, engine } = this.#controller;
    const { counters } = health;
    counters.writeCommands = counted(counters.writeCommands);
    counters.bytesWritten = counted(counters.bytesWritten, extent.length);
    const ranges = this.#collect(command, extent.length);
    const durable = this.#isDurable(command);
    if (Array.isArray(ranges) && !durable && extent.length <= DIRECT_READ_MAX) {
      const buffers = directViews(host.memory, ranges, 'read');
      if (buffers !== undefined && image.writeNow(buffers, extent.position, extent.length)) {
        engine.complete(command, Status.SUCCESS);
        return;
      }
    }
    const later = Array.isArray(ranges) ? ranges.slice() : ranges;
    this.#finish(command, this.#writeLater(later, extent, durable), Status.WRITE_FAULT);
  }

  async #writeLater(ranges: Ranges, extent: Extent, durable: boolean): Promise<void> {
    const { host, image } = this.#controller;
    const pin = await host.memory.pin(await ranges, 'read');
    try {
      await image.write(pin.buffers, extent.position);
    } finally {
      await pin.release();
    }
    if (durable) await image.flush();
  }

  async #compare(command: Command): Promise<void> {
    const { health, host } = this.#controller;
    const extent = this.#extent(command, this.#maximumTransfer);
    health.counters.readCommands = counted(health.counters.readCommands);
    const collected = this.#collect(command, extent.length);
    const ranges = Array.isArray(collected) ? collected.slice() : await collected;
    const equal = await this.#comparing.equals(() => host.memory.pin(ranges, 'read'), extent.position);
    if (!equal) throw new CommandError(Status.COMPARE_FAILURE);
  }

  async #writeZeroes(command: Command): Promise<void> {
    const { image, health } = this.#controller;
    // Takes no data, so MDTS does not bound it.
    const { position, length } = this.#extent(command, Number.MAX_SAFE_INTEGER);
    health.counters.writeCommands = counted(health.counters.writeCommands);
    const deallocate = (command.dword(Dword.CDW12) & CDW12_DEALLOCATE) !== 0;
    const durable = this.#isDurable(command);
    if (!deallocate || !(await image.punchHole(position, length))) await image.writeZeroes(position, length);
    if (durable) await image.flush();
  }

  async #datasetManagement(command: Command): Promise<void> {
    const { engine, host, image, registers } = this.#controller;
    const count = (command.dword(Dword.CDW10) & 0xff) + 1;
    const deallocate = (command.dword(Dword.CDW11) & CDW11_ATTRIBUTE_DEALLOCATE) !== 0;
    const bytes = await readFromPrps(host.memory, command, count * DSM_RANGE_SIZE, registers.pageSize);
    const view = new DataView(bytes.buffer);
    const extents: Extent[] = [];
    for (let at = 0; at < bytes.length; at += DSM_RANGE_SIZE) {
      const blocks = view.getUint32(at + 4, true);
      const first = view.getUint32(at + 8, true) + view.getUint32(at + 12, true) * 2 ** 32;
      if (first + blocks > this.#blocks) throw new CommandError(Status.LBA_OUT_OF_RANGE);
      if (blocks > 0) extents.push({ position: first * this.#blockSize, length: blocks * this.#blockSize });
    }
    // The other attributes are hints. So is this one: where holes cannot be punched, the blocks keep their data.
    if (deallocate) await image.deallocate(extents, () => engine.fetching);
  }

  /** Starting LBA and 0's based number of blocks, checked. */
  #extent(command: Command, maximum: number): Extent {
    const blocks = (command.dword(Dword.CDW12) & 0xffff) + 1;
    const first = command.qword(Dword.CDW10);
    const length = blocks * this.#blockSize;
    if (length > maximum) throw new CommandError(Status.INVALID_FIELD);
    if (first + blocks > this.#blocks) throw new CommandError(Status.LBA_OUT_OF_RANGE);
    return { position: first * this.#blockSize, length };
  }

  /** Whether the data must be on stable storage before the command ends: FUA, or the write cache is off. */
  #isDurable(command: Command): boolean {
    const { volatileWriteCache } = this.#controller.features.values;
    return volatileWriteCache === 0 || (command.dword(Dword.CDW12) & CDW12_FUA) !== 0;
  }

  /** The data's ranges: in the shared array (valid until the next command), or later in one of their own. */
  #collect(command: Command, length: number): Ranges {
    this.#ranges.length = 0;
    const { host, registers } = this.#controller;
    return collectPrps(host.memory, command, length, registers.pageSize, this.#ranges);
  }

  /** Completes a command when `work` settles; a failed system call becomes `ioStatus`. */
  #finish(command: Command, work: Promise<void>, ioStatus: number): void {
    const { engine, health, host } = this.#controller;
    work.then(
      () => engine.complete(command, Status.SUCCESS),
      (error: unknown) => {
        if (!(error instanceof DevstateError)) return engine.completeError(command, error);
        health.counters.mediaErrors = counted(health.counters.mediaErrors);
        host.log('error', `a command of the guest has failed: ${error.message} (${error.code})`);
        engine.complete(command, ioStatus);
      },
    );
  }
}

const knownOpcodes: ReadonlySet<number> = new Set(Object.values(IoOpcode));

/** Guest memory itself, if every range is mapped as one piece. @throws DmaFault */
function directViews(
  memory: GuestMemory,
  ranges: readonly MemoryRange[],
  access: 'read' | 'write',
): Uint8Array[] | undefined {
  const views: Uint8Array[] = [];
  for (const { address, length } of ranges) {
    const view = memory.view(address, length, access);
    if (view === undefined) return undefined;
    views.push(view);
  }
  return views;
}
