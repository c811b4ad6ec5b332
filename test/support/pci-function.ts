// SPDX-License-Identifier: Apache-2.0
/**
 * A VMM's part of one vfio-user device, as QEMU's `vfio-user-pci` does it: a real client of the device's server. The VMM
 * answers for BARs and MSI-X itself; the rest of configuration space is the device's.
 *
 *     emulated here                                    passed on to the server
 *     BARs, ROM BAR, MSI-X control, MSI-X table        every other register; COMMAND too, when it is written
 *     eventfds of MSI-X, once it is enabled            guest memory, when the VM is started
 *
 * Not modelled: MSI, INTx eventfds, BARs that are mapped or reached by the guest.
 */
import { Client } from '../../src/client/index.js';
import type { GuestRam } from '../../src/guest-driver/index.js';
import { check, native } from '../../src/native/index.js';
import { closeAll, Fd } from '../../src/transport/index.js';
import { DmaMapFlag, IrqSetFlag, PciIrq, PciRegion } from '../../src/wire/index.js';

const CONFIG_SIZE = 256;
const COMMAND = 0x04;
const COMMAND_MEMORY = 0x2;
const BARS = 0x10;
const BARS_END = 0x28;
const ROM_BAR = 0x30;
const CAPABILITIES = 0x34;
const MSIX = 0x11;
const MSIX_ENABLE = 0x80;
const ENTRY_SIZE = 16;

/** Where the device is in its machine. */
export interface FunctionPlace {
  readonly id: string;
  readonly slot: number;
  /** The server's socket. */
  readonly socket: string;
}

export class PciFunction {
  readonly place: FunctionPlace;
  readonly vendorId: number;
  readonly deviceId: number;
  readonly client: Client;
  /** Registers that are answered for here. */
  readonly #registers: Uint8Array;
  /** The bits of BARs that a guest can write. */
  readonly #barMask = new Uint8Array(CONFIG_SIZE);
  readonly #msix: number;
  readonly #table: Uint8Array;
  readonly #tableBar: number;
  readonly #tableOffset: number;
  readonly #eventfds: Fd[] = [];
  #command = 0;

  private constructor(place: FunctionPlace, client: Client, config: Uint8Array) {
    this.place = place;
    this.client = client;
    this.#registers = config;
    const view = new DataView(config.buffer);
    this.vendorId = view.getUint16(0, true);
    this.deviceId = view.getUint16(2, true);
    let at = config[CAPABILITIES] ?? 0;
    while (at !== 0 && config[at] !== MSIX) at = config[at + 1] ?? 0;
    this.#msix = at;
    const vectors = at === 0 ? 0 : (view.getUint16(at + 2, true) & 0x7ff) + 1;
    this.#table = new Uint8Array(vectors * ENTRY_SIZE);
    const tablePlace = at === 0 ? 0 : view.getUint32(at + 4, true);
    this.#tableBar = tablePlace & 7;
    this.#tableOffset = tablePlace & ~7;
  }

  /** Connects, and shows the device the guest's memory. */
  static async realize(place: FunctionPlace, memory: GuestRam): Promise<PciFunction> {
    const client = await Client.connect(place.socket, {
      dma: {
        read: (address, target) => target.set(memory.at(address, target.length)),
        write: (address, source) => {
          memory.at(address, source.length).set(source);
          memory.touch(address, source.length);
        },
      },
    });
    try {
      const config = new Uint8Array(CONFIG_SIZE);
      await client.regionRead(PciRegion.CONFIG, 0, config);
      const device = new PciFunction(place, client, config);
      await device.#sizeBars();
      const { base: address, length: size, fd } = memory;
      const flags = DmaMapFlag.READ | DmaMapFlag.WRITE;
      await client.dmaMap({ flags, offset: 0, address, size }, fd);
      // As the machine's own reset does when it is made.
      await client.reset();
      return device;
    } catch (error) {
      client.close();
      throw error;
    }
  }

  async #sizeBars(): Promise<void> {
    const mask = new DataView(this.#barMask.buffer);
    const registers = new DataView(this.#registers.buffer);
    for (let index = 0; index < 6; index++) {
      const { size } = await this.client.regionInfo(PciRegion.BAR0 + index).then((info) => {
        info.fd?.close();
        return info;
      });
      if (size === 0) continue;
      mask.setUint32(BARS + 4 * index, -size >>> 0, true);
      const is64 = (registers.getUint32(BARS + 4 * index, true) & 0x6) === 0x4;
      if (is64) mask.setUint32(BARS + 4 * index + 4, 0xffffffff, true);
    }
  }

  /** Whether a VMM answers for a byte of configuration space itself. */
  #isEmulated(offset: number): boolean {
    if (offset >= BARS && offset < BARS_END) return true;
    if (offset >= ROM_BAR && offset < ROM_BAR + 4) return true;
    return this.#msix !== 0 && offset >= this.#msix + 2 && offset < this.#msix + 4;
  }

  /** A device whose server is gone reads as ones. */
  async readConfig(offset: number, length: number): Promise<number> {
    const bytes = new Uint8Array(4);
    if (this.#isEmulated(offset)) bytes.set(this.#registers.subarray(offset, offset + length));
    else {
      const read = this.client.regionRead(PciRegion.CONFIG, offset, bytes.subarray(0, length));
      await read.catch(() => bytes.fill(0xff, 0, length));
      for (let i = 0; i < length; i++)
        if (this.#isEmulated(offset + i)) bytes[i] = this.#registers[offset + i] ?? 0;
    }
    return new DataView(bytes.buffer).getUint32(0, true);
  }

  async writeConfig(offset: number, length: number, value: number): Promise<void> {
    const bytes = new Uint8Array(4);
    new DataView(bytes.buffer).setUint32(0, value >>> 0, true);
    if (!this.#isEmulated(offset)) {
      await this.client.regionWrite(PciRegion.CONFIG, offset, bytes.subarray(0, length)).catch(() => {});
      if (offset === COMMAND) this.#command = value & 0xffff;
      return;
    }
    for (let i = 0; i < length; i++) {
      const at = offset + i;
      const mask = at >= BARS && at < BARS_END ? (this.#barMask[at] ?? 0) : this.#maskOf(at);
      this.#registers[at] = ((this.#registers[at] ?? 0) & ~mask) | ((bytes[i] ?? 0) & mask);
    }
    if (this.#msix !== 0 && offset + length > this.#msix + 3 && offset <= this.#msix + 3)
      await this.#wireInterrupts();
  }

  #maskOf(offset: number): number {
    return offset === this.#msix + 3 ? 0xc0 : 0;
  }

  get #isMsixEnabled(): boolean {
    return this.#msix !== 0 && ((this.#registers[this.#msix + 3] ?? 0) & MSIX_ENABLE) !== 0;
  }

  /** The device's vectors get eventfds when the guest enables MSI-X, and lose them when it disables it. */
  async #wireInterrupts(): Promise<void> {
    if (this.#isMsixEnabled === this.#eventfds.length > 0) return;
    if (this.#isMsixEnabled) {
      for (let at = 0; at < this.#table.length; at += ENTRY_SIZE)
        this.#eventfds.push(new Fd(check(native.eventfdCreate(0), 'make an eventfd')));
      await this.client.assignEventfds(PciIrq.MSIX, this.#eventfds).catch(() => {});
      return;
    }
    closeAll(this.#eventfds.splice(0));
    const flags = IrqSetFlag.DATA_NONE | IrqSetFlag.ACTION_TRIGGER;
    await this.client.setIrqs({ flags, index: PciIrq.MSIX, start: 0, count: 0 }).catch(() => {});
  }

  /** Guest-physical address of the MSI-X table while it is decoded. */
  get #tableAddress(): number | undefined {
    const registers = new DataView(this.#registers.buffer);
    const low = registers.getUint32(BARS + 4 * this.#tableBar, true);
    const is64 = (low & 0x6) === 0x4;
    const high = is64 ? registers.getUint32(BARS + 4 * this.#tableBar + 4, true) : 0;
    const base = high * 2 ** 32 + ((low & ~0xf) >>> 0);
    if (this.#table.length === 0 || base === 0 || (this.#command & COMMAND_MEMORY) === 0) return undefined;
    return base + this.#tableOffset;
  }

  /** The four bytes at an address of the MSI-X table; undefined if it is none. */
  wordAt(address: number): DataView | undefined {
    const table = this.#tableAddress;
    if (table === undefined || address < table || address + 4 > table + this.#table.length) return undefined;
    return new DataView(this.#table.buffer, address - table, 4);
  }

  /** What of configuration space is the VMM's, and COMMAND: to be compared. */
  view(): { command: number; registers: string; table: string } {
    const registers = [...this.#registers].filter((_, at) => this.#isEmulated(at));
    return {
      command: this.#command,
      registers: Buffer.from(registers).toString('hex'),
      table: Buffer.from(this.#table).toString('hex'),
    };
  }

  /** As a machine that is reset does it. */
  async reset(): Promise<void> {
    await this.client.reset().catch(() => {});
    const low = new DataView(this.#registers.buffer);
    for (let at = BARS; at < BARS_END; at += 4)
      low.setUint32(
        at,
        low.getUint32(at, true) & ~new DataView(this.#barMask.buffer).getUint32(at, true),
        true,
      );
    if (this.#msix !== 0) this.#registers[this.#msix + 3]! &= 0x3f;
    this.#table.fill(0);
    this.#command = 0;
    await this.#wireInterrupts();
  }

  close(): void {
    closeAll(this.#eventfds.splice(0));
    this.client.close();
  }
}
