// SPDX-License-Identifier: Apache-2.0
/** What a server of ours answers to DEVSTATE_DESCRIPTION. */

import * as z from '../zod.js';

const parameter = z.union([z.string(), z.number(), z.boolean()]);
const definition = z.object({
  type: z.enum(['bool', 'int', 'str']),
  description: z.string(),
  initial: parameter,
  off: parameter.exactOptional(),
  allowed: z
    .array(z.union([parameter, z.object({ minimum: z.number(), maximum: z.number() })]))
    .exactOptional(),
  maximumLength: z.number().exactOptional(),
});
export const deviceDescription = z.object({
  model: z.object({
    uri: z.string(),
    parameters: z.record(z.string(), parameter),
    definitions: z.record(z.string(), definition).exactOptional(),
  }),
  producer: z.object({ name: z.string(), version: z.string() }),
  formats: z.array(
    z.object({
      uuid: z.string(),
      name: z.string(),
      version: z.object({ major: z.number().int(), minor: z.number().int() }),
    }),
  ),
  pci: z.object({ vendorId: z.number().int(), deviceId: z.number().int() }),
});

/** What a device says of itself on its migration socket. */
export type DeviceDescription = z.infer<typeof deviceDescription>;
