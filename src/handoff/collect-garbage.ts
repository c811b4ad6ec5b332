// SPDX-License-Identifier: Apache-2.0
/**
 * A collection of all garbage now, so that none is begun, by threads that take processors from others, while a VMM waits: a
 * start and its rehearsals leave much of it.
 */

import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

/** Node shows its collector only under this flag, which may be given at any time. */
const FLAG = '--expose-gc';

export function collectGarbage(): void {
  setFlagsFromString(FLAG);
  const collect: unknown = runInNewContext('gc');
  if (typeof collect === 'function') collect();
}
