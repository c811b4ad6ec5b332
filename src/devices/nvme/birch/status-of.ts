// SPDX-License-Identifier: Apache-2.0
/** What was thrown, as the status of the command it happened to. */

import { type DeviceHost, DmaFault } from '../../../device/index.js';
import { DevstateError } from '../../../errors.js';
import { Status } from '../spec/index.js';

/** Logs what is no fault of the guest's. */
export function statusOf(host: DeviceHost, error: unknown): number {
  if (error instanceof DmaFault) return Status.DATA_TRANSFER_ERROR;
  const text = error instanceof DevstateError ? `${error.message} (${error.code})` : String(error);
  host.log('error', `command failed: ${text}`);
  return Status.INTERNAL_ERROR;
}
