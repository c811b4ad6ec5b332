// SPDX-License-Identifier: Apache-2.0
/**
 * A PCI function's config space (type 0 header) with write masks, and a builder for its capability list.
 * BAR registers work as on hardware (writing all ones reads back the size), although QEMU emulates them itself.
 */

import { Errno, isPowerOfTwo, RequestError } from '../wire/index.js';

export const CONFIG_SPACE_SIZE = 256;

/** What config space says of a BAR. */
export interface PciBar {
  /** 0 to 5; a 64-bit BAR takes the next index too. */
  readonly index: number;
  /** Bytes; a power of two. */
  readonly size: number;
  readonly kind: 'memory32' | 'memory64' | 'io';
}

/** Offsets in the type 0 header (PCI 3.0, 6.1). */
export const PciRegister = {
  VENDOR_ID: 0x00,
  DEVICE_ID: 0x02,
  COMMAND: 0x04,
  STATUS: 0x06,
  REVISION_ID: 0x08,
  CLASS_CODE: 0x09,
  CACHE_LINE_SIZE: 0x0c,
  HEADER_TYPE: 0x0e,
  BAR0: 0x10,
  SUBSYSTEM_VENDOR_ID: 0x2c,
  SUBSYSTEM_ID: 0x2e,
  CAPABILITIES_POINTER: 0x34,
  INTERRUPT_LINE: 0x3c,
  INTERRUPT_PIN: 0x3d,
} as const;

export const PciCommand = {
  IO: 0x1,
  MEMORY: 0x2,
  BUS_MASTER: 0x4,
  PARITY_RESPONSE: 0x40,
  SERR: 0x100,
  INTX_DISABLE: 0x400,
} as const;

export const PciStatus = { INTERRUPT: 0x8, CAPABILITIES_LIST: 0x10 } as const;

export const PciCapability = {
  POWER_MANAGEMENT: 0x01,
  MSI: 0x05,
  VENDOR: 0x09,
  EXPRESS: 0x10,
  MSIX: 0x11,
} as const;

export interface PciIdentity {
  vendorId: number;
  deviceId: number;
  /** Default: `vendorId`. */
  subsystemVendorId?: number;
  /** Default: `deviceId`. */
  subsystemId?: number;
  /** Default: 0. */
  revision?: number;
  /** Base class, subclass, programming interface: 0x010802 for NVMe. */
  classCode: number;
  /** It has an INTx pin. Default: no. */
  intx?: boolean;
}

/** One capability: bytes from its id on (`next` is filled in) and which of their bits a guest can write. */
export interface CapabilityImage {
  bytes: Uint8Array;
  writable: Uint8Array;
}

export class PciConfigSpace {
  /** What a guest reads. */
  readonly bytes = new Uint8Array(CONFIG_SPACE_SIZE);
  readonly #view = new DataView(this.bytes.buffer);
  /** A bit for each bit of `bytes`: the guest can write it. */
  readonly writable = new Uint8Array(CONFIG_SPACE_SIZE);
  /** `bytes` after power on. */
  readonly initial: Uint8Array;

  constructor(identity: PciIdentity, bars: readonly PciBar[], capabilities: readonly CapabilityImage[] = []) {
    const { vendorId, deviceId, subsystemVendorId = vendorId, subsystemId = deviceId } = identity;
    const { revision = 0, classCode, intx = false } = identity;
    const view = this.#view;
    view.setUint16(PciRegister.VENDOR_ID, vendorId, true);
    view.setUint16(PciRegister.DEVICE_ID, deviceId, true);
    view.setUint16(PciRegister.SUBSYSTEM_VENDOR_ID, subsystemVendorId, true);
    view.setUint16(PciRegister.SUBSYSTEM_ID, subsystemId, true);
    // Revision is the low byte of the class code's dword.
    view.setUint32(PciRegister.REVISION_ID, (classCode << 8) | revision, true);
    view.setUint8(PciRegister.INTERRUPT_PIN, intx ? 1 : 0);

    const mask = new DataView(this.writable.buffer);
    const command =
      PciCommand.IO |
      PciCommand.MEMORY |
      PciCommand.BUS_MASTER |
      PciCommand.PARITY_RESPONSE |
      PciCommand.SERR |
      PciCommand.INTX_DISABLE;
    mask.setUint16(PciRegister.COMMAND, command, true);
    mask.setUint8(PciRegister.CACHE_LINE_SIZE, 0xff);
    mask.setUint8(PciRegister.INTERRUPT_LINE, 0xff);
    for (const bar of bars) this.#addBar(bar, mask);
    this.#addCapabilities(capabilities);
    this.initial = this.bytes.slice();
  }

  #addBar(bar: PciBar, mask: DataView): void {
    const at = PciRegister.BAR0 + 4 * bar.index;
    if (bar.size < 16 || !isPowerOfTwo(bar.size)) throw new RangeError(`BAR ${bar.index} size ${bar.size}`);
    this.#view.setUint32(at, { io: 0x1, memory32: 0x0, memory64: 0x4 }[bar.kind], true);
    mask.setUint32(at, -bar.size >>> 0, true);
    if (bar.kind === 'memory64') mask.setUint32(at + 4, -Math.ceil(bar.size / 2 ** 32) >>> 0, true);
  }

  #addCapabilities(capabilities: readonly CapabilityImage[]): void {
    let link: number = PciRegister.CAPABILITIES_POINTER;
    let at = 0x40;
    for (const { bytes, writable } of capabilities) {
      if (at + bytes.length > CONFIG_SPACE_SIZE)
        throw new RangeError('capabilities do not fit the config space');
      this.bytes.set(bytes, at);
      this.bytes[at + 1] = 0;
      this.writable.set(writable, at);
      this.bytes[link] = at;
      link = at + 1;
      at = (at + bytes.length + 3) & ~3;
    }
    if (capabilities.length > 0) {
      this.#view.setUint16(PciRegister.STATUS, PciStatus.CAPABILITIES_LIST, true);
    }
  }

  get command(): number {
    return this.#view.getUint16(PciRegister.COMMAND, true);
  }

  /** Reflects the INTx line in the status register. */
  setInterruptStatus(asserted: boolean): void {
    const status = this.#view.getUint16(PciRegister.STATUS, true);
    this.#view.setUint16(
      PciRegister.STATUS,
      asserted ? status | PciStatus.INTERRUPT : status & ~PciStatus.INTERRUPT,
      true,
    );
  }

  /** Offset of a capability, or 0. */
  findCapability(id: number): number {
    return findCapability(this.bytes, id);
  }

  reset(): void {
    this.bytes.set(this.initial);
  }

  /**
   * Takes the guest-writable bits of another config space of the same layout. @throws RequestError EINVAL when a
   * read-only bit differs: that is another kind of device
   */
  load(saved: Uint8Array): void {
    if (saved.length !== CONFIG_SPACE_SIZE)
      throw new RequestError(Errno.EINVAL, `config space of ${saved.length} bytes`);
    const status = PciRegister.STATUS;
    for (let i = 0; i < CONFIG_SPACE_SIZE; i++) {
      if (i === status || i === status + 1) continue; // volatile: recomputed by the device
      if (((saved[i]! ^ this.initial[i]!) & ~this.writable[i]!) !== 0) {
        throw new RequestError(
          Errno.EINVAL,
          `config space differs at 0x${i.toString(16)}, which no guest can write`,
        );
      }
    }
    this.bytes.set(saved);
    this.bytes.set(this.initial.subarray(status, status + 2), status);
  }
}

/** Offset of a capability in a config space, or 0. */
export function findCapability(config: Uint8Array, id: number): number {
  let at = config[PciRegister.CAPABILITIES_POINTER]!;
  for (let steps = 0; at !== 0 && steps < 48; steps++) {
    if (config[at] === id) return at;
    at = config[at + 1]!;
  }
  return 0;
}

/** The MSI-X capability (PCI 3.0, 6.8.2): table and PBA in BARs. */
export function msixCapability(options: {
  vectors: number;
  tableBar: number;
  tableOffset: number;
  pbaBar: number;
  pbaOffset: number;
}): CapabilityImage {
  const bytes = new Uint8Array(12);
  const view = new DataView(bytes.buffer);
  view.setUint8(0, PciCapability.MSIX);
  view.setUint16(2, options.vectors - 1, true);
  view.setUint32(4, options.tableOffset | options.tableBar, true);
  view.setUint32(8, options.pbaOffset | options.pbaBar, true);
  const writable = new Uint8Array(12);
  writable[3] = 0xc0; // enable and function mask
  return { bytes, writable };
}

/** The power management capability (PCI PM 1.2), D0 and D3hot. */
export function powerManagementCapability(): CapabilityImage {
  const bytes = new Uint8Array(8);
  bytes[0] = PciCapability.POWER_MANAGEMENT;
  bytes[2] = 0x03;
  bytes[4] = 0x08; // no soft reset: D3hot to D0 keeps the state
  const writable = new Uint8Array(8);
  writable[4] = 0x03;
  return { bytes, writable };
}

/** The PCI Express endpoint capability (PCIe 2.0 layout), with function level reset. */
export function expressCapability(): CapabilityImage {
  const bytes = new Uint8Array(60);
  const view = new DataView(bytes.buffer);
  view.setUint8(0, PciCapability.EXPRESS);
  view.setUint16(2, 0x0002, true); // version 2, endpoint
  view.setUint32(4, 0x10008000, true); // function level reset, role-based error reporting
  view.setUint32(0x0c, 0x00000011, true); // link: 2.5 GT/s, x1
  view.setUint16(0x12, 0x0011, true);
  const writable = new Uint8Array(60);
  new DataView(writable.buffer).setUint16(8, 0xffff, true); // device control; bit 15 resets the function
  return { bytes, writable };
}
