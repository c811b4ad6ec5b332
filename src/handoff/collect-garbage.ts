// SPDX-License-Identifier: Apache-2.0
/** A collection of young garbage now, so that none comes when a VMM waits: a start leaves much of it. */

import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

/** Node shows its collector only under this flag, which may be given at any time. */
const FLAG = '--expose-gc';

export function collectYoungGarbage(): void {
  setFlagsFromString(FLAG);
  const collect: unknown = runInNewContext('gc');
  if (typeof collect !== 'function') return;
  // What has survived once is moved out of the way by the second.
  for (let round = 0; round < 2; round++) collect({ type: 'minor' });
}
