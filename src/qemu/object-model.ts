// SPDX-License-Identifier: Apache-2.0
/** Reads QEMU's object model (QOM): what an object holds, and its properties. */

import * as z from '../zod.js';
import { type QmpClient, QmpCommandError } from './qmp.js';

export interface Cancellable {
  readonly signal?: AbortSignal | undefined;
}

const Children = z.array(z.object({ name: z.string(), type: z.string() }));
export type Child = z.infer<typeof Children>[number];

/** The properties of the object at `path`. Those of type `child<T>` are objects themselves. */
export async function childrenOf(qmp: QmpClient, path: string, { signal }: Cancellable): Promise<Child[]> {
  return qmp.execute('qom-list', { arguments: { path }, schema: Children, signal });
}

/** Undefined when the object has no such property, or it is of another kind. */
export async function property<T>(
  qmp: QmpClient,
  path: string,
  name: string,
  schema: z.ZodType<T>,
  { signal }: Cancellable,
): Promise<T | undefined> {
  try {
    const value = await qmp.execute('qom-get', { arguments: { path, property: name }, signal });
    return schema.safeParse(value).data;
  } catch (error) {
    if (error instanceof QmpCommandError) return undefined;
    throw error;
  }
}
