// SPDX-License-Identifier: Apache-2.0
/** Negative errno values of the addon ↔ errors. */

import { constants } from 'node:os';
import { getSystemErrorName } from 'node:util';
import { DevstateError } from '../errors.js';

/** Positive Linux errno values by name. */
export const Errno = constants.errno;

/** The error of a system call that returned `-errno`; `what` says what was tried, as in "map 4096 bytes". */
export function systemError(what: string, errno: number): DevstateError {
  const name = getSystemErrorName(-errno);
  return new DevstateError('DEVSTATE_E_SYSTEM', `cannot ${what}: ${name}`, { errno });
}

/**
 * The value of a call of the addon.
 * @throws DEVSTATE_E_SYSTEM when it is a negative errno.
 */
export function check(result: number, what: string): number {
  if (result < 0) throw systemError(what, -result);
  return result;
}

/** The object that a call of the addon made, or DEVSTATE_E_SYSTEM when it gave a negative errno. */
export function checkObject<T extends object>(result: T | number, what: string): T {
  if (typeof result === 'number') throw systemError(what, -result);
  return result;
}
