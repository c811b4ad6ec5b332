// SPDX-License-Identifier: Apache-2.0
/**
 * Every error that leaves a module of devstate is a {@link DevstateError}: a stable code for machines,
 * a sentence for people that says what to do next, and the cause.
 * `docs/troubleshooting.md` lists every code; a test keeps the two in step.
 */

/** Exit code of a command that ends with an error of this class. */
export const ExitCode = {
  done: 0,
  failed: 1,
  usage: 2,
  incompatible: 3,
  cancelled: 4,
  cannotConnect: 5,
  corrupt: 6,
} as const;
export type ExitCode = (typeof ExitCode)[keyof typeof ExitCode];

/** Code → exit code of the command that fails with it. The one list of codes. */
export const ERROR_CODES = {
  /** Something failed that has no better name; the cause says what. */
  DEVSTATE_E_INTERNAL: ExitCode.failed,
  /** A command line or option is wrong. */
  DEVSTATE_E_USAGE: ExitCode.usage,
  /** A system call failed; the cause carries errno. */
  DEVSTATE_E_SYSTEM: ExitCode.failed,
  /** The native addon is missing or does not load. */
  DEVSTATE_E_ADDON: ExitCode.failed,
  /** Nothing answers at the socket: it does not exist, no process listens, or its listener accepts no connection. */
  DEVSTATE_E_CONNECT: ExitCode.cannotConnect,
  /** The path to listen at is taken: a live socket, or a file that is no socket. */
  DEVSTATE_E_ADDRESS_IN_USE: ExitCode.failed,
  /** A file descriptor was used after it was closed or given away. */
  DEVSTATE_E_FD_CLOSED: ExitCode.failed,
  /** The connection is closed, or was lost. */
  DEVSTATE_E_CONNECTION_CLOSED: ExitCode.failed,
  /** The peer closed the connection in the middle of a message. */
  DEVSTATE_E_MESSAGE_TRUNCATED: ExitCode.failed,
  /** A message claims a length that is below its header's or above the limit. */
  DEVSTATE_E_MESSAGE_LENGTH: ExitCode.failed,
  /** A message carried more file descriptors than agreed, carried them out of place, or some were lost. */
  DEVSTATE_E_MESSAGE_FDS: ExitCode.failed,
  /** The peer does not read what is sent to it, and no more can be kept for it. */
  DEVSTATE_E_SEND_QUEUE_FULL: ExitCode.failed,
  /** The connection cannot be given away while a message is half received or half sent. */
  DEVSTATE_E_CONNECTION_BUSY: ExitCode.failed,
  /** The peer did not reply in time. */
  DEVSTATE_E_REQUEST_TIMEOUT: ExitCode.cancelled,
  /** All 65536 request ids are waiting for replies. */
  DEVSTATE_E_REQUEST_LIMIT: ExitCode.failed,
  /** No QMP server answers at the socket: nothing listens, another client holds it, or it speaks something else. */
  DEVSTATE_E_QMP_CONNECT: ExitCode.cannotConnect,
  /** The QMP connection ended; QEMU may have exited. */
  DEVSTATE_E_QMP_CLOSED: ExitCode.failed,
  /** QEMU sent something that is not QMP; the connection is given up. */
  DEVSTATE_E_QMP_PROTOCOL: ExitCode.failed,
  /** QEMU refused a QMP command; the message carries QEMU's own words. */
  DEVSTATE_E_QMP_COMMAND: ExitCode.failed,
  /** QEMU's qtest access could not be set up, was lost, or refused a command. */
  DEVSTATE_E_QTEST: ExitCode.failed,
  /** QEMU has no PCI device with the given id. */
  DEVSTATE_E_PCI_DEVICE: ExitCode.incompatible,
  DEVSTATE_E_PCI_CONFIG_ACCESS: ExitCode.incompatible,
  /** QEMU's view of a PCI device cannot be captured, or does not fit the device it is replayed to. */
  DEVSTATE_E_PCI_VIEW: ExitCode.failed,
  /** QEMU's migration failed or was cancelled. */
  DEVSTATE_E_QEMU_MIGRATION: ExitCode.failed,
  /** The VM ended while it was worked on: the guest powered off or panicked, or its QEMU was ended. */
  DEVSTATE_E_VM_ENDED: ExitCode.failed,
  /** The guest, or another client of QEMU, changed the VM or a device of it so that the operation cannot be completed. */
  DEVSTATE_E_VM_CHANGED: ExitCode.failed,
  /** What a QEMU hands to its successor lacks what must be there, or is not what its names say; it was not passed on. */
  DEVSTATE_E_CPR_REFUSED: ExitCode.incompatible,
  /** A cpr-transfer's destination left before it had read what it was given. */
  DEVSTATE_E_CPR_CHANNEL: ExitCode.failed,
  /** A text that should be a UUID is none. */
  DEVSTATE_E_UUID: ExitCode.usage,
  /** The registry knows no format of this name or UUID. */
  DEVSTATE_E_FORMAT_UNKNOWN: ExitCode.incompatible,
  /** The format is known, its version in the blob is one this reader cannot read. */
  DEVSTATE_E_FORMAT_VERSION: ExitCode.incompatible,
  /** A state of one format cannot be expressed in another. */
  DEVSTATE_E_CONVERSION: ExitCode.incompatible,
  /** A record of a state is not what its format's schema says, or holds what cannot be. */
  DEVSTATE_E_STATE_RECORD: ExitCode.corrupt,
  /** The values that a device gave or was given one by one do not make a state. */
  DEVSTATE_E_STATE_VALUE: ExitCode.corrupt,
  /** The bytes do not carry the envelope's magic: not a tagged state blob, or its first bytes are damaged. */
  DEVSTATE_E_ENVELOPE_MAGIC: ExitCode.corrupt,
  /** The envelope is of a version this reader does not know. */
  DEVSTATE_E_ENVELOPE_VERSION: ExitCode.incompatible,
  /** The envelope header is damaged or contradicts itself. */
  DEVSTATE_E_ENVELOPE_HEADER: ExitCode.corrupt,
  /** The metadata map is damaged, or a value cannot be part of one. */
  DEVSTATE_E_ENVELOPE_METADATA: ExitCode.corrupt,
  /** The blob requires a feature that this reader does not have. */
  DEVSTATE_E_ENVELOPE_FEATURE: ExitCode.incompatible,
  /** A record header is damaged or contradicts itself. */
  DEVSTATE_E_ENVELOPE_RECORD: ExitCode.corrupt,
  /** A mandatory record is of a type this reader does not know. */
  DEVSTATE_E_ENVELOPE_RECORD_UNKNOWN: ExitCode.incompatible,
  /** A record is longer than the envelope allows. */
  DEVSTATE_E_ENVELOPE_RECORD_TOO_LONG: ExitCode.corrupt,
  /** A record was lost on the way, or came before its turn. */
  DEVSTATE_E_ENVELOPE_RECORD_MISSING: ExitCode.corrupt,
  /** A record came a second time, or after its turn. */
  DEVSTATE_E_ENVELOPE_RECORD_REPEATED: ExitCode.corrupt,
  /** A record's payload or padding is damaged. */
  DEVSTATE_E_ENVELOPE_PAYLOAD: ExitCode.corrupt,
  /** The end record counts other records or bytes than there were. */
  DEVSTATE_E_ENVELOPE_COUNT: ExitCode.corrupt,
  /** The digest over all records is not that of the end record: a record was replaced. */
  DEVSTATE_E_ENVELOPE_DIGEST: ExitCode.corrupt,
  /** The blob stops before its end record is complete. */
  DEVSTATE_E_ENVELOPE_TRUNCATED: ExitCode.corrupt,
  /** Bytes follow the end record. */
  DEVSTATE_E_ENVELOPE_TRAILING: ExitCode.corrupt,
  /** Content that is not ours (a migration stream, another device's state) stops before its end. */
  DEVSTATE_E_CONTENT_TRUNCATED: ExitCode.corrupt,
  /** Content that is not ours has bytes that its format cannot have. */
  DEVSTATE_E_CONTENT_DAMAGED: ExitCode.corrupt,
  /** Content that is not ours uses a part of its format that this reader does not follow. */
  DEVSTATE_E_CONTENT_UNSUPPORTED: ExitCode.incompatible,
  /** The peer broke the vfio-user protocol; the connection was closed. */
  DEVSTATE_E_PROTOCOL: ExitCode.failed,
  /** The device server, or a driver, answered a command with an error; its errno is the error's `errno`. */
  DEVSTATE_E_REFUSED: ExitCode.failed,
  /** The device behind a socket cannot migrate, or the socket is not a migration socket; or a driver has no migration. */
  DEVSTATE_E_NOT_MIGRATABLE: ExitCode.incompatible,
  /** The two ends of a migration do not fit together; every reason is listed. */
  DEVSTATE_E_INCOMPATIBLE: ExitCode.incompatible,
  /** The operation was cancelled (SIGINT, SIGTERM, or through the API); the source runs on. */
  DEVSTATE_E_CANCELLED: ExitCode.cancelled,
  /** The operation took longer than its time limit; the source runs on. */
  DEVSTATE_E_TIMEOUT: ExitCode.cancelled,
  /** A migration failed and the source could not be put back by itself. */
  DEVSTATE_E_ROLLBACK: ExitCode.failed,
  /** What was to be selected with `--path` is no JSONPath. */
  DEVSTATE_E_PATH: ExitCode.usage,
  /** A file could not be written. */
  DEVSTATE_E_OUTPUT: ExitCode.failed,
  /** A file could not be read. */
  DEVSTATE_E_INPUT: ExitCode.failed,
  /** The crash journal is damaged, or keeps another device or version than the server that is to continue with it. */
  DEVSTATE_E_JOURNAL: ExitCode.failed,
  /** The server under `devstate run` crashed again and again, or before it ever served. */
  DEVSTATE_E_CRASHED: ExitCode.failed,
  /** A device model's parameter does not exist, or has a value it cannot have. */
  DEVSTATE_E_MODEL_PARAMETER: ExitCode.usage,
  /** The image file does not exist and may not be created. */
  DEVSTATE_E_IMAGE_MISSING: ExitCode.failed,
  /** The image file cannot be opened for reading and writing. */
  DEVSTATE_E_IMAGE_OPEN: ExitCode.failed,
  /** The image file is smaller or larger than it has to be, or was resized while in use. */
  DEVSTATE_E_IMAGE_SIZE: ExitCode.failed,
  /** The image file's size is not a multiple of the logical block size. */
  DEVSTATE_E_IMAGE_BLOCK_SIZE: ExitCode.failed,
  /** Another process holds the image file's lock, or this one was to write without holding it. */
  DEVSTATE_E_IMAGE_LOCKED: ExitCode.failed,
  /** A handoff from one process to the next did not come about; the message names the phase. */
  DEVSTATE_E_HANDOFF: ExitCode.failed,
  /** What came with a handoff is not what it should be: wrong counts, missing or foreign fds, another version. */
  DEVSTATE_E_HANDOFF_BUNDLE: ExitCode.failed,
  /** The process at the other end of a handoff is another user's. */
  DEVSTATE_E_HANDOFF_PEER: ExitCode.failed,
  /** The relay cannot do that now: no VMM is connected, no server is attached, or something else is under way. */
  DEVSTATE_E_RELAY: ExitCode.failed,
  /** A call of the kernel's VFIO or iommufd failed; the message names the usual cause, the error's `errno` is the kernel's. */
  DEVSTATE_E_VFIO: ExitCode.failed,
  /** No right to open a file of VFIO. */
  DEVSTATE_E_VFIO_ACCESS: ExitCode.failed,
  /** A VFIO group or device is open already, in this process or another. */
  DEVSTATE_E_VFIO_BUSY: ExitCode.failed,
  /** There is no such VFIO group or device, or the group is not viable. */
  DEVSTATE_E_VFIO_GROUP: ExitCode.failed,
  /** More memory would be locked for DMA than the process may lock (RLIMIT_MEMLOCK). */
  DEVSTATE_E_VFIO_MEMLOCK: ExitCode.failed,
  /** Another process has the VFIO devices now: this one must not operate them. */
  DEVSTATE_E_VFIO_LEASE: ExitCode.failed,
  /** The DMA mappings of a container cannot be moved to another process on this kernel. */
  DEVSTATE_E_VFIO_REBIND: ExitCode.incompatible,
  /** A VFIO device is not in the state in which it was given. */
  DEVSTATE_E_VFIO_STATE: ExitCode.failed,
  /** The built-in guest has no free memory left. */
  DEVSTATE_E_GUEST_MEMORY: ExitCode.failed,
  /** The built-in guest's NVMe driver met a controller that is not ready, not compatible, or does what no controller may. */
  DEVSTATE_E_GUEST_CONTROLLER: ExitCode.failed,
  /** The controller completed a command of the built-in guest with an error status. */
  DEVSTATE_E_GUEST_COMMAND: ExitCode.failed,
  /** The built-in guest does not find on its disk what it wrote there. */
  DEVSTATE_E_GUEST_DATA: ExitCode.failed,
  /** A command of the built-in guest was not completed in time. */
  DEVSTATE_E_GUEST_TIMEOUT: ExitCode.failed,
} as const satisfies Record<`DEVSTATE_E_${string}`, ExitCode>;
export type ErrorCode = keyof typeof ERROR_CODES;

/** Exit code of a command that finds an error of this code: 1 for a code that there is not. */
export function exitCodeOf(code: string): ExitCode {
  return new Map<string, ExitCode>(Object.entries(ERROR_CODES)).get(code) ?? ExitCode.failed;
}

/** An error with a stable code. `errno`, when present, is the positive Linux errno that belongs to it. */
export class DevstateError extends Error {
  readonly code: ErrorCode;
  readonly errno: number | undefined;

  constructor(code: ErrorCode, message: string, options: { cause?: unknown; errno?: number } = {}) {
    super(message, options.cause === undefined ? {} : { cause: options.cause });
    this.name = 'DevstateError';
    this.code = code;
    this.errno = options.errno;
  }

  /** Exit code for a command that ends with this error. */
  get exitCode(): ExitCode {
    return ERROR_CODES[this.code];
  }
}

/** The error itself if it is one of ours, else one that wraps it. */
export function asDevstateError(error: unknown, code: ErrorCode = 'DEVSTATE_E_INTERNAL'): DevstateError {
  if (error instanceof DevstateError) return error;
  const message = error instanceof Error ? error.message : String(error);
  return new DevstateError(code, message, { cause: error });
}
