// SPDX-License-Identifier: Apache-2.0
/**
 * What an author of a vfio-user device reads. Implement `Device`, and serve it:
 *
 *     class Scratch implements Device {
 *       readonly model = { uri: 'example.org/scratch', parameters: {} };
 *       readonly producer = { name: 'example/scratch', version: '1.0' };
 *       readonly bars: readonly Bar[] = [{ index: 0, size: 4096, kind: 'memory32' }];
 *       readonly interruptCounts = { intx: false, msi: 0, msix: 0 };
 *       readonly config = new PciConfigSpace({ vendorId: 0x1b36, deviceId: 0x00fd, classCode: 0xff0000 }, this.bars);
 *       readonly registers = new Uint8Array(4096);
 *       readonly formats = [new RecordFormat({
 *         uuid: '2e3f5a6c-6a0e-4a55-9d0b-6a1d4c1b7f10', name: 'org.example.scratch', version: { major: 1, minor: 0 },
 *         records: { registers: { type: 0x10000, length: 4096 } },
 *         save: () => ({ registers: this.registers }),
 *         load: ({ registers }) => this.registers.set(registers),
 *       })];
 *       attach(): void {}
 *       readRegion(_bar: number, at: number, target: Uint8Array): void { target.set(this.registers.subarray(at, at + target.length)); }
 *       writeRegion(_bar: number, at: number, data: Uint8Array): void { this.registers.set(data, at); }
 *       reset(): void { this.registers.fill(0); this.config.reset(); }
 *       quiesce(): void {}
 *       resume(): void {}
 *     }
 *     serve(new Scratch(), { name: 'scratch', socketPath: 'scratch.sock', migrationSocketPath: 'scratch.mig' });
 *
 * `serve` is of `devstate/runtime`. Below the device are three layers, and none of them shows here: the runtime, which has
 * the VMM's memory and eventfds and carries migrations out; the server, which speaks vfio-user; the transport.
 *
 * In the order to read: `device.ts` has the interface, `pci-config.ts` the config space, `guest-memory.ts` and
 * `interrupts.ts` what a device does to its guest, `state.ts` and `record-format.ts` how it is saved and loaded. Optional:
 * `files.ts` for open files that outlive the process, `journal.ts` for state that outlives a crash.
 */

export type { DeviceModel, ParameterDefinition, ParameterValue } from '../formats/index.js';
export { Errno, RequestError, type StateValue } from '../wire/index.js';
export * from './device.js';
export * from './files.js';
export * from './guest-memory.js';
export * from './interrupts.js';
export * from './journal.js';
export * from './pci-config.js';
export * from './record-format.js';
export * from './state.js';
