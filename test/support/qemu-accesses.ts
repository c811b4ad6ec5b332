// SPDX-License-Identifier: Apache-2.0
/** Physical memory and ports of a model of QEMU, as far as they lead to its PCI devices: what qtest's lines reach. */
import type { PciFunction } from './pci-function.js';

/** Where the configuration space is in memory, on a machine that has it there. */
export const ECAM = 0xb000_0000;
export const ECAM_BYTES = 4 * 2 ** 20;
export const CONFIG_ADDRESS = 0xcf8;
export const CONFIG_DATA = 0xcfc;
/** What a PC's latch keeps of a value: the bit that enables, bus, slot, function, register. */
const ENABLED = 0x8000_0000;
const LENGTHS: Readonly<Record<string, number>> = { b: 1, w: 2, l: 4 };

interface ConfigPlace {
  readonly device: PciFunction;
  readonly offset: number;
}

export class Accesses {
  readonly #way: 'ecam' | 'ports';
  readonly #devices: () => readonly PciFunction[];
  #latch = 0;

  /** @param devices that are there now */
  constructor(way: 'ecam' | 'ports', devices: () => readonly PciFunction[]) {
    this.#way = way;
    this.#devices = devices;
  }

  /** @returns the answer to a line of qtest's, without its end */
  async run(line: string): Promise<string> {
    const [operation = '', place = '', written] = line.split(' ');
    const address = Number(place);
    const length = LENGTHS[operation.at(-1) ?? ''] ?? 4;
    if (!/^((in|out)|(read|write))[bwl]$/.test(operation)) return `FAIL Unknown command '${operation}'`;
    const isPort = operation.startsWith('in') || operation.startsWith('out');
    // Ports are written as they are asked for, memory with all its digits.
    const ok = (value: number): string =>
      isPort ? `OK 0x${value.toString(16).padStart(4, '0')}` : `OK 0x${value.toString(16).padStart(16, '0')}`;
    if (isPort && address === CONFIG_ADDRESS && this.#way === 'ports') {
      if (written === undefined) return ok(this.#latch);
      this.#latch = Number(written);
      return 'OK';
    }
    const at = isPort ? this.#atPorts(address) : this.#atEcam(address);
    if (at !== undefined) {
      if (written === undefined) return ok(await at.device.readConfig(at.offset, length));
      await at.device.writeConfig(at.offset, length, Number(written));
      return 'OK';
    }
    const word = this.#devices()
      .map((device) => device.wordAt(address))
      .find((one) => one !== undefined);
    // Where there is nothing, ports read as ones and memory as zeros.
    if (written === undefined) return ok(word?.getUint32(0, true) ?? (isPort ? 2 ** (8 * length) - 1 : 0));
    word?.setUint32(0, Number(written), true);
    return 'OK';
  }

  #atPorts(port: number): ConfigPlace | undefined {
    if (this.#way !== 'ports' || port < CONFIG_DATA || port >= CONFIG_DATA + 4) return undefined;
    if (this.#latch < ENABLED) return undefined;
    return this.#at(this.#latch & 0xffff00, (this.#latch & 0xfc) + port - CONFIG_DATA);
  }

  #atEcam(address: number): ConfigPlace | undefined {
    const offset = address - ECAM;
    if (this.#way !== 'ecam' || offset < 0 || offset >= ECAM_BYTES) return undefined;
    return this.#at((offset >>> 12) << 8, offset & 0xfff);
  }

  /** @param where bus, slot and function as in a PC's latch */
  #at(where: number, offset: number): ConfigPlace | undefined {
    const device = this.#devices().find(({ place }) => place.slot << 11 === where);
    return device === undefined || offset >= 256 ? undefined : { device, offset };
  }
}
