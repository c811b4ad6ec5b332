// SPDX-License-Identifier: Apache-2.0
/** The memory backends of a VM, as far as it matters to a device server that maps them. */
import type { Stats } from 'node:fs';
import { stat } from 'node:fs/promises';
import * as z from '../zod.js';
import { seenBy } from './process-view.js';
import type { QmpClient } from './qmp.js';

const Capabilities = z.array(z.object({ capability: z.string(), state: z.boolean() }));
const Backends = z.array(z.object({ id: z.string().optional(), share: z.boolean() }));

/** Backends whose memory is a file, which QEMU passes to device servers. */
const FILES = ['memory-backend-memfd', 'memory-backend-file', 'memory-backend-shm'];

/**
 * Ids of the memory backends that are files and have `share=off`: QEMU writes to a copy of its own, which the process that maps the
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

/**
 * What would leave RAM behind, or write over it, as sentences: QEMU does not send what is shared with `x-ignore-shared`,
 * and with one file at both ends it writes what was, over what the guest has by now.
 */
export async function whyMemoryIsLost(
  source: QmpClient,
  destination: QmpClient,
  { signal }: { readonly signal?: AbortSignal | undefined } = {},
): Promise<string[]> {
  const reasons: string[] = [];
  for (const [where, qmp] of Object.entries({ source, destination })) {
    const capabilities = await qmp.execute('query-migrate-capabilities', { schema: Capabilities, signal });
    const isOn = capabilities.some(({ capability, state }) => capability === 'x-ignore-shared' && state);
    if (isOn)
      reasons.push(
        `x-ignore-shared is on at the ${where} QEMU, with which RAM that devices map is not sent: switch it off (migrate-set-capabilities)`,
      );
  }
  const [here, there] = [await memoryFiles(source, signal), await memoryFiles(destination, signal)];
  for (const { path, file } of here)
    if (there.some((other) => other.file.dev === file.dev && other.file.ino === file.ino))
      reasons.push(
        `source and destination QEMU have the same file as RAM (${path}), and the running guest's memory would be overwritten: give the destination a file of its own, or replace the QEMU with devstate upgrade --qemu`,
      );
  return reasons;
}

/** Files that are RAM, as far as they have a name; none of a QEMU whose folders cannot be looked into. */
async function memoryFiles(
  qmp: QmpClient,
  signal: AbortSignal | undefined,
): Promise<{ path: string; file: Stats }[]> {
  const found: { path: string; file: Stats }[] = [];
  if (qmp.pid <= 0) return found;
  for (const { id, share } of await qmp.execute('query-memdev', { schema: Backends, signal })) {
    if (!share || id === undefined) continue;
    const get = (property: string): Promise<string> => {
      const named = { path: `/objects/${id}`, property };
      return qmp.execute('qom-get', { arguments: named, schema: z.string(), signal });
    };
    if ((await get('type')) !== 'memory-backend-file') continue;
    const path = await get('mem-path');
    const file = await stat(seenBy(qmp.pid, path)).catch(() => undefined);
    // In a folder, QEMU makes a file of its own without a name.
    if (file !== undefined && !file.isDirectory()) found.push({ path, file });
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
