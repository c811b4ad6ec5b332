// SPDX-License-Identifier: Apache-2.0
/**
 * BAR 0 (NVMe 1.4, section 3.1). The image holds the registers as a guest reads them, so a read is a copy. A write of
 * any width is turned into writes of whole dwords.
 */

import {
  AQA_WRITABLE,
  Cc,
  Csts,
  configurationOf,
  DOORBELL_BASE,
  isHeldWhileEnabled,
  MIN_PAGE_SIZE,
  Register,
} from '../spec/index.js';
import type { ControllerImage } from './controller-image.js';
import { REGISTERS_AT, REGISTERS_SIZE } from './layout.js';

/** What writes set in motion. */
export interface RegisterActions {
  /** CC was written. */
  configurationWritten(): void;
  /** INTMS or INTMC was written. */
  interruptMaskWritten(): void;
  /** Doorbell `index`: twice the queue's identifier, plus one for a completion queue. */
  doorbell(index: number, value: number): void;
}

/** Nothing is between the registers and the doorbells, and doorbells read as zero. */
export function readRegisters(image: ControllerImage, offset: number, target: Uint8Array): void {
  for (let i = 0; i < target.length; i++) {
    const at = offset + i;
    target[i] = at < REGISTERS_SIZE ? image.bytes[REGISTERS_AT + at]! : 0;
  }
}

export function writeRegisters(
  image: ControllerImage,
  offset: number,
  data: Uint8Array,
  actions: RegisterActions,
): void {
  if (data.length === 4 && offset % 4 === 0) {
    writeDword(image, offset, dwordOf(data, 0), actions);
    return;
  }
  for (let at = offset - (offset % 4); at < offset + data.length; at += 4) {
    const bytes = new Uint8Array(4);
    if (keepsValue(at)) bytes.set(image.span(REGISTERS_AT + at, 4));
    for (let i = 0; i < 4; i++) {
      const byte = data[at + i - offset];
      if (byte !== undefined) bytes[i] = byte;
    }
    writeDword(image, at, dwordOf(bytes, 0), actions);
  }
}

/** Whether bytes of the register that are not written stay; a register that acts by the bits written gets zeros there. */
function keepsValue(offset: number): boolean {
  return offset < REGISTERS_SIZE && offset !== Register.INTMS && offset !== Register.INTMC;
}

function dwordOf(bytes: Uint8Array, at: number): number {
  return (bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)) >>> 0;
}

function writeDword(image: ControllerImage, offset: number, value: number, actions: RegisterActions): void {
  if (offset >= DOORBELL_BASE) {
    actions.doorbell((offset - DOORBELL_BASE) >>> 2, value);
    return;
  }
  if (isHeldWhileEnabled(offset) && (image.register(Register.CC) & Cc.EN) !== 0) return;
  switch (offset) {
    case Register.INTMS:
      setInterruptMask(image, image.register(Register.INTMS) | value);
      actions.interruptMaskWritten();
      return;
    case Register.INTMC:
      setInterruptMask(image, image.register(Register.INTMS) & ~value);
      actions.interruptMaskWritten();
      return;
    case Register.CC:
      image.setRegister(Register.CC, configurationOf(image.register(Register.CC), value));
      actions.configurationWritten();
      return;
    case Register.AQA:
      image.setRegister(offset, value & AQA_WRITABLE);
      return;
    case Register.ASQ:
    case Register.ACQ:
      image.setRegister(offset, value & -MIN_PAGE_SIZE);
      return;
    case Register.ASQ + 4:
    case Register.ACQ + 4:
      image.setRegister(offset, value);
      return;
    default:
    // Read-only, or not there.
  }
}

/** INTMS and INTMC both read as the mask. */
export function setInterruptMask(image: ControllerImage, mask: number): void {
  image.setRegister(Register.INTMS, mask);
  image.setRegister(Register.INTMC, mask);
}

/** A controller reset (CC.EN cleared) keeps CC and the admin queue registers only. */
export function resetController(image: ControllerImage): void {
  image.setRegister(Register.CSTS, 0);
  setInterruptMask(image, 0);
}

/** Sets CSTS.SHST. */
export function setShutdownStatus(image: ControllerImage, status: number): void {
  image.setRegister(Register.CSTS, (image.register(Register.CSTS) & ~Csts.SHST_MASK) | status);
}
