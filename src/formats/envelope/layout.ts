// SPDX-License-Identifier: Apache-2.0
/**
 * Every number of the envelope's byte layout. `formats/README.md` is the norm, this is its transcription.
 * All integers are little endian; every element starts at a multiple of 8.
 *
 * ```
 *    0 ┌──────────────────────────┐         0 ┌────────────┬────────────┐
 *      │ format UUID (16)         │           │ type       │ flags      │
 *   16 ├──────────────────────────┤         8 ├────────────┼────────────┤
 *      │ magic (8)                │           │ length     │ payload crc│
 *   24 ├──────┬──────┬─────┬──────┤        16 ├────────────┴────────────┤
 *      │ env. │header│major│minor │           │ sequence                │
 *   32 ├──────┴──────┼─────┴──────┤        24 ├────────────┬────────────┤
 *      │ flags       │metadata len│           │ 0          │ header crc │
 *   40 ├─────────────┼────────────┤        32 ├────────────┴────────────┤
 *      │ metadata crc│ header crc │           │ payload, zeros to 8     │
 *   48 ├─────────────┴────────────┤           └─────────────────────────┘
 *      │ metadata, zeros to 8     │                 one record
 *      ├──────────────────────────┤
 *      │ records …, end record    │
 *      └──────────────────────────┘
 * ```
 */

/** Bytes 16–23 of every blob. The high byte and the line end show a transfer that was not binary. */
export const MAGIC: Uint8Array = Uint8Array.of(0x89, 0x44, 0x45, 0x56, 0x53, 0x54, 0x0d, 0x0a);

/** The one envelope version there is. */
export const ENVELOPE_VERSION = 1;

/** Offsets within the envelope header. */
export const HeaderOffset = {
  format: 0,
  magic: 16,
  envelopeVersion: 24,
  headerLength: 26,
  versionMajor: 28,
  versionMinor: 30,
  flags: 32,
  metadataLength: 36,
  metadataCrc: 40,
} as const;

/** Length of the part of the header that holds for every envelope version. */
export const HEADER_INVARIANT_LENGTH = 28;
/** Length of the header this version writes; a longer one is read, its extra bytes skipped. */
export const HEADER_LENGTH = 48;
/** The longest header a reader accepts. */
export const HEADER_LENGTH_MAX = 4096;
/** The longest metadata map, in bytes. */
export const METADATA_LENGTH_MAX = 64 * 1024;

/** Offsets within a record header. */
export const RecordOffset = {
  type: 0,
  flags: 4,
  length: 8,
  payloadCrc: 12,
  sequence: 16,
  reserved: 24,
  headerCrc: 28,
} as const;

/** Length of a record header. */
export const RECORD_HEADER_LENGTH = 32;
/** The longest payload of one record: what bounds a reader's memory. */
export const RECORD_LENGTH_MAX = 16 * 1024 * 1024;

/** Record types below this belong to the envelope, all others to the blob's format. */
export const FORMAT_RECORD_TYPES = 0x0001_0000;

/** Record types of the envelope. Type 0 is never valid, so that a run of zeros is not a record. */
export const EnvelopeRecord = {
  /** The last record: counts and digest. */
  end: 0x0001,
  /** Bytes of a foreign stream; the stream is the payloads of all of these in their order. */
  opaque: 0x0002,
  /** A record of another format that a conversion did not understand and carries along. Always OPTIONAL. */
  kept: 0x0003,
} as const;

/** Flags of a record. Bits 1–15 belong to features named in the metadata, bits 16–31 to the blob's format. */
export const RecordFlag = {
  /** A reader that does not know the type may skip the record (and keeps it when it passes the blob on). */
  optional: 0x0000_0001,
  /** Feature `zstd`: the payload is compressed. */
  zstd: 0x0000_0002,
  /** Feature `deflate`: the payload is compressed. */
  deflate: 0x0000_0004,
} as const;

/** The bits of a record's flags that only a named feature may define. */
export const FEATURE_FLAGS_MASK = 0x0000_fffe;

/** Offsets within the end record's payload. */
export const EndOffset = {
  records: 0,
  payloadBytes: 8,
  digest: 16,
} as const;

/** Length of the end record's payload: two u64 and a SHA-256. */
export const END_LENGTH = 48;

/** Name of the digest in the end record. */
export const DIGEST_ALGORITHM = 'sha256';

/** `length` rounded up to the next multiple of 8. */
export function padded(length: number): number {
  return (length + 7) & ~7;
}
