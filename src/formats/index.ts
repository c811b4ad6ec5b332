// SPDX-License-Identifier: Apache-2.0
/** Device-state blobs: the envelope, the registry of formats, inspection. `formats/README.md` is the norm. */
export { type Crc32c, crc32c } from './crc32c.js';
export {
  type DecodedRecord,
  type DecoderCallbacks,
  type DecoderOptions,
  decodeEnvelope,
  EnvelopeDecoder,
  type EnvelopeSummary,
  skipUnknownRecord,
} from './decoder.js';
export { type EncoderOptions, EnvelopeEncoder } from './encoder.js';
export { EnvelopeError, type EnvelopeErrorCode } from './envelope-error.js';
export { type EnvelopeHeader, type FormatVersion, hasMagic, type ParameterValue } from './header.js';
export {
  type EnvelopeInspection,
  type FieldMap,
  type FieldValue,
  type FormatDescription,
  type Inspection,
  type InspectionError,
  type InspectOptions,
  inspect,
  type OmittedRecords,
  type RecordFields,
  type RecordInspection,
  type UnknownInspection,
} from './inspect.js';
export { EnvelopeRecord, FORMAT_RECORD_TYPES, RECORD_LENGTH_MAX, RecordFlag } from './layout.js';
export type { MetadataMap, MetadataValue } from './msgpack.js';
export {
  findFormat,
  formatVersionText,
  NVME_ALDER,
  REGISTERED_FORMATS,
  type RegisteredFormat,
  requireFormat,
  requireReadableVersion,
} from './registry.js';
export { renderInspection } from './render.js';
export { compareUuids, isUuid, newUuid, parseUuid, type Uuid, uuidFromBytes, uuidToBytes } from './uuid.js';
