// SPDX-License-Identifier: Apache-2.0
/** What goes over with the fds of an assignment (docs/vfio.md). */

import { documentBytes } from '../documents/index.js';
import * as z from '../zod.js';

/** Bytes of PCI configuration space that go over. */
export const CONFIG_LENGTH = 256;

const size = z.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER);
/** In a name of an fd, with what stands before it. */
const name = z.string().min(1).max(200);
const index = z.number().int().nonnegative().max(0xffff);
const flags = z.number().int().nonnegative().max(0xffff_ffff);

const deviceDocument = z.object({
  name,
  /** `null` for a device that was opened by its own file. */
  group: name.nullable(),
  flags,
  regions: z.array(z.object({ index, size, flags })).max(1024),
  /** The first 256 bytes of PCI config space. */
  config: documentBytes(CONFIG_LENGTH).nullable(),
  /** Interrupts that are armed, with the number of their vectors. */
  interrupts: z.array(z.object({ index, vectors: z.number().int().positive().max(4096) })).max(64),
});
export type DeviceDocument = z.infer<typeof deviceDocument>;

export const assignmentDocument = z.object({
  version: z.literal(1),
  /** The address space: a container, or an IOAS of an iommufd. */
  space: z.discriminatedUnion('kind', [
    z.object({ kind: z.literal('container') }),
    z.object({ kind: z.literal('iommufd'), ioas: z.number().int().nonnegative() }),
  ]),
  groups: z.array(name).max(4096),
  devices: z.array(deviceDocument).max(4096),
  memory: z.array(z.object({ name, size })).max(4096),
  dma: z
    .array(z.object({ iova: size, size, memory: name, offset: size, read: z.boolean(), write: z.boolean() }))
    .max(65535),
  /** Whether the eventfd comes along that tells a lender who has the devices. */
  bell: z.boolean(),
  /** What the processes that operate the devices have to tell each other. */
  application: z.unknown(),
});
export type AssignmentDocument = z.infer<typeof assignmentDocument>;

/** What the receiver receives before anything is moved. */
export const assignmentOffer = z.object({
  what: z.literal('vfio'),
  version: z.literal(1),
  /** Bytes that the receiver would have locked. */
  locked: size,
  /** Names of the devices. */
  devices: z.array(name).max(4096),
});
export type AssignmentOffer = z.infer<typeof assignmentOffer>;
