// SPDX-License-Identifier: Apache-2.0
/** A guest without a VMM: memory, interrupts and an NVMe driver, for demonstrations, benchmarks and tests. */

export { BLOCK_BYTES, BlockWriter, type BlockWriterOptions } from './block-writer.js';
export { type CounterCompletion, CounterDriver } from './counter-driver.js';
export { type DataPointer, DmaBuffer, describeByPrps, type MemoryOwner } from './dma-buffer.js';
export type { ControllerInfo, NamespaceInfo } from './identify.js';
export { GuestMachine, type GuestMachineOptions } from './machine.js';
export { type GuestPlace, type MoveOptions, type MoveReport, moveGuest } from './move.js';
export { NvmeDriver, type NvmeDriverOptions, type WriteOptions } from './nvme-driver.js';
export { PAGE_SIZE, PageAllocator } from './page-allocator.js';
export type { DriverCounters, NvmeCommand } from './queue-pair.js';
export { GuestRam, RAM_BASE } from './ram.js';
