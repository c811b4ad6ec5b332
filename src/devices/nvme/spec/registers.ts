// SPDX-License-Identifier: Apache-2.0
/** Controller registers (NVMe 1.4, section 3.1). */

/** Offsets in BAR 0. 64-bit registers are two dwords, low one first. */
export const Register = {
  CAP: 0x00,
  VS: 0x08,
  INTMS: 0x0c,
  INTMC: 0x10,
  CC: 0x14,
  CSTS: 0x1c,
  NSSR: 0x20,
  AQA: 0x24,
  ASQ: 0x28,
  ACQ: 0x30,
} as const;

/** Bits that exist of feature Arbitration: HPW, MPW, LPW, AB. */
export const ARBITRATION_WRITABLE = 0xffffff07;

/** Bytes of the register file proper; what lies between it and the doorbells reads as zero. */
export const REGISTER_FILE_SIZE = 0x1000;
/** First doorbell. Stride 4 (CAP.DSTRD 0): submission tail of queue n at `8n`, completion head at `8n + 4`. */
export const DOORBELL_BASE = 0x1000;

/** NVMe 1.4.0. */
export const VERSION = 0x00010400;

/** Controller Capabilities, low dword. */
export const CapLow = { CQR: 1 << 16, TO_SHIFT: 24 } as const;
/** Controller Capabilities, high dword. */
export const CapHigh = { CSS_NVM: 1 << 5, MPSMAX_SHIFT: 20 } as const;
/** Worst case to become ready or not ready, in units of 500 ms: a disable waits for I/O that is under way. */
export const READY_TIMEOUT = 60;
/** Largest CC.MPS: 64 KiB pages. */
export const MPS_MAX = 4;

/** Controller Configuration. */
export const Cc = {
  EN: 1,
  CSS_MASK: 0x70,
  AMS_MASK: 0x3800,
  SHN_MASK: 0xc000,
  IOSQES_SHIFT: 16,
  IOCQES_SHIFT: 20,
  /** Bits that exist. */
  WRITABLE: 0x00fffff1,
  /** Bits that a host must not change while EN is set: they keep their value then. */
  HELD_WHILE_ENABLED: 0x00003ff0,
} as const;

/** Controller Status. */
export const Csts = {
  RDY: 1,
  CFS: 2,
  SHST_MASK: 0xc,
  SHST_OCCURRING: 0x4,
  SHST_COMPLETE: 0x8,
} as const;

/** Admin Queue Attributes: both sizes are 0's based and have 12 bits. */
export const AQA_WRITABLE = 0x0fff0fff;
/** Smallest page: queue base registers hold no bits below it. */
export const MIN_PAGE_SIZE = 4096;

/** CC.MPS as bytes. */
export function pageSizeOf(cc: number): number {
  return MIN_PAGE_SIZE << ((cc >>> 7) & 0xf);
}

/** Sizes of queue entries, as powers of two: the only ones the NVM command set has. */
export const SQES = 6;
export const CQES = 4;
export const SQ_ENTRY_SIZE = 1 << SQES;
export const CQ_ENTRY_SIZE = 1 << CQES;

/** CC after a write of `value`. What a host must not change while the controller is enabled stays as it was. */
export function configurationOf(cc: number, value: number): number {
  const held = (cc & value & Cc.EN) !== 0 ? Cc.HELD_WHILE_ENABLED : 0;
  return ((cc & held) | (value & Cc.WRITABLE & ~held)) >>> 0;
}

/** The registers of the admin queues, which a host must not write while the controller is enabled: writes have no effect. */
export function isHeldWhileEnabled(offset: number): boolean {
  return offset >= Register.AQA && offset < Register.ACQ + 8;
}
