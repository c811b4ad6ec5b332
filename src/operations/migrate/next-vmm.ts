// SPDX-License-Identifier: Apache-2.0
/** A device whose next VMM was awaited, or has come, is the first one's again. */

import type { MigrationClient } from '../../client/index.js';
import { MigrationState } from '../../wire/index.js';

/** Idempotent. After an exchange the device stays stopped. */
export async function returnToFirst(device: MigrationClient): Promise<void> {
  if (!(await device.canFollow())) return;
  const { phase } = await device.nextVmm();
  if (phase === 'none') return;
  // It must stand still to change hands; what it has stopped for it does not lose.
  if (phase === 'promoted') await device.setState(MigrationState.STOP);
  await device.setNextVmm({ action: 'roll-back' });
}
