// SPDX-License-Identifier: Apache-2.0
/** A driver of QEMU's `edu` device (docs/specs/edu of QEMU): DMA between memory and its buffer, an interrupt, registers. */
import { setTimeout as delay } from 'node:timers/promises';
import { type AssignedDevice, PciIrq, PciRegion } from '../../../src/vfio/index.js';

const Register = {
  ID: 0x00,
  LIVENESS: 0x04,
  FACTORIAL: 0x08,
  STATUS: 0x20,
  IRQ_STATUS: 0x24,
  IRQ_RAISE: 0x60,
  IRQ_ACK: 0x64,
  DMA_SOURCE: 0x80,
  DMA_DESTINATION: 0x88,
  DMA_COUNT: 0x90,
  DMA_COMMAND: 0x98,
} as const;
const DmaCommand = { START: 1, TO_MEMORY: 2, INTERRUPT: 4 } as const;

/** Of the device's own memory, in its address space. */
const BUFFER = 0x40000;
const COMMAND = 0x04;
const MEMORY_AND_MASTER = 0x0006;
/** Raised by the end of a DMA with INTERRUPT. */
const DMA_DONE = 0x100;
/** Longest that the device takes for a DMA: 100 ms of its own, and what the machine adds. */
const DMA_MS = 20_000;
const POLL_MS = 2;

const BAR = PciRegion.BAR0;

export class Edu {
  readonly device: AssignedDevice;

  constructor(device: AssignedDevice) {
    this.device = device;
  }

  /** Lets the device reach memory, and arms its one interrupt. */
  enable(): void {
    const command = new Uint8Array(2);
    new DataView(command.buffer).setUint16(0, MEMORY_AND_MASTER, true);
    this.device.writeRegion(PciRegion.CONFIG, COMMAND, command);
    this.device.arm(PciIrq.MSI, 1);
  }

  get command(): number {
    const bytes = new Uint8Array(2);
    this.device.readRegion(PciRegion.CONFIG, COMMAND, bytes);
    return new DataView(bytes.buffer).getUint16(0, true);
  }

  /** The register that reads back inverted. */
  get liveness(): number {
    return this.device.readU32(BAR, Register.LIVENESS);
  }

  set liveness(value: number) {
    this.device.writeU32(BAR, Register.LIVENESS, value);
  }

  get id(): number {
    return this.device.readU32(BAR, Register.ID);
  }

  get pending(): number {
    return this.device.readU32(BAR, Register.IRQ_STATUS);
  }

  raise(value: number): void {
    this.device.writeU32(BAR, Register.IRQ_RAISE, value);
  }

  acknowledge(value: number): void {
    this.device.writeU32(BAR, Register.IRQ_ACK, value);
  }

  /** From memory at `iova` to the device's buffer; settles when the interrupt has come. */
  load(iova: number, length: number): Promise<void> {
    return this.#transfer(iova, BUFFER, length, DmaCommand.START | DmaCommand.INTERRUPT);
  }

  /** From the device's buffer to memory at `iova`; settles likewise. */
  store(iova: number, length: number): Promise<void> {
    return this.#transfer(
      BUFFER,
      iova,
      length,
      DmaCommand.START | DmaCommand.TO_MEMORY | DmaCommand.INTERRUPT,
    );
  }

  /** Begins as {@link store}, and settles at once: the interrupt may come when another process has the device. */
  beginStore(iova: number, length: number): void {
    this.#begin(BUFFER, iova, length, DmaCommand.START | DmaCommand.TO_MEMORY | DmaCommand.INTERRUPT);
  }

  #begin(source: number, destination: number, length: number, command: number): void {
    this.device.writeU32(BAR, Register.DMA_SOURCE, source);
    this.device.writeU32(BAR, Register.DMA_DESTINATION, destination);
    this.device.writeU32(BAR, Register.DMA_COUNT, length);
    this.device.writeU32(BAR, Register.DMA_COMMAND, command);
  }

  async #transfer(source: number, destination: number, length: number, command: number): Promise<void> {
    this.#begin(source, destination, length, command);
    await this.dmaInterrupt();
  }

  /** The interrupt that ends a DMA, acknowledged. */
  async dmaInterrupt(): Promise<void> {
    await this.interrupt();
    const { pending } = this;
    if ((pending & DMA_DONE) === 0) throw new Error(`an interrupt, and status 0x${pending.toString(16)}`);
    this.acknowledge(DMA_DONE);
  }

  /** Settles when the eventfd of the interrupt was signalled. */
  async interrupt(): Promise<void> {
    const deadline = performance.now() + DMA_MS;
    while (this.device.takeInterrupts(PciIrq.MSI, 0) === 0) {
      if (performance.now() > deadline)
        throw new Error(`no interrupt; status 0x${this.pending.toString(16)}`);
      await delay(POLL_MS);
    }
  }
}
