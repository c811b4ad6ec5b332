// SPDX-License-Identifier: Apache-2.0
/** Completion status: status code type in bits 10:8, status code in 7:0 (NVMe 1.4, section 4.6.1). */

export const Status = {
  SUCCESS: 0x000,
  INVALID_OPCODE: 0x001,
  INVALID_FIELD: 0x002,
  DATA_TRANSFER_ERROR: 0x004,
  INTERNAL_ERROR: 0x006,
  ABORT_REQUESTED: 0x007,
  ABORTED_SQ_DELETION: 0x008,
  INVALID_NAMESPACE: 0x00b,
  COMMAND_SEQUENCE_ERROR: 0x00c,
  PRP_OFFSET_INVALID: 0x013,
  LBA_OUT_OF_RANGE: 0x080,
  CAPACITY_EXCEEDED: 0x081,
  COMPLETION_QUEUE_INVALID: 0x100,
  INVALID_QUEUE_IDENTIFIER: 0x101,
  INVALID_QUEUE_SIZE: 0x102,
  ASYNC_EVENT_LIMIT_EXCEEDED: 0x105,
  INVALID_INTERRUPT_VECTOR: 0x108,
  INVALID_LOG_PAGE: 0x109,
  INVALID_QUEUE_DELETION: 0x10c,
  FEATURE_NOT_SAVEABLE: 0x10d,
  FEATURE_NOT_CHANGEABLE: 0x10e,
  WRITE_FAULT: 0x280,
  UNRECOVERED_READ_ERROR: 0x281,
  COMPARE_FAILURE: 0x285,
} as const;

/** Do Not Retry and More, above the status code type. */
export const STATUS_DNR = 0x4000;
export const STATUS_MORE = 0x2000;
/** All bits a status field can have besides the phase. */
export const STATUS_MASK = 0x7fff;

/** Errors that the same command may not meet again. */
const TRANSIENT: ReadonlySet<number> = new Set([
  Status.INTERNAL_ERROR,
  Status.ABORT_REQUESTED,
  Status.ABORTED_SQ_DELETION,
  Status.WRITE_FAULT,
  Status.UNRECOVERED_READ_ERROR,
]);

/** The status field of a completion: `status` with Do Not Retry where a retry is pointless. */
export function statusField(status: number): number {
  return status === Status.SUCCESS || TRANSIENT.has(status) ? status : status | STATUS_DNR;
}
