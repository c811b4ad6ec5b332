// SPDX-License-Identifier: Apache-2.0
/**
 * The file that libvirt writes for `virsh save`, `managedsave` and snapshots of memory: a header, the domain's XML, and
 * QEMU's migration stream as a program has compressed it. Numbers are in the byte order of the host that wrote it.
 *
 *     0   magic          "LibvirtQemudSave"; "LibvirtQemudPart" until it is whole
 *     16  version        u32, 1 or 2
 *     20  data length    u32, bytes from 92 to the stream
 *     24  was running    u32
 *     28  format         u32, how the stream is compressed
 *     32  cookie offset  u32, within the data; 0 without a cookie
 *     36  unused         56 bytes
 *     92  data           the XML, ended by a NUL, perhaps a cookie, zeros
 */

import type { FieldMap } from '../../formats/index.js';

export const LIBVIRT_HEADER_LENGTH = 92;
/** Longest data that is kept; libvirt's own limit for it. */
const DATA_LENGTH_MAX = 65 * 1024 * 1024;
/** Characters of the XML that are shown. */
const SHOWN_XML = 64 * 1024;

/** By libvirt's numbers; the last is QEMU's `mapped-ram`, which is sparse, not compressed. */
const FORMATS = ['raw', 'gzip', 'bzip2', 'xz', 'lzop', 'zstd', 'sparse'] as const;
export type LibvirtFormat = (typeof FORMATS)[number];

export interface LibvirtHeader {
  readonly partial: boolean;
  readonly version: number;
  readonly wasRunning: boolean;
  /** Undefined for a number that is not known. */
  readonly format: LibvirtFormat | undefined;
  readonly formatNumber: number;
  readonly dataLength: number;
  readonly cookieOffset: number;
}

/** Undefined for what is no such file. */
export function parseLibvirtHeader(head: Uint8Array): LibvirtHeader | undefined {
  const bytes = Buffer.from(head.buffer, head.byteOffset, head.length);
  const magic = bytes.toString('latin1', 0, 16);
  if (bytes.length < LIBVIRT_HEADER_LENGTH) return undefined;
  if (magic !== 'LibvirtQemudSave' && magic !== 'LibvirtQemudPart') return undefined;
  const little = bytes.readUInt32LE(16) <= 0xffff;
  const u32 = (at: number): number => (little ? bytes.readUInt32LE(at) : bytes.readUInt32BE(at));
  return {
    partial: magic.endsWith('Part'),
    version: u32(16),
    dataLength: u32(20),
    wasRunning: u32(24) !== 0,
    formatNumber: u32(28),
    format: FORMATS[u32(28)],
    cookieOffset: u32(32),
  };
}

/** Whether its data are within what is read. */
export function isReadable({ dataLength }: LibvirtHeader): boolean {
  return dataLength <= DATA_LENGTH_MAX;
}

/** The domain and the cookie, of the bytes between header and stream. */
export function describeLibvirtData(data: Uint8Array, { cookieOffset }: LibvirtHeader): FieldMap {
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.length);
  const hasCookie = cookieOffset > 0 && cookieOffset < bytes.length;
  const xml = untilNul(bytes.subarray(0, hasCookie ? cookieOffset : bytes.length));
  const cookie = hasCookie ? untilNul(bytes.subarray(cookieOffset)) : '';
  return {
    domain: /<name>([^<]*)<\/name>/.exec(xml)?.[1] ?? null,
    uuid: /<uuid>([^<]*)<\/uuid>/.exec(xml)?.[1] ?? null,
    xml: xml.slice(0, SHOWN_XML),
    cookie: cookie === '' ? null : cookie.slice(0, SHOWN_XML),
  };
}

function untilNul(bytes: Buffer): string {
  const end = bytes.indexOf(0);
  return bytes.toString('utf8', 0, end < 0 ? bytes.length : end);
}
