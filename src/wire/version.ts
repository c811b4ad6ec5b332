// SPDX-License-Identifier: Apache-2.0
/**
 * VERSION, request and reply alike: `major u16, minor u16`, then optionally a NUL-terminated JSON object with the
 * sender's capabilities. What a peer sends is checked here; keys that we do not know are ignored.
 */

import * as z from '../zod.js';
import {
  DEFAULT_MAX_DATA_XFER_SIZE,
  DEFAULT_MAX_DMA_MAPS,
  DEFAULT_MAX_MSG_FDS,
  DEFAULT_PAGE_SIZES,
} from './constants.js';
import { Errno, RequestError } from './errno.js';
import { requireBytes } from './reader.js';

/** Longest version JSON that we read. */
export const MAX_VERSION_JSON_LENGTH = 64 * 1024;

const count = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER);

const versionJson = z.object({
  capabilities: z
    .object({
      max_msg_fds: count.max(1024).optional(),
      max_data_xfer_size: count.optional(),
      max_dma_maps: count.optional(),
      pgsizes: count.optional(),
      write_multiple: z.boolean().optional(),
      twin_socket: z.object({ supported: z.boolean().optional(), fd_index: count.optional() }).optional(),
      migration: z.object({ pgsize: count.optional(), max_bitmap_size: count.optional() }).optional(),
    })
    .optional(),
});

/**
 * Capabilities of one end, defaults filled in (specification, "Version Data Format"). A schema, as what was agreed on
 * goes over to a successor.
 */
export const capabilitiesSchema = z.object({
  /** Most fds that the sender of this can receive in one message. */
  maxMsgFds: count,
  /** Most bytes of one region, DMA or migration data transfer. */
  maxDataXferSize: count,
  maxDmaMaps: count,
  /** Bit mask of page sizes for DMA maps. */
  pageSizes: count,
  writeMultiple: z.boolean(),
  twinSocket: z.boolean(),
  /** Index, in the reply's fds, of the socket for commands from the server. */
  twinSocketFdIndex: count.exactOptional(),
  /** 0.9.1's `migration.pgsize`; still sent by QEMU and libvfio-user. */
  migrationPageSize: count.exactOptional(),
});
export type Capabilities = z.infer<typeof capabilitiesSchema>;

export const defaultCapabilities: Capabilities = {
  maxMsgFds: DEFAULT_MAX_MSG_FDS,
  maxDataXferSize: DEFAULT_MAX_DATA_XFER_SIZE,
  maxDmaMaps: DEFAULT_MAX_DMA_MAPS,
  pageSizes: DEFAULT_PAGE_SIZES,
  writeMultiple: false,
  twinSocket: false,
};

export interface Version {
  major: number;
  minor: number;
  capabilities: Capabilities;
}

/** Reads a VERSION payload. @throws RequestError EINVAL for what is not a capabilities object */
export function decodeVersion(view: DataView, at: number, end: number): Version {
  requireBytes(view, at, end, 4, 'VERSION');
  const major = view.getUint16(at, true);
  const minor = view.getUint16(at + 2, true);
  if (end === at + 4) return { major, minor, capabilities: defaultCapabilities };
  if (end - at - 4 > MAX_VERSION_JSON_LENGTH)
    throw new RequestError(Errno.EINVAL, 'VERSION JSON is too long');
  if (view.getUint8(end - 1) !== 0)
    throw new RequestError(Errno.EINVAL, 'VERSION JSON lacks its terminating NUL');
  const text = new TextDecoder().decode(new Uint8Array(view.buffer, view.byteOffset + at + 4, end - at - 5));
  return { major, minor, capabilities: parseCapabilities(text) };
}

function parseCapabilities(text: string): Capabilities {
  let json: unknown;
  try {
    json = text === '' ? {} : JSON.parse(text);
  } catch {
    throw new RequestError(Errno.EINVAL, 'VERSION data is not JSON');
  }
  const parsed = versionJson.safeParse(json);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new RequestError(
      Errno.EINVAL,
      `VERSION JSON: ${issue?.path.join('.') ?? ''}: ${issue?.message ?? 'invalid'}`,
    );
  }
  const given = parsed.data.capabilities ?? {};
  const capabilities: Capabilities = {
    maxMsgFds: given.max_msg_fds ?? DEFAULT_MAX_MSG_FDS,
    maxDataXferSize: given.max_data_xfer_size ?? DEFAULT_MAX_DATA_XFER_SIZE,
    maxDmaMaps: given.max_dma_maps ?? DEFAULT_MAX_DMA_MAPS,
    pageSizes: given.pgsizes ?? DEFAULT_PAGE_SIZES,
    writeMultiple: given.write_multiple ?? false,
    twinSocket: given.twin_socket?.supported ?? false,
  };
  if (given.twin_socket?.fd_index !== undefined) capabilities.twinSocketFdIndex = given.twin_socket.fd_index;
  if (given.migration?.pgsize !== undefined) capabilities.migrationPageSize = given.migration.pgsize;
  return capabilities;
}

/** The VERSION payload, its NUL included. */
export function encodeVersion(version: Version): Uint8Array {
  const { capabilities } = version;
  const json: Record<string, unknown> = {
    max_msg_fds: capabilities.maxMsgFds,
    max_data_xfer_size: capabilities.maxDataXferSize,
    max_dma_maps: capabilities.maxDmaMaps,
    pgsizes: capabilities.pageSizes,
    write_multiple: capabilities.writeMultiple,
  };
  if (capabilities.twinSocket) {
    json.twin_socket =
      capabilities.twinSocketFdIndex === undefined
        ? { supported: true }
        : { supported: true, fd_index: capabilities.twinSocketFdIndex };
  }
  if (capabilities.migrationPageSize !== undefined)
    json.migration = { pgsize: capabilities.migrationPageSize };
  const text = new TextEncoder().encode(JSON.stringify({ capabilities: json }));
  const payload = new Uint8Array(4 + text.length + 1);
  const view = new DataView(payload.buffer);
  view.setUint16(0, version.major, true);
  view.setUint16(2, version.minor, true);
  payload.set(text, 4);
  return payload;
}
