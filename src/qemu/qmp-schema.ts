// SPDX-License-Identifier: Apache-2.0
/** What a QEMU's commands take, as its own schema says: distributions bring features to older versions, and leave some out. */
import * as z from '../zod.js';
import { type QmpClient, QmpCommandError } from './qmp.js';

const Entities = z.array(
  z.looseObject({
    name: z.string(),
    'meta-type': z.string(),
    'arg-type': z.string().optional(),
    members: z.array(z.unknown()).optional(),
  }),
);
const Member = z.object({ name: z.string() });

/** Whether `command` takes `argument`. False for a QEMU that does not give its schema. */
export async function takesArgument(
  qmp: QmpClient,
  command: string,
  argument: string,
  { signal }: { readonly signal?: AbortSignal | undefined } = {},
): Promise<boolean> {
  const entities = await qmp
    .execute('query-qmp-schema', { schema: Entities, signal })
    .catch((error: unknown) => {
      if (error instanceof QmpCommandError) return [];
      throw error;
    });
  const found = entities.find((one) => one['meta-type'] === 'command' && one.name === command);
  const type = entities.find((one) => one['meta-type'] === 'object' && one.name === found?.['arg-type']);
  return (type?.members ?? []).some((member) => Member.safeParse(member).data?.name === argument);
}
