// SPDX-License-Identifier: Apache-2.0
import { Errno, RequestError } from '../../../wire/index.js';

/** The error that refuses a state: EINVAL, with every reason. */
export function refused(...reasons: string[]): RequestError {
  return new RequestError(Errno.EINVAL, `NVMe state refused: ${reasons.join('; ')}`);
}
