// SPDX-License-Identifier: Apache-2.0
/**
 * The controller's memory image: every offset in it. All that a controller knows and must not lose is in this one piece
 * of memory, little endian, zero where nothing is named.
 *
 * ```
 *  0x00000 ┌───────────────────────────────────────┐
 *          │ header: magic, sizes, counts, identity│ 0x100
 *  0x00100 ├───────────────────────────────────────┤ ─┐
 *          │ registers, as BAR 0 shows them        │  │ 0x040
 *  0x00140 ├───────────────────────────────────────┤  │
 *          │ features, coalescing bitmap           │  │ 0x060
 *  0x001a0 ├───────────────────────────────────────┤  │
 *          │ pending events, masked types          │  │ 0x030
 *  0x001d0 ├───────────────────────────────────────┤  │ controller
 *          │ health counters                       │  │ 0x030
 *  0x00200 ├───────────────────────────────────────┤  │
 *          │ error log, newest first   8 × 32 bytes│  │ 0x100
 *  0x00300 ├───────────────────────────────────────┤  │
 *          │ PCI config space (when saved)         │  │ 0x100
 *  0x00400 ├───────────────────────────────────────┤  │
 *          │ MSI-X pending bits (when saved)       │  │ 0x020
 *  0x00420 ├───────────────────────────────────────┤ ─┘
 *  0x00800 │ MSI-X table             256 × 16 bytes│
 *  0x01800 │ submission queues       256 × 32 bytes│
 *  0x03800 │ completion queues       256 × 32 bytes│
 *  0x05800 │ command slots          4096 × 96 bytes│
 *  0x65800 └───────────────────────────────────────┘
 * ```
 */

import { ARBITRATION_WRITABLE, FeatureId } from '../spec/index.js';

/** Changes with every change of this file that moves, adds or redefines a byte. */
export const LAYOUT_VERSION = 1;

export const HEADER_AT = 0x000;
export const HEADER_SIZE = 0x100;
export const CONTROLLER_AT = 0x100;
export const CONTROLLER_SIZE = 0x320;
export const REGISTERS_AT = 0x100;
export const REGISTERS_SIZE = 0x40;
export const CONFIG_AT = 0x300;
export const CONFIG_SIZE = 0x100;
export const PENDING_BITS_AT = 0x400;
export const PENDING_BITS_SIZE = 0x20;
export const VECTORS_AT = 0x800;
export const VECTOR_SLOTS = 256;
export const VECTOR_SIZE = 16;
export const SUBMISSION_AT = 0x1800;
export const COMPLETION_AT = 0x3800;
export const QUEUE_SLOTS = 256;
export const QUEUE_SIZE = 32;
export const COMMANDS_AT = 0x5800;
export const COMMAND_SLOTS = 4096;
export const COMMAND_SIZE = 96;
export const IMAGE_SIZE = COMMANDS_AT + COMMAND_SLOTS * COMMAND_SIZE;

export const MAGIC = 'BIRCHNVM';

/** Header fields. */
export const Header = {
  /** 8 bytes. */
  MAGIC: 0x00,
  LAYOUT_VERSION: 0x08,
  /** Sizes of the structures, u32 each: one that differs is another layout. */
  HEADER_SIZE: 0x0c,
  CONTROLLER_SIZE: 0x10,
  VECTOR_SIZE: 0x14,
  QUEUE_SIZE: 0x18,
  COMMAND_SIZE: 0x1c,
  /** Slots that a saved image holds, u32 each; 0 in a live one. */
  VECTOR_COUNT: 0x20,
  SUBMISSION_COUNT: 0x24,
  COMPLETION_COUNT: 0x28,
  COMMAND_COUNT: 0x2c,
  /** Identity, which is given and never loaded. u32 each. */
  QUEUES: 0x40,
  VECTORS: 0x44,
  QUEUE_ENTRIES: 0x48,
  MDTS: 0x4c,
  LBA_SIZE: 0x50,
  CONTROLLER_ID: 0x54,
  /** u64, bytes. */
  NAMESPACE_SIZE: 0x58,
  /** Text, padded with zeros. */
  SERIAL: 0x60,
  MODEL_NUMBER: 0x78,
  FIRMWARE: 0xa0,
  NGUID: 0xb0,
  EUI64: 0xc0,
} as const;
export const SERIAL_LENGTH = 20;
export const MODEL_NUMBER_LENGTH = 40;
export const FIRMWARE_LENGTH = 8;
export const NGUID_LENGTH = 16;
export const EUI64_LENGTH = 8;

/** Features that are one u32: where, and which of its bits exist. */
export const FEATURE_WORDS: readonly { id: number; name: string; at: number; mask: number }[] = [
  { id: FeatureId.ARBITRATION, name: 'arbitration', at: 0x140, mask: ARBITRATION_WRITABLE },
  { id: FeatureId.POWER_MANAGEMENT, name: 'power_management', at: 0x144, mask: 0xe0 },
  { id: FeatureId.ERROR_RECOVERY, name: 'error_recovery', at: 0x148, mask: 0xffff },
  { id: FeatureId.VOLATILE_WRITE_CACHE, name: 'volatile_write_cache', at: 0x14c, mask: 0x1 },
  { id: FeatureId.INTERRUPT_COALESCING, name: 'interrupt_coalescing', at: 0x150, mask: 0xffff },
  { id: FeatureId.WRITE_ATOMICITY, name: 'write_atomicity', at: 0x154, mask: 0x1 },
  { id: FeatureId.ASYNC_EVENT_CONFIGURATION, name: 'async_event_configuration', at: 0x158, mask: 0xff },
];
export const WRITE_CACHE_AT = 0x14c;
export const ASYNC_EVENTS_AT = 0x158;
/** Temperature thresholds, u32, Kelvin. */
export const OVER_TEMPERATURE_AT = 0x15c;
export const UNDER_TEMPERATURE_AT = 0x160;
/** One bit a vector: coalescing is disabled for it. */
export const COALESCING_DISABLED_AT = 0x180;
export const VECTOR_BITMAP_SIZE = 0x20;
export const FEATURES_AT = 0x140;
export const FEATURES_SIZE = 0x60;

/** Events that wait for a request. */
export const Events = {
  /** u8, one bit an event type. */
  MASKED: 0x1a0,
  /** u8: slots in use, oldest first. */
  COUNT: 0x1a1,
  SLOTS: 0x1a8,
} as const;
export const EVENT_SLOTS = 8;
/** u8 type, u8 information, u8 log page, u8 zero. */
export const EVENT_SIZE = 4;
export const EVENTS_AT = 0x1a0;
export const EVENTS_SIZE = 0x30;

/** u64 each. */
export const HealthCounter = {
  BYTES_READ: 0x1d0,
  BYTES_WRITTEN: 0x1d8,
  READ_COMMANDS: 0x1e0,
  WRITE_COMMANDS: 0x1e8,
  MEDIA_ERRORS: 0x1f0,
  /** Entries ever made in the error log. */
  ERRORS: 0x1f8,
} as const;

export const ERRORS_AT = 0x200;
export const ERROR_SLOTS = 8;
export const ERROR_SIZE = 32;
/** Fields of an error log slot; unused if its count is 0. */
export const ErrorSlot = {
  /** u64. */
  COUNT: 0,
  /** u64. */
  LBA: 8,
  /** u32. */
  NSID: 16,
  /** u16 each. */
  SQID: 20,
  CID: 22,
  STATUS: 24,
} as const;

/** Fields that submission and completion queue slots have in common. */
export const QueueSlot = {
  /** u8, `QueueState`. */
  STATE: 0,
  /** u16: the slot's own number, so that a saved slot says which it is. */
  ID: 2,
  /** u32. */
  ENTRIES: 4,
  /** u64. */
  BASE: 8,
  /** u32 each. */
  HEAD: 16,
  TAIL: 20,
} as const;
export const SubmissionSlot = {
  /** u8. */
  PRIORITY: 1,
  /** u16. */
  CQID: 24,
} as const;
export const CompletionSlot = {
  /** u8: phase tag of the next entry. */
  PHASE: 1,
  /** u16. */
  VECTOR: 24,
  /** u8. */
  INTERRUPTS: 26,
} as const;
export const QueueState = {
  ABSENT: 0,
  PRESENT: 1,
  /** Waits for its commands to end; not in a saved image. */
  DELETING: 2,
} as const;

export const CommandSlot = {
  /** u8, `CommandState`. */
  STATE: 0,
  /** u16. */
  SQID: 2,
  /** A completion that is due: status field without phase (u16), dword 0 (u32). */
  STATUS: 4,
  RESULT: 8,
  /** f64: slots of one state and queue are in this order. In a saved image the slot's own place. */
  ORDER: 16,
  /** The submission queue entry. For a completion that came from another vendor: only its command identifier. */
  ENTRY: 32,
} as const;
export const CommandState = {
  FREE: 0,
  /** Taken from its queue; nothing was done yet, so anybody may do it from the beginning. */
  FETCHED: 1,
  /** Being carried out; not in a saved image. */
  STARTED: 2,
  /** An Asynchronous Event Request that waits for its event. */
  WAITING: 3,
  /** Completed, and no room for the completion yet. */
  DUE: 4,
} as const;

/** Spans of the controller section in which nothing is: offset and length. */
export const UNUSED_SPANS: readonly (readonly [at: number, length: number])[] = [
  [0x118, 4], // between CC and CSTS
  [0x120, 4], // NSSR, which is not supported
  [0x138, 8],
  [0x164, 0x1c],
  [0x1a2, 6],
  [0x1c8, 8],
];
