// SPDX-License-Identifier: Apache-2.0
/** Device-state blobs: the envelope, the registry of formats, inspection. `formats/README.md` is the norm. */

export * from './conversion/index.js';
export { COMPRESSIONS } from './envelope/compression.js';
export { type Crc32c, crc32c } from './envelope/crc32c.js';
export {
  type DecodedRecord,
  type DecoderCallbacks,
  type DecoderOptions,
  decodeEnvelope,
  EnvelopeDecoder,
  type EnvelopeSummary,
  skipUnknownRecord,
} from './envelope/decoder.js';
export { type EncoderOptions, EnvelopeEncoder } from './envelope/encoder.js';
export { EnvelopeError, type EnvelopeErrorCode } from './envelope/envelope-error.js';
export { type EnvelopeHeader, type FormatVersion, hasMagic } from './envelope/header.js';
export { EnvelopeRecord, FORMAT_RECORD_TYPES, RECORD_LENGTH_MAX, RecordFlag } from './envelope/layout.js';
export {
  decodeMetadataMap,
  encodeMetadataMap,
  type MetadataMap,
  type MetadataValue,
} from './envelope/msgpack.js';
export type { FieldMap, FieldValue } from './fields.js';
export type * from './foreign/content.js';
export { detectContent, FOREIGN_KINDS, probeLengthOf } from './foreign/index.js';
export { envelopeKind, reportOf } from './inspection/envelope-kind.js';
export { type InspectOptions, inspect } from './inspection/inspect.js';
export { printable } from './inspection/lines.js';
export { renderInspection } from './inspection/render.js';
export type { RenderOptions } from './inspection/render-sections.js';
export type * from './inspection/types.js';
export { withHex } from './inspection/with-hex.js';
export { KERNEL_DRIVER_FORMATS } from './kernel-drivers.js';
export * from './model.js';
export * from './negotiation.js';
export {
  decodeControllerState,
  encodeControllerState,
  type NvmeControllerState,
  type NvmeIoCompletionQueue,
  type NvmeIoQueues,
  type NvmeIoSubmissionQueue,
} from './nvme/controller-state.js';
export {
  CONTROLLER_STATE_FORMAT_VERSION,
  controllerStateDescription,
  decodeControllerStateRecords,
  encodeControllerStateRecords,
  type TaggedControllerState,
} from './nvme/controller-state-format.js';
export {
  decodeNvmeState,
  encodeNvmeState,
  NVME_STANDARD_VERSION,
  NvmeStateDecoder,
  nvmeDescription,
  nvmeRecords,
  nvmeValues,
  prepareNvmeRecords,
} from './nvme/records.js';
export type * from './nvme/state.js';
export { checkNvmeState } from './nvme/validate.js';
export {
  decodePciFunction,
  encodePciFunction,
  PCI_FUNCTION_VERSION,
  pciFunctionDescription,
} from './pci/records.js';
export type { PciFunctionState } from './pci/state.js';
export * from './qemu-cpr/index.js';
export * from './qemu-stream/index.js';
export type { RegisteredFormat } from './registered-format.js';
export {
  COUNTER,
  findFormat,
  formatVersionText,
  isSameName,
  NVME_ALDER,
  NVME_BIRCH,
  NVME_CONTROLLER_STATE,
  NVME_STANDARD,
  PCI_FUNCTION,
  REGISTERED_FORMATS,
  requireFormat,
  requireReadableVersion,
  SAMPLE,
  VIRTIO_DEVICE_PARTS,
} from './registry.js';
export {
  DISK_FORMATS,
  nextStepWith,
  type Recognised,
  recognise,
  SIGNATURE_LENGTH,
  SIGNATURES,
  type Signature,
  type SignatureGroup,
  saysNoRawDisk,
  saysWhat,
} from './signatures/index.js';
export { compareUuids, isUuid, newUuid, parseUuid, type Uuid, uuidFromBytes, uuidToBytes } from './uuid.js';
export type { ValueAdapter } from './value-adapter.js';
export { flattenTree, type LeafValue, unflattenTree } from './value-tree.js';
export * from './virtio/index.js';
