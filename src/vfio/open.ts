// SPDX-License-Identifier: Apache-2.0
/** Opening the files of VFIO: the only step that needs a right to them. */

import { openSync } from 'node:fs';
import { DevstateError } from '../errors.js';
import { Errno } from '../native/index.js';
import { Fd } from '../transport/index.js';
import { vfioError } from './call.js';

export const VFIO_DIRECTORY = '/dev/vfio';

/**
 * @throws DEVSTATE_E_VFIO_ACCESS without the right to open it, DEVSTATE_E_VFIO_BUSY when somebody has it open,
 * DEVSTATE_E_VFIO_GROUP when there is no such file
 */
export function openVfio(path: string): Fd {
  try {
    return new Fd(openSync(path, 'r+'));
  } catch (cause) {
    const { errno = -Errno.EIO } = cause as NodeJS.ErrnoException;
    throw openError(path, -errno);
  }
}

function openError(path: string, errno: number): DevstateError {
  const cause = vfioError(`open ${path}`, undefined, errno);
  const known: Readonly<Record<number, readonly [DevstateError['code'], string]>> = {
    [Errno.ENOENT]: [
      'DEVSTATE_E_VFIO_GROUP',
      'there is no such file: is the device bound to vfio-pci, and are the vfio modules loaded?',
    ],
    [Errno.EBUSY]: [
      'DEVSTATE_E_VFIO_BUSY',
      'another process has it open (a group can be opened once, and a device by its group or by its own file); have that process hand it over',
    ],
    [Errno.EACCES]: [
      'DEVSTATE_E_VFIO_ACCESS',
      'permission denied: run "devstate vfio hold" as a user that may open it, and borrow from there',
    ],
    [Errno.EPERM]: ['DEVSTATE_E_VFIO_ACCESS', 'not permitted: a group without an IOMMU takes CAP_SYS_RAWIO'],
    [Errno.ENODEV]: ['DEVSTATE_E_VFIO_GROUP', 'its device is gone, or its driver is not loaded'],
  };
  const [code, words] = known[errno] ?? [];
  if (code === undefined) return cause;
  return new DevstateError(code, `cannot open ${path}: ${words}`, { cause, errno });
}
