// SPDX-License-Identifier: Apache-2.0
/** Linux errno values that go over the wire, and the error by which a decoder or handler asks for one. */

import { constants } from 'node:os';

const { errno } = constants;

export const Errno = {
  EPERM: errno.EPERM,
  ENOENT: errno.ENOENT,
  EIO: errno.EIO,
  ENXIO: errno.ENXIO,
  EAGAIN: errno.EAGAIN,
  ENOMEM: errno.ENOMEM,
  EACCES: errno.EACCES,
  EFAULT: errno.EFAULT,
  EBUSY: errno.EBUSY,
  EEXIST: errno.EEXIST,
  ENODEV: errno.ENODEV,
  EINVAL: errno.EINVAL,
  EMFILE: errno.EMFILE,
  ENOSPC: errno.ENOSPC,
  ESPIPE: errno.ESPIPE,
  E2BIG: errno.E2BIG,
  ERANGE: errno.ERANGE,
  ENOSYS: errno.ENOSYS,
  ENODATA: errno.ENODATA,
  EPROTO: errno.EPROTO,
  EOVERFLOW: errno.EOVERFLOW,
  ENOTTY: errno.ENOTTY,
  ENOTSUP: errno.EOPNOTSUPP,
  ECANCELED: errno.ECANCELED,
  ETIMEDOUT: errno.ETIMEDOUT,
  ECONNRESET: errno.ECONNRESET,
  ENOTCONN: errno.ENOTCONN,
} as const;

const names = new Map<number, string>(Object.entries(errno).map(([name, value]) => [value, name]));

/** `EINVAL` for 22 and so on; `errno N` for what this system has no name for. */
export function errnoName(value: number): string {
  return names.get(value) ?? `errno ${value}`;
}

/**
 * A request that its receiver refuses with an errno in the error reply.
 * Cheap on purpose (no stack, no cause): a hostile peer can provoke one per message.
 */
export class RequestError extends Error {
  readonly errno: number;

  constructor(errno: number, message: string) {
    const limit = Error.stackTraceLimit;
    Error.stackTraceLimit = 0;
    super(`${message} (${errnoName(errno)})`);
    Error.stackTraceLimit = limit;
    this.name = 'RequestError';
    this.errno = errno;
  }
}
