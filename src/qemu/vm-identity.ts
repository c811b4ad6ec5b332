// SPDX-License-Identifier: Apache-2.0
/** Which VM a QEMU was started for, as its command line says. */

import * as z from '../zod.js';
import type { QmpClient } from './qmp.js';

const Uuid = z.object({ UUID: z.string() });
const Name = z.object({ name: z.string().optional() });

export interface VmIdentity {
  /** All zeros where none was given (-uuid). */
  readonly uuid: string;
  /** -name, undefined where none was given. */
  readonly name: string | undefined;
}

export async function queryVmIdentity(
  qmp: QmpClient,
  { signal }: { readonly signal?: AbortSignal | undefined } = {},
): Promise<VmIdentity> {
  const { UUID: uuid } = await qmp.execute('query-uuid', { schema: Uuid, signal });
  const { name } = await qmp.execute('query-name', { schema: Name, signal });
  return { uuid, name };
}
