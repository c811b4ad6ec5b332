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
  /** QEMU's view of a PCI device cannot be captured, or does not fit the device it is replayed to. */
  DEVSTATE_E_PCI_VIEW: ExitCode.failed,
  /** QEMU's migration failed or was cancelled. */
  DEVSTATE_E_QEMU_MIGRATION: ExitCode.failed,
} as const satisfies Record<`DEVSTATE_E_${string}`, ExitCode>;
export type ErrorCode = keyof typeof ERROR_CODES;

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
