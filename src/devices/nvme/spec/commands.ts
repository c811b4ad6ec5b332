// SPDX-License-Identifier: Apache-2.0
/** Commands: opcodes, identifiers, the dwords of a submission queue entry (NVMe 1.4, sections 4.2, 5 and 6). */

export const AdminOpcode = {
  DELETE_IO_SQ: 0x00,
  CREATE_IO_SQ: 0x01,
  GET_LOG_PAGE: 0x02,
  DELETE_IO_CQ: 0x04,
  CREATE_IO_CQ: 0x05,
  IDENTIFY: 0x06,
  ABORT: 0x08,
  SET_FEATURES: 0x09,
  GET_FEATURES: 0x0a,
  ASYNC_EVENT_REQUEST: 0x0c,
} as const;

export const IoOpcode = {
  FLUSH: 0x00,
  WRITE: 0x01,
  READ: 0x02,
  COMPARE: 0x05,
  WRITE_ZEROES: 0x08,
  DATASET_MANAGEMENT: 0x09,
} as const;

/** Dwords of a submission queue entry, by index. */
export const Dword = {
  /** Opcode 7:0, FUSE 9:8, PSDT 15:14, command identifier 31:16. */
  CDW0: 0,
  NSID: 1,
  PRP1: 6,
  PRP2: 8,
  CDW10: 10,
  CDW11: 11,
  CDW12: 12,
  CDW13: 13,
  CDW14: 14,
  CDW15: 15,
} as const;

/** FUSE and PSDT of CDW0: both must be 0 (no fused operations, PRPs only). */
export const CDW0_FUSE_PSDT = 0xc300;
/** FUA of CDW12 of Read, Write and Write Zeroes. */
export const CDW12_FUA = 0x40000000;
/** DEAC of CDW12 of Write Zeroes. */
export const CDW12_DEALLOCATE = 0x02000000;
/** AD of CDW11 of Dataset Management. */
export const CDW11_ATTRIBUTE_DEALLOCATE = 0x4;
/** One range of Dataset Management: attributes u32, length in blocks u32, starting LBA u64. */
export const DSM_RANGE_SIZE = 16;

/** All namespaces. */
export const NSID_ALL = 0xffffffff;
/** The one namespace. */
export const NSID = 1;

/** Identify: Controller or Namespace Structure (CNS). */
export const IdentifyCns = {
  NAMESPACE: 0x00,
  CONTROLLER: 0x01,
  ACTIVE_NAMESPACES: 0x02,
  NAMESPACE_DESCRIPTORS: 0x03,
  /** The namespace for the I/O command set in CDW11 31:24 (NVMe 2.0, taken into 1.4 controllers by TP 4056). */
  COMMAND_SET_NAMESPACE: 0x05,
  COMMAND_SET_CONTROLLER: 0x06,
} as const;

export const FeatureId = {
  ARBITRATION: 0x01,
  POWER_MANAGEMENT: 0x02,
  TEMPERATURE_THRESHOLD: 0x04,
  ERROR_RECOVERY: 0x05,
  VOLATILE_WRITE_CACHE: 0x06,
  NUMBER_OF_QUEUES: 0x07,
  INTERRUPT_COALESCING: 0x08,
  INTERRUPT_VECTOR_CONFIGURATION: 0x09,
  WRITE_ATOMICITY: 0x0a,
  ASYNC_EVENT_CONFIGURATION: 0x0b,
} as const;

/** Get Features, CDW10 10:8. */
export const FeatureSelect = { CURRENT: 0, DEFAULT: 1, SAVED: 2, CAPABILITIES: 3 } as const;
/** What `FeatureSelect.CAPABILITIES` returns: the feature can be changed. None is saveable or per namespace. */
export const FEATURE_CHANGEABLE = 0x4;
/** SV of CDW10 of Set Features. */
export const SET_FEATURES_SAVE = 0x80000000;

export const LogPage = {
  ERROR_INFORMATION: 0x01,
  SMART: 0x02,
  FIRMWARE_SLOT: 0x03,
  CHANGED_NAMESPACES: 0x04,
  COMMANDS_SUPPORTED: 0x05,
} as const;

/** RAE of CDW10 of Get Log Page: the events that point to the page stay masked. */
export const RETAIN_ASYNC_EVENT = 0x8000;

/** Asynchronous event types and their information (section 5.2). */
export const AsyncEventType = { ERROR: 0, SMART: 1 } as const;
export const ErrorEvent = { INVALID_DOORBELL_REGISTER: 0, INVALID_DOORBELL_VALUE: 1 } as const;
export const SmartEvent = { TEMPERATURE: 1 } as const;
/** Critical warnings of the SMART log, and their enable bits in Asynchronous Event Configuration. */
export const CRITICAL_WARNING_TEMPERATURE = 0x02;
