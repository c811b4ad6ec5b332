// SPDX-License-Identifier: Apache-2.0
/** The envelope header and its metadata: value ↔ bytes. See `formats/README.md`, "Header" and "Metadata". */
import { DevstateError } from '../../errors.js';
import type { ParameterValue } from '../model.js';
import { type Uuid, uuidFromBytes, uuidToBytes } from '../uuid.js';
import type { Crc32c } from './crc32c.js';
import { EnvelopeError } from './envelope-error.js';
import {
  ENVELOPE_VERSION,
  HEADER_LENGTH,
  HEADER_LENGTH_MAX,
  HeaderOffset,
  MAGIC,
  METADATA_LENGTH_MAX,
  padded,
} from './layout.js';
import {
  decodeMetadataMap,
  encodeMetadataMap,
  isMetadataKey,
  isMetadataMap,
  type MetadataMap,
  type MetadataValue,
} from './msgpack.js';

/** Version of a format: a reader reads every minor version of the major versions it knows. */
export interface FormatVersion {
  major: number;
  minor: number;
}

/** What a blob says about itself before its first record. */
export interface EnvelopeHeader {
  /** The format of the records. */
  format: Uuid;
  version: FormatVersion;
  /** URI of the device model whose state this is, such as `devstate.org/nvme`. */
  model: string;
  /** The model's parameters the device was created with. */
  parameters: { [name: string]: ParameterValue };
  /** The program that wrote the blob. */
  producer: { name: string; version: string };
  /** Names this one saving: no two streams share it. */
  stream: Uuid;
  /** Features a reader must have to read the records. */
  features: string[];
  /** Metadata of other names: shown and passed on, never needed to load. */
  other: MetadataMap;
}

/** The fixed part of a header, checked; its metadata is still to come. */
export interface FixedHeader {
  format: Uuid;
  version: FormatVersion;
  /** Length of the fixed header, in bytes; the metadata follows it. */
  headerLength: number;
  /** Length of the metadata without its padding, in bytes. */
  metadataLength: number;
  metadataCrc: number;
}

const NIL_UUID = '00000000-0000-0000-0000-000000000000';

/**
 * The bytes of a header with its metadata and padding: all that precedes the first record.
 * @throws DevstateError DEVSTATE_E_ENVELOPE_METADATA for a value that a reader would refuse
 */
export function encodeHeader(header: EnvelopeHeader, crc32c: Crc32c): Uint8Array {
  const metadata = encodeMetadataMap({
    model: header.model,
    parameters: header.parameters,
    producer: { name: header.producer.name, version: header.producer.version },
    stream: uuidToBytes(header.stream),
    features: header.features,
    ...header.other,
  });
  const problem =
    header.format === NIL_UUID ? 'the nil UUID names no format' : problemOf(header, metadata.length);
  if (problem !== undefined) throw new DevstateError('DEVSTATE_E_ENVELOPE_METADATA', problem);

  const bytes = new Uint8Array(HEADER_LENGTH + padded(metadata.length));
  const view = new DataView(bytes.buffer);
  bytes.set(uuidToBytes(header.format), HeaderOffset.format);
  bytes.set(MAGIC, HeaderOffset.magic);
  view.setUint16(HeaderOffset.envelopeVersion, ENVELOPE_VERSION, true);
  view.setUint16(HeaderOffset.headerLength, HEADER_LENGTH, true);
  view.setUint16(HeaderOffset.versionMajor, header.version.major, true);
  view.setUint16(HeaderOffset.versionMinor, header.version.minor, true);
  view.setUint32(HeaderOffset.metadataLength, metadata.length, true);
  view.setUint32(HeaderOffset.metadataCrc, crc32c(metadata), true);
  view.setUint32(HEADER_LENGTH - 4, crc32c(bytes.subarray(0, HEADER_LENGTH - 4)), true);
  bytes.set(metadata, HEADER_LENGTH);
  return bytes;
}

function problemOf(header: EnvelopeHeader, metadataLength: number): string | undefined {
  if (metadataLength > METADATA_LENGTH_MAX)
    return `${metadataLength} bytes of metadata exceed ${METADATA_LENGTH_MAX}`;
  for (const number of [header.version.major, header.version.minor]) {
    if (!Number.isInteger(number) || number < 0 || number > 0xffff) return `${number} is no version number`;
  }
  const own = ['model', 'parameters', 'producer', 'stream', 'features'];
  const taken = own.find((name) => Object.hasOwn(header.other, name));
  return taken === undefined ? metadataProblem(header) : `the metadata key ${taken} has a meaning of its own`;
}

/** Whether the magic is where it belongs in the first bytes of a blob. */
export function hasMagic(bytes: Uint8Array): boolean {
  return MAGIC.every((byte, index) => bytes[HeaderOffset.magic + index] === byte);
}

/** The length of a header, read from its first {@link HEADER_INVARIANT_LENGTH} bytes, which are believed no further. */
export function headerLengthOf(bytes: Uint8Array): number {
  if (!hasMagic(bytes)) {
    throw wrong('MAGIC', 'these bytes are not a devstate blob', HeaderOffset.magic);
  }
  const length = bytes[HeaderOffset.headerLength]! | (bytes[HeaderOffset.headerLength + 1]! << 8);
  if (length < HEADER_LENGTH || length > HEADER_LENGTH_MAX || length % 8 !== 0) {
    throw wrong('HEADER', `the header claims ${length} bytes`, HeaderOffset.headerLength);
  }
  return length;
}

/** Checks and reads a whole fixed header. `bytes` are exactly its {@link headerLengthOf}. */
export function decodeFixedHeader(bytes: Uint8Array, crc32c: Crc32c): FixedHeader {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const crcOffset = bytes.length - 4;
  if (view.getUint32(crcOffset, true) !== crc32c(bytes.subarray(0, crcOffset))) {
    throw wrong('HEADER', 'the header does not match its checksum', 0);
  }
  const envelopeVersion = view.getUint16(HeaderOffset.envelopeVersion, true);
  if (envelopeVersion !== ENVELOPE_VERSION) {
    const what = `the envelope is of version ${envelopeVersion}, this reader knows ${ENVELOPE_VERSION}: update devstate`;
    throw wrong('VERSION', what, HeaderOffset.envelopeVersion);
  }
  const flags = view.getUint32(HeaderOffset.flags, true);
  if (flags !== 0) throw wrong('HEADER', `unknown header flags 0x${flags.toString(16)}`, HeaderOffset.flags);
  const format = uuidFromBytes(bytes, HeaderOffset.format);
  if (format === NIL_UUID) throw wrong('HEADER', 'the nil UUID names no format', HeaderOffset.format);
  const metadataLength = view.getUint32(HeaderOffset.metadataLength, true);
  if (metadataLength > METADATA_LENGTH_MAX) {
    const what = `${metadataLength} bytes of metadata exceed ${METADATA_LENGTH_MAX}`;
    throw wrong('METADATA', what, HeaderOffset.metadataLength);
  }
  return {
    format,
    version: {
      major: view.getUint16(HeaderOffset.versionMajor, true),
      minor: view.getUint16(HeaderOffset.versionMinor, true),
    },
    headerLength: bytes.length,
    metadataLength,
    metadataCrc: view.getUint32(HeaderOffset.metadataCrc, true),
  };
}

/** Checks the metadata, given with its padding, and completes the header with it. */
export function decodeMetadata(fixed: FixedHeader, bytes: Uint8Array, crc32c: Crc32c): EnvelopeHeader {
  const offset = fixed.headerLength;
  const content = bytes.subarray(0, fixed.metadataLength);
  if (crc32c(content) !== fixed.metadataCrc) {
    throw wrong('METADATA', 'the metadata does not match its checksum', offset);
  }
  if (bytes.subarray(fixed.metadataLength).some((byte) => byte !== 0)) {
    throw wrong('METADATA', 'the padding of the metadata is not zero', offset + fixed.metadataLength);
  }
  const {
    model,
    parameters = {},
    producer,
    stream,
    features = [],
    ...other
  } = decodeMetadataMap(content, offset);
  const problem = metadataProblem({ model, parameters, producer, features });
  if (problem !== undefined) throw wrong('METADATA', problem, offset);
  if (!(stream instanceof Uint8Array) || stream.length !== 16) {
    throw wrong('METADATA', 'the metadata value stream is not 16 bytes', offset);
  }
  return {
    format: fixed.format,
    version: fixed.version,
    model: model as string,
    parameters: parameters as EnvelopeHeader['parameters'],
    producer: {
      name: (producer as MetadataMap).name as string,
      version: (producer as MetadataMap).version as string,
    },
    features: features as string[],
    stream: uuidFromBytes(stream),
    other,
  };
}

/** Why the values of the names that this version knows are not what they should be, if they are not. */
function metadataProblem(values: {
  model: MetadataValue | undefined;
  parameters: MetadataValue;
  producer: MetadataValue | undefined;
  features: MetadataValue;
}): string | undefined {
  const { model, parameters, producer, features } = values;
  if (typeof model !== 'string' || model === '') return 'the metadata value model is not a URI';
  if (!isMetadataMap(producer) || typeof producer.name !== 'string' || typeof producer.version !== 'string') {
    return 'the metadata value producer is not a name and a version';
  }
  if (!isMetadataMap(parameters)) return 'the metadata value parameters is not a map';
  const bad = Object.entries(parameters).find(([, value]) => typeof value === 'object');
  if (bad !== undefined) return `the parameter ${bad[0]} is not a boolean, integer or string`;
  if (!Array.isArray(features)) return 'the metadata value features is not a list';
  const names = new Set(features);
  if (names.size !== features.length) return 'the metadata value features names a feature twice';
  for (const name of names) {
    if (typeof name !== 'string' || !isMetadataKey(name))
      return 'the metadata value features holds something not a name';
  }
  return undefined;
}

function wrong(
  code: 'MAGIC' | 'HEADER' | 'VERSION' | 'METADATA',
  message: string,
  offset: number,
): EnvelopeError {
  return new EnvelopeError(`DEVSTATE_E_ENVELOPE_${code}`, message, { offset });
}
