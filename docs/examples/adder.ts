// SPDX-License-Identifier: Apache-2.0
/**
 * A complete migratable PCI device: it adds up bytes of guest memory. `docs/write-a-device.md` explains it.
 *
 *     BAR 0  0x00 SOURCE u64    address of the bytes
 *            0x08 LENGTH u32    how many
 *            0x0c CONTROL u32   1: begin; 2: take the interrupt back
 *            0x10 RESULT u64    address where TOTAL is stored when the work is done
 *            0x18 TOTAL u64     sum of all bytes of all times
 *            0x20 STATUS u32    1: at work; 2: done, INTx is up; 4: done, memory could not be reached, INTx is up
 */

import {
  type Bar,
  CONFIG_SPACE_SIZE,
  type Device,
  type DeviceHost,
  PciCommand,
  PciConfigSpace,
  RecordFormat,
  type StateFormat,
} from 'devstate/device';

export const Register = {
  SOURCE: 0x00,
  LENGTH: 0x08,
  CONTROL: 0x0c,
  RESULT: 0x10,
  TOTAL: 0x18,
  STATUS: 0x20,
};
export const Control = { BEGIN: 1, ACKNOWLEDGE: 2 };
export const Status = { BUSY: 1, DONE: 2, FAILED: 4 };

const BAR_SIZE = 4096;
const REGISTERS_LENGTH = 0x24;

export class Adder implements Device {
  readonly model;
  readonly producer = { name: 'example/adder', version: '1.0' };
  readonly bars: readonly Bar[] = [{ index: 0, size: BAR_SIZE, kind: 'memory32' }];
  readonly interruptCounts = { intx: true, msi: 0, msix: 0 };
  readonly config = new PciConfigSpace(
    { vendorId: 0x1b36, deviceId: 0x00fe, subsystemId: 1, revision: 1, classCode: 0xff0000, intx: true },
    this.bars,
  );
  /** All that the guest can see, and all the state there is. */
  readonly registers = new Uint8Array(BAR_SIZE);
  readonly formats: readonly StateFormat[] = [adderFormat(this)];
  readonly #view = new DataView(this.registers.buffer);
  #host: DeviceHost | undefined;
  #running = true;
  /** Settles when nothing is under way. Never rejects. */
  #work: Promise<void> = Promise.resolve();

  constructor(readonly maxLength = 65536) {
    this.model = { uri: 'example.org/adder', parameters: { max_length: maxLength } };
  }

  attach(host: DeviceHost): void {
    this.#host = host;
  }

  readRegion(_region: number, offset: number, target: Uint8Array): void {
    target.set(this.registers.subarray(offset, offset + target.length));
  }

  writeRegion(_region: number, offset: number, data: Uint8Array): void {
    if (offset === Register.CONTROL) this.#control(data[0] ?? 0);
    else if (offset + data.length <= Register.TOTAL) this.registers.set(data, offset);
  }

  configWritten(): void {
    this.#updateLine();
  }

  #control(value: number): void {
    if ((value & Control.ACKNOWLEDGE) !== 0) this.#setStatus(this.#status & Status.BUSY);
    if ((value & Control.BEGIN) === 0 || (this.#status & Status.BUSY) !== 0) return;
    this.#setStatus(Status.BUSY);
    if (this.#running) this.#begin();
  }

  #begin(): void {
    this.#work = this.#add().then(
      () => this.#setStatus(Status.DONE),
      () => this.#setStatus(Status.FAILED),
    );
  }

  async #add(): Promise<void> {
    const { memory } = this.#host!;
    const length = this.#view.getUint32(Register.LENGTH, true);
    if (length > this.maxLength) throw new Error(`${length} bytes are too many`);
    const bytes = new Uint8Array(length);
    await memory.read(this.#address(Register.SOURCE), bytes);
    let total = this.#view.getBigUint64(Register.TOTAL, true);
    for (const byte of bytes) total += BigInt(byte);
    const result = new Uint8Array(8);
    new DataView(result.buffer).setBigUint64(0, total, true);
    await memory.write(this.#address(Register.RESULT), result);
    this.registers.set(result, Register.TOTAL);
  }

  #address(register: number): number {
    return Number(this.#view.getBigUint64(register, true));
  }

  get #status(): number {
    return this.#view.getUint32(Register.STATUS, true);
  }

  #setStatus(status: number): void {
    this.#view.setUint32(Register.STATUS, status, true);
    this.#updateLine();
  }

  #updateLine(): void {
    const enabled = (this.config.command & PciCommand.INTX_DISABLE) === 0;
    this.#host?.interrupts.setIntx(enabled && (this.#status & (Status.DONE | Status.FAILED)) !== 0);
  }

  async reset(): Promise<void> {
    await this.#work;
    this.registers.fill(0);
    this.config.reset();
    this.#updateLine();
  }

  async quiesce(): Promise<void> {
    this.#running = false;
    await this.#work;
  }

  resume(): void {
    if (this.#running) return;
    this.#running = true;
    this.#updateLine();
    if ((this.#status & Status.BUSY) !== 0) this.#begin();
  }
}

/** Two records: the config space, and the registers. */
export const adderFormat = ({ config, registers }: Adder): StateFormat =>
  new RecordFormat({
    uuid: '0f5cf1d4-7a43-4f0e-9a53-3f1c4a1d2b60',
    name: 'org.example.adder',
    version: { major: 1, minor: 0 },
    records: {
      config: { type: 0x10000, length: CONFIG_SPACE_SIZE },
      registers: { type: 0x10001, length: REGISTERS_LENGTH },
    },
    save: () => ({ config: config.bytes, registers: registers.subarray(0, REGISTERS_LENGTH) }),
    load: (saved) => {
      config.load(saved.config);
      registers.set(saved.registers);
    },
  });
