// SPDX-License-Identifier: Apache-2.0
/**
 * DEVSTATE_FORMATS, a DEVICE_FEATURE of our own: which formats a device saves and loads, and which to use next.
 * `formats/README.md`, "Negotiation", is the norm.
 *
 *     GET   count u32, entry length u32 (112 or more: what follows is skipped), then `count` entries in order of preference:
 *             0 uuid[16]      16 major u16   18 minor u16   20 flags u32   24 features u64
 *            32 limit u64 (0: none)          40 estimate u64 (all ones: not known)
 *            48 name[64], UTF-8, zeros behind it
 *     SET   0 uuid[16]      16 major u16   18 minor u16   20 flags u32 (SAVE or LOAD)   24 features u64
 */

import { Errno, RequestError } from './errno.js';
import { readU64, requireBytes, writeU64 } from './reader.js';

export const FORMAT_OFFERS_HEAD_LENGTH = 8;
export const FORMAT_OFFER_LENGTH = 112;
export const FORMAT_SELECTION_LENGTH = 32;
const NAME_LENGTH = 64;
/** Formats one device may offer. */
export const MAX_FORMAT_OFFERS = 64;

/** Offset of each field; a selection is the beginning of an offer. */
const Offset = {
  uuid: 0,
  major: 16,
  minor: 18,
  flags: 20,
  features: 24,
  limit: 32,
  estimate: 40,
  name: 48,
} as const;
const UUID_LENGTH = 16;

export const FormatFlag = {
  /** The device saves it; in a selection: the next saving uses it. */
  SAVE: 1,
  /** The device loads it; in a selection: the next loading takes nothing else. */
  LOAD: 2,
  /** It does not hold all of the state. */
  PARTIAL: 4,
} as const;

/** Features of the envelope, by name, and their bits in `features`. */
export const FormatFeature = { deflate: 1, zstd: 2 } as const;

const featureEntries: readonly (readonly [string, number])[] = Object.entries(FormatFeature);

/** Names without a bit are left out. */
export function formatFeatureBits(names: readonly string[]): number {
  return featureEntries.reduce((bits, [name, bit]) => bits + (names.includes(name) ? bit : 0), 0);
}

/** Bits without a name are left out. */
export function formatFeatureNames(bits: number): string[] {
  return featureEntries.filter(([, bit]) => Math.floor(bits / bit) % 2 === 1).map(([name]) => name);
}

export interface FormatSelection {
  readonly uuid: Uint8Array;
  readonly major: number;
  readonly minor: number;
  /** `FormatFlag`. */
  readonly flags: number;
  /** `FormatFeature` bits. */
  readonly features: number;
}

export interface WireFormatOffer extends FormatSelection {
  /** Bytes; 0 for no limit. */
  readonly limit: number;
  /** Bytes; undefined if not known. */
  readonly estimate: number | undefined;
  readonly name: string;
}

const UNKNOWN_ESTIMATE = 2n ** 64n - 1n;

export function encodeFormatSelection(view: DataView, at: number, selection: FormatSelection): void {
  bytesOf(view, at + Offset.uuid, UUID_LENGTH).set(selection.uuid);
  view.setUint16(at + Offset.major, selection.major, true);
  view.setUint16(at + Offset.minor, selection.minor, true);
  view.setUint32(at + Offset.flags, selection.flags, true);
  writeU64(view, at + Offset.features, selection.features);
}

export function decodeFormatSelection(view: DataView, at: number, end: number): FormatSelection {
  requireBytes(view, at, end, FORMAT_SELECTION_LENGTH, 'DEVSTATE_FORMATS');
  return {
    uuid: bytesOf(view, at + Offset.uuid, UUID_LENGTH).slice(),
    major: view.getUint16(at + Offset.major, true),
    minor: view.getUint16(at + Offset.minor, true),
    flags: view.getUint32(at + Offset.flags, true),
    features: readU64(view, at + Offset.features),
  };
}

/** Bytes of the data of a GET reply with `count` offers. */
export function formatOffersLength(count: number): number {
  return FORMAT_OFFERS_HEAD_LENGTH + count * FORMAT_OFFER_LENGTH;
}

/** @throws RequestError E2BIG for a name that is longer than its place */
export function encodeFormatOffers(view: DataView, at: number, offers: readonly WireFormatOffer[]): void {
  view.setUint32(at, offers.length, true);
  view.setUint32(at + 4, FORMAT_OFFER_LENGTH, true);
  for (const [index, offer] of offers.entries()) {
    const entry = at + FORMAT_OFFERS_HEAD_LENGTH + index * FORMAT_OFFER_LENGTH;
    const name = new TextEncoder().encode(offer.name);
    if (name.length > NAME_LENGTH)
      throw new RequestError(Errno.E2BIG, `the format name ${offer.name} is too long`);
    bytesOf(view, entry, FORMAT_OFFER_LENGTH).fill(0);
    encodeFormatSelection(view, entry, offer);
    writeU64(view, entry + Offset.limit, offer.limit);
    const estimate = offer.estimate === undefined ? UNKNOWN_ESTIMATE : BigInt(offer.estimate);
    view.setBigUint64(entry + Offset.estimate, estimate, true);
    bytesOf(view, entry + Offset.name, name.length).set(name);
  }
}

export function decodeFormatOffers(view: DataView, at: number, end: number): WireFormatOffer[] {
  requireBytes(view, at, end, FORMAT_OFFERS_HEAD_LENGTH, 'DEVSTATE_FORMATS');
  const count = view.getUint32(at, true);
  const length = view.getUint32(at + 4, true);
  if (count > MAX_FORMAT_OFFERS || length < FORMAT_OFFER_LENGTH || length > 4096) {
    throw new RequestError(Errno.EPROTO, `DEVSTATE_FORMATS claims ${count} entries of ${length} bytes`);
  }
  const first = at + FORMAT_OFFERS_HEAD_LENGTH;
  requireBytes(view, first, end, count * length, 'DEVSTATE_FORMATS entries');
  return Array.from({ length: count }, (_, index) => decodeFormatOffer(view, first + index * length));
}

function decodeFormatOffer(view: DataView, at: number): WireFormatOffer {
  const estimate = view.getBigUint64(at + Offset.estimate, true);
  const name = bytesOf(view, at + Offset.name, NAME_LENGTH);
  const zero = name.indexOf(0);
  return {
    ...decodeFormatSelection(view, at, at + FORMAT_OFFER_LENGTH),
    limit: readU64(view, at + Offset.limit),
    estimate: estimate === UNKNOWN_ESTIMATE ? undefined : readU64(view, at + Offset.estimate),
    name: new TextDecoder('utf-8', { ignoreBOM: true }).decode(zero < 0 ? name : name.subarray(0, zero)),
  };
}

function bytesOf(view: DataView, at: number, length: number): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset + at, length);
}
