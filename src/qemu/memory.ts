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

/** A block of RAM as QEMU's migration stream has it: by its name. */
export interface RamBlock {
  readonly name: string;
  /** Bytes in use. */
  readonly used: number;
}

/** QEMU says it to people only: a name, a page size, and three numbers before the rest. */
const RAM_BLOCK = /^ *(\S.*?) +\d+ [KMGT]?i?B +0x[0-9a-f]+ 0x([0-9a-f]+) 0x[0-9a-f]+ /gim;

/** All RAM of a QEMU, ROMs included. Empty if QEMU does not say it in the way that is known. */
export async function ramBlocks(
  qmp: QmpClient,
  { signal }: { readonly signal?: AbortSignal | undefined } = {},
): Promise<RamBlock[]> {
  const command = { 'command-line': 'info ramblock' };
  const text = await qmp.execute('human-monitor-command', { arguments: command, schema: z.string(), signal });
  return [...text.matchAll(RAM_BLOCK)].map(([, name = '', used = '']) => ({
    name,
    used: Number.parseInt(used, 16),
  }));
}
