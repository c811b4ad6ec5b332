// SPDX-License-Identifier: Apache-2.0
/** Whether two QMP connections lead to one QEMU: paths do not tell, since one QEMU can have several QMP sockets. */

import { randomUUID } from 'node:crypto';
import * as z from '../zod.js';
import type { QmpClient } from './qmp.js';

const Chardevs = z.array(z.object({ label: z.string() }));

/** Marks the one QEMU, for the time of a question, by a character device with a random name, and looks for it in the other. */
export async function isSameQemu(
  one: QmpClient,
  other: QmpClient,
  { signal }: { readonly signal?: AbortSignal | undefined } = {},
): Promise<boolean> {
  const id = `devstate-mark-${randomUUID()}`;
  const backend = { type: 'null', data: {} };
  await one.execute('chardev-add', { arguments: { id, backend }, signal });
  try {
    const chardevs = await other.execute('query-chardev', { schema: Chardevs, signal });
    return chardevs.some(({ label }) => label === id);
  } finally {
    // Sent in any case; the answer of a QEMU that has fallen silent is not waited for.
    if (signal?.aborted === true) one.execute('chardev-remove', { arguments: { id } }).catch(() => {});
    else await one.execute('chardev-remove', { arguments: { id }, signal });
  }
}
