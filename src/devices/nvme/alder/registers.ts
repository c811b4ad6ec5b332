// SPDX-License-Identifier: Apache-2.0
/**
 * The register file of BAR 0 (NVMe 1.4, section 3.1). Reads of any width copy from its image; writes are taken dword by
 * dword, narrower ones completed with what is there. What a write sets in motion is the listener's business.
 */

import {
  AQA_WRITABLE,
  CapHigh,
  CapLow,
  Cc,
  configurationOf,
  DOORBELL_BASE,
  isHeldWhileEnabled,
  MIN_PAGE_SIZE,
  MPS_MAX,
  type NvmeParameters,
  pageSizeOf,
  READY_TIMEOUT,
  Register,
  savedAddress,
  VERSION,
} from '../spec/index.js';

export interface RegisterListener {
  /** CC changed. */
  configurationWritten(): void;
  /** The interrupt mask changed. */
  interruptMaskWritten(): void;
  /** Doorbell `index` (twice the queue's identifier, plus one for a completion queue). */
  doorbell(index: number, value: number): void;
}

/** Registers that hold what was written to them. */
export interface RegisterState {
  cc: number;
  csts: number;
  /** Bit set: the vector is masked (INTMS and INTMC, both read so). */
  interruptMask: number;
  aqa: number;
  asq: number;
  acq: number;
}

/** The registers with something in them end here; up to the doorbells all is zero. */
const IMAGE_SIZE = 0x38;

export class Registers {
  readonly #image = new Uint8Array(IMAGE_SIZE);
  readonly #view = new DataView(this.#image.buffer);

  constructor(
    parameters: NvmeParameters,
    readonly listener: RegisterListener,
  ) {
    this.#set(Register.CAP, (parameters.queue_entries - 1) | CapLow.CQR | (READY_TIMEOUT << CapLow.TO_SHIFT));
    this.#set(Register.CAP + 4, CapHigh.CSS_NVM | (MPS_MAX << CapHigh.MPSMAX_SHIFT));
    this.#set(Register.VS, VERSION);
  }

  get cc(): number {
    return this.#get(Register.CC);
  }

  get csts(): number {
    return this.#get(Register.CSTS);
  }

  set csts(value: number) {
    this.#set(Register.CSTS, value);
  }

  get interruptMask(): number {
    return this.#get(Register.INTMS);
  }

  get pageSize(): number {
    return pageSizeOf(this.cc);
  }

  /** Entries of the admin queues. */
  get adminSqSize(): number {
    return (this.#get(Register.AQA) & 0xfff) + 1;
  }

  get adminCqSize(): number {
    return ((this.#get(Register.AQA) >>> 16) & 0xfff) + 1;
  }

  /** Addresses of the admin queues; above 2^53 imprecise, and then no valid ones. */
  get adminSq(): number {
    return this.#get(Register.ASQ) + this.#get(Register.ASQ + 4) * 2 ** 32;
  }

  get adminCq(): number {
    return this.#get(Register.ACQ) + this.#get(Register.ACQ + 4) * 2 ** 32;
  }

  read(offset: number, target: Uint8Array): void {
    if (offset + target.length <= IMAGE_SIZE) {
      for (let i = 0; i < target.length; i++) target[i] = this.#image[offset + i]!;
      return;
    }
    target.fill(0);
    if (offset < IMAGE_SIZE) target.set(this.#image.subarray(offset));
  }

  write(offset: number, data: Uint8Array): void {
    for (let done = 0; done < data.length; ) {
      const register = (offset + done) & ~3;
      const start = offset + done - register;
      const length = Math.min(4 - start, data.length - done);
      // What has a side effect by the bits written is completed with zeros, what holds a value with that value.
      const holds = register < IMAGE_SIZE && register !== Register.INTMS && register !== Register.INTMC;
      let value = holds ? this.#get(register) : 0;
      for (let i = 0; i < length; i++) {
        const shift = 8 * (start + i);
        value = (value & ~(0xff << shift)) | (data[done + i]! << shift);
      }
      this.#writeDword(register, value >>> 0);
      done += length;
    }
  }

  #writeDword(register: number, value: number): void {
    if (register >= DOORBELL_BASE) {
      this.listener.doorbell((register - DOORBELL_BASE) / 4, value);
      return;
    }
    if (isHeldWhileEnabled(register) && (this.cc & Cc.EN) !== 0) return;
    switch (register) {
      case Register.INTMS:
        this.#setMask(this.interruptMask | value);
        return;
      case Register.INTMC:
        this.#setMask(this.interruptMask & ~value);
        return;
      case Register.CC:
        this.#set(Register.CC, configurationOf(this.cc, value));
        this.listener.configurationWritten();
        return;
      case Register.AQA:
        this.#set(Register.AQA, value & AQA_WRITABLE);
        return;
      case Register.ASQ:
      case Register.ACQ:
        this.#set(register, value & -MIN_PAGE_SIZE);
        return;
      case Register.ASQ + 4:
      case Register.ACQ + 4:
        this.#set(register, value);
        return;
      default:
      // Read-only, or not there.
    }
  }

  /** A controller reset (CC.EN cleared) keeps CC and the admin queue registers only. */
  controllerReset(): void {
    this.csts = 0;
    this.#setMask(0);
  }

  /** The state after power on. */
  reset(): void {
    this.load({ cc: 0, csts: 0, interruptMask: 0, aqa: 0, asq: 0, acq: 0 });
  }

  save(): RegisterState {
    return {
      cc: this.cc,
      csts: this.csts,
      interruptMask: this.interruptMask,
      aqa: this.#get(Register.AQA),
      asq: savedAddress(this.adminSq),
      acq: savedAddress(this.adminCq),
    };
  }

  load(state: RegisterState): void {
    this.#set(Register.CC, state.cc);
    this.csts = state.csts;
    this.#set(Register.INTMS, state.interruptMask);
    this.#set(Register.INTMC, state.interruptMask);
    this.#set(Register.AQA, state.aqa);
    for (const [register, value] of [
      [Register.ASQ, state.asq],
      [Register.ACQ, state.acq],
    ] as const) {
      this.#set(register, value % 2 ** 32);
      this.#set(register + 4, Math.floor(value / 2 ** 32));
    }
  }

  #setMask(mask: number): void {
    this.#set(Register.INTMS, mask);
    this.#set(Register.INTMC, mask);
    this.listener.interruptMaskWritten();
  }

  #get(register: number): number {
    return this.#view.getUint32(register, true);
  }

  #set(register: number, value: number): void {
    this.#view.setUint32(register, value, true);
  }
}
