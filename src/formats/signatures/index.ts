// SPDX-License-Identifier: Apache-2.0
/**
 * What files are that hold no device's state, recognised by their first bytes: an operator who names the wrong file learns what
 * it is. To make another one known, add a row to one of the tables.
 */
import { hasMagic } from '../envelope/header.js';
import type { FieldMap } from '../fields.js';
import type { ContentFile, ContentKind } from '../foreign/content.js';
import { DISK_FORMATS, RAW_DISKS } from './disks.js';
import { ARCHIVES, MACHINES, PROGRAMS, TEXTS } from './others.js';
import type { Signature, SignatureGroup } from './signature.js';

export { DISK_FORMATS } from './disks.js';
export { SIGNATURE_LENGTH, type Signature, type SignatureGroup } from './signature.js';

/** Those first that are surest. A script that a cloop image begins with comes before scripts; text comes last. */
export const SIGNATURES: readonly Signature[] = [
  ...DISK_FORMATS,
  ...MACHINES,
  ...ARCHIVES,
  ...RAW_DISKS,
  ...PROGRAMS,
  ...TEXTS,
];

/** A file that was recognised. */
export interface Recognised {
  readonly signature: Signature;
  /** What its first bytes say of it. */
  readonly fields: FieldMap;
}

/** What a file is that begins with `head`, of `SIGNATURE_LENGTH` bytes or all there are; undefined if no row knows. */
export function recognise(
  head: Uint8Array,
  file?: ContentFile,
  signatures: readonly Signature[] = SIGNATURES,
): Recognised | undefined {
  const bytes = Buffer.from(head.buffer, head.byteOffset, head.length);
  for (const signature of signatures) {
    const fields = signature.match(bytes, file);
    if (fields !== undefined) return { signature, fields };
  }
  return undefined;
}

/** What to do with a file of a group, other than what it was named for. */
const NEXT_STEP: Readonly<Record<SignatureGroup, string>> = {
  disk: 'qemu-img info shows what it is, and devstate serve --image serves a raw one',
  machine: 'it holds a whole machine or process, of which devstate reads nothing',
  compressed: 'decompress it first',
  archive: 'unpack it first',
  program: 'name the file that devstate save has written',
  text: 'name the file that devstate save has written',
  other: 'name the file that devstate save has written',
};

export function nextStepWith({ group }: Signature): string {
  return NEXT_STEP[group];
}

/** What a file is, for a sentence: `a qcow2 disk image (version 3)`, `a QEMU migration stream`; undefined if that is unknown. */
export function saysWhat(
  head: Uint8Array,
  kinds: readonly Pick<ContentKind, 'title' | 'probeLength' | 'matches'>[],
): string | undefined {
  const kind = kinds.find((one) => one.matches(head.subarray(0, one.probeLength)));
  if (kind !== undefined) return `${/^[AEIOU]/.test(kind.title) ? 'an' : 'a'} ${kind.title}`;
  const found = recognise(head);
  if (found === undefined) return isBlank(head) ? 'empty as far as it was read (zeros)' : undefined;
  const { title } = found.signature;
  const { version } = found.fields;
  return typeof version === 'number' ? `${title} (version ${version})` : title;
}

/** What a file is that is certainly no raw disk: a disk in a format of its own, or a saved state. */
export function saysNoRawDisk(head: Uint8Array): string | undefined {
  if (hasMagic(head)) return 'a saved device state';
  const found = recognise(head, undefined, DISK_FORMATS);
  return found === undefined ? undefined : saysWhat(head, []);
}

function isBlank(head: Uint8Array): boolean {
  return head.length > 0 && head.every((byte) => byte === 0);
}
