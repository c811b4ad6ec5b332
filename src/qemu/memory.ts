// SPDX-License-Identifier: Apache-2.0
/** The memory backends of a VM, as far as it matters to a device server that maps them. */
import { z } from 'zod';
import type { QmpClient } from './qmp.js';

const Backends = z.array(z.object({ id: z.string().optional(), share: z.boolean() }));

/** Backends whose memory is a file, which QEMU passes to device servers. */
const FILES = ['memory-backend-memfd', 'memory-backend-file', 'memory-backend-shm'];

/**
 * Ids of the memory backends that are files and have `share=off`: QEMU writes to a copy of its own, which whoever maps the
 * file does not see.
 */
export async function privateFiles(
  qmp: QmpClient,
  { signal }: { readonly signal?: AbortSignal | undefined } = {},
): Promise<string[]> {
  const found: string[] = [];
  for (const { id, share } of await qmp.execute('query-memdev', { schema: Backends, signal })) {
    if (share || id === undefined) continue;
    const property = { path: `/objects/${id}`, property: 'type' };
    const type = await qmp.execute('qom-get', { arguments: property, schema: z.string(), signal });
    if (FILES.includes(type)) found.push(id);
  }
  return found;
}
