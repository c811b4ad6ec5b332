// SPDX-License-Identifier: Apache-2.0
/**
 * The least that a VMM is: guest memory that the device can reach, registers over REGION_READ and REGION_WRITE, MSI-X
 * vectors as eventfds. What runs in it (here: {@link NvmeDriver}) can be moved to another machine, on another server.
 */

import { Client, type ClientOptions } from '../client/index.js';
import { check, checkObject, native, PollEvent, type Poller } from '../native/index.js';
import { closeAll, Fd } from '../transport/index.js';
import { DmaMapFlag, PciIrq, PciRegion } from '../wire/index.js';
import { PAGE_SIZE, PageAllocator } from './page-allocator.js';
import { GuestRam } from './ram.js';

export interface GuestMachineOptions {
  /** Guest memory in bytes: whole pages, at most 1 GiB. Default 32 MiB. */
  readonly memoryBytes?: number;
  /** MSI-X vectors to assign, at most. Default: all that the device has. */
  readonly vectors?: number;
  /** False maps the memory without an fd, so that the device must reach it with DMA_READ and DMA_WRITE. Default true. */
  readonly shareMemory?: boolean;
  readonly client?: ClientOptions;
}

/** Offsets in the config space, and bits of its registers, that a VMM sets when a driver binds. */
const CONFIG_COMMAND = 0x04;
const COMMAND_MEMORY_AND_BUS_MASTER = 0x6;
const CONFIG_CAPABILITIES = 0x34;
const CAPABILITY_MSIX = 0x11;
const MSIX_CONTROL_ENABLE = 0x8000;

const DEFAULT_MEMORY = 32 * 1024 * 1024;

export class GuestMachine {
  readonly client: Client;
  readonly ram: GuestRam;
  readonly pages: PageAllocator;
  readonly #options: GuestMachineOptions;
  readonly #eventfds: Fd[] = [];
  readonly #pollers: Poller[] = [];
  readonly #handlers: ((vector: number) => void)[] = [];
  /** Vectors that fired and were not taken by a handler yet, as a virtual CPU's interrupt controller keeps them. */
  readonly #pending = new Set<number>();
  #held = false;
  readonly #word = new DataView(new ArrayBuffer(4));
  readonly #wordBytes = new Uint8Array(this.#word.buffer);

  private constructor(client: Client, ram: GuestRam, pages: PageAllocator, options: GuestMachineOptions) {
    this.client = client;
    this.ram = ram;
    this.pages = pages;
    this.#options = options;
  }

  /** A machine with empty memory, its device ready to be driven. @param where the server's socket path */
  static async start(where: string | Fd, options: GuestMachineOptions = {}): Promise<GuestMachine> {
    const ram = new GuestRam(options.memoryBytes ?? DEFAULT_MEMORY);
    // The first page stays free of data: a stray address 0 relative to the memory is then no buffer.
    const pages = new PageAllocator(ram.base + PAGE_SIZE, ram.length - PAGE_SIZE);
    const machine = await GuestMachine.#connect(where, ram, pages, options);
    await machine.enableDevice();
    return machine;
  }

  /**
   * The machine that takes over from `source` at the destination of a migration, on another server: memory of the same
   * size, still empty (copy it with `ram.copyFrom`), and the same pages in use. When the device's state is loaded, call
   * {@link enableDevice}: what a VMM's view of the PCI function does to the device is not in the device's own state.
   */
  static successor(source: GuestMachine, where: string | Fd): Promise<GuestMachine> {
    return GuestMachine.#connect(where, new GuestRam(source.ram.length), source.pages, source.#options);
  }

  static async #connect(
    where: string | Fd,
    ram: GuestRam,
    pages: PageAllocator,
    options: GuestMachineOptions,
  ): Promise<GuestMachine> {
    const dma = {
      read: (address: number, target: Uint8Array) => target.set(ram.at(address, target.length)),
      write: (address: number, source: Uint8Array) => {
        ram.at(address, source.length).set(source);
        ram.touch(address, source.length);
      },
    };
    let client: Client | undefined;
    try {
      client = await Client.connect(where, { ...options.client, dma });
      await client.dmaMap(
        { flags: DmaMapFlag.READ | DmaMapFlag.WRITE, offset: 0, address: ram.base, size: ram.length },
        (options.shareMemory ?? true) ? ram.fd : undefined,
      );
      return new GuestMachine(client, ram, pages, options);
    } catch (error) {
      client?.close();
      ram.close();
      throw error;
    }
  }

  /** Turns on memory decoding, bus mastering and MSI-X, and assigns an eventfd to each vector. */
  async enableDevice(): Promise<void> {
    const { count } = await this.client.irqInfo(PciIrq.MSIX);
    const vectors = Math.min(count, this.#options.vectors ?? count);
    if (this.#eventfds.length === 0) for (let vector = 0; vector < vectors; vector++) this.#addVector(vector);
    if (vectors > 0) await this.client.assignEventfds(PciIrq.MSIX, this.#eventfds);
    const command = await this.#config(CONFIG_COMMAND, 2);
    await this.#setConfig16(CONFIG_COMMAND, command.getUint16(0, true) | COMMAND_MEMORY_AND_BUS_MASTER);
    const control = await this.#msixControl();
    if (control === undefined || vectors === 0) return;
    const value = (await this.#config(control, 2)).getUint16(0, true);
    await this.#setConfig16(control, value | MSIX_CONTROL_ENABLE);
  }

  /** Number of MSI-X vectors assigned. */
  get vectors(): number {
    return this.#eventfds.length;
  }

  #addVector(vector: number): void {
    const fd = new Fd(check(native.eventfdCreate(0), 'make an eventfd'));
    this.#eventfds.push(fd);
    const poller = checkObject(
      native.createPoller(fd.number, () => {
        if (native.eventfdRead(fd.number) > 0) this.inject([vector]);
      }),
      'watch an eventfd',
    );
    // The connection keeps the process alive, not its interrupts.
    poller.unref();
    this.#pollers.push(poller);
    check(poller.start(PollEvent.readable), 'watch an eventfd');
  }

  /** Offset of the MSI-X capability's control word. */
  async #msixControl(): Promise<number | undefined> {
    let at = (await this.#config(CONFIG_CAPABILITIES, 1)).getUint8(0);
    for (let steps = 0; at !== 0 && steps < 48; steps++) {
      const head = await this.#config(at, 2);
      if (head.getUint8(0) === CAPABILITY_MSIX) return at + 2;
      at = head.getUint8(1);
    }
    return undefined;
  }

  async #config(offset: number, length: number): Promise<DataView> {
    const bytes = new Uint8Array(length);
    await this.client.regionRead(PciRegion.CONFIG, offset, bytes);
    return new DataView(bytes.buffer);
  }

  #setConfig16(offset: number, value: number): Promise<void> {
    return this.client.regionWrite(PciRegion.CONFIG, offset, Uint8Array.of(value & 0xff, value >>> 8));
  }

  /** Calls `handler` whenever one of the vectors has fired. One handler a vector. */
  onInterrupt(vector: number, handler: (vector: number) => void): void {
    this.#handlers[vector] = handler;
    this.#deliver();
  }

  /** The virtual CPU stops: interrupts stay pending until {@link releaseInterrupts}, or are taken to another machine. */
  holdInterrupts(): void {
    this.#held = true;
  }

  releaseInterrupts(): void {
    this.#held = false;
    this.#deliver();
  }

  /** Pending vectors, eventfds that no one has looked at yet included; they are no longer pending here. */
  takePending(): number[] {
    this.#eventfds.forEach((fd, vector) => {
      if (native.eventfdRead(fd.number) > 0) this.#pending.add(vector);
    });
    const vectors = [...this.#pending];
    this.#pending.clear();
    return vectors;
  }

  /** Makes vectors pending, as if the device had raised them. */
  inject(vectors: readonly number[]): void {
    for (const vector of vectors) this.#pending.add(vector);
    this.#deliver();
  }

  #deliver(): void {
    if (this.#held) return;
    for (const vector of this.#pending) {
      const handler = this.#handlers[vector];
      if (handler === undefined) continue;
      this.#pending.delete(vector);
      handler(vector);
    }
  }

  /** Reads a 32-bit register of BAR 0. */
  async read32(offset: number): Promise<number> {
    const bytes = new Uint8Array(4);
    await this.client.regionRead(PciRegion.BAR0, offset, bytes);
    return new DataView(bytes.buffer).getUint32(0, true);
  }

  /** Writes a 32-bit register of BAR 0; settles when the device has taken it. */
  write32(offset: number, value: number): Promise<void> {
    return this.client.regionWrite(PciRegion.BAR0, offset, this.#encode(value));
  }

  /** Writes a 32-bit register of BAR 0 without waiting for anything: a posted write, with No_reply, as QEMU sends it. */
  post32(offset: number, value: number): Promise<void> {
    return this.client.regionWrite(PciRegion.BAR0, offset, this.#encode(value), { noReply: true });
  }

  /** The client has sent or copied it when its call returns, so the four bytes can be used again. */
  #encode(value: number): Uint8Array {
    this.#word.setUint32(0, value, true);
    return this.#wordBytes;
  }

  /** Settles when the device has taken every posted write: a read does not overtake them. */
  async fence(): Promise<void> {
    await this.#config(0, 2);
  }

  /** Turns the machine off: the device server sees its VMM leave. */
  close(): void {
    for (const poller of this.#pollers.splice(0)) poller.close();
    closeAll(this.#eventfds.splice(0));
    this.client.close();
    this.ram.close();
  }
}
