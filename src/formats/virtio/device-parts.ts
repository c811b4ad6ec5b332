// SPDX-License-Identifier: Apache-2.0
/**
 * Device parts of virtio 1.4 ("Basic Facilities / Device parts"), as VIRTIO_ADMIN_CMD_DEV_PARTS_GET gives and _SET takes
 * them: one after the other, each a header and its value. Little endian.
 *
 *      0 │ part_type u16 │ flags u8, bit 0 OPTIONAL │ reserved u8 │ selector, 8 bytes │ length u32 │
 *     16 │ value, `length` bytes │
 *
 * The value's layout follows from the type; a part of a type that is not known here stays bytes.
 */
import { DevstateError } from '../../errors.js';

/** `part_type` of the parts that virtio 1.4 defines. Those of device types (0x200 to 0x5ff) are to come. */
export const DevicePartType = {
  DEV_FEATURES: 0x100,
  DRV_FEATURES: 0x101,
  PCI_COMMON_CFG: 0x102,
  DEVICE_STATUS: 0x103,
  VQ_CFG: 0x104,
  VQ_NOTIFY_CFG: 0x105,
} as const;

export const DEVICE_PART_HEADER_LENGTH = 16;
/** Parts in one list. An empty part takes 16 bytes there and ten times that here. */
export const DEVICE_PARTS_MAX = 65536;

interface Part {
  /** VIRTIO_DEV_PART_F_OPTIONAL: a device need not write it when it is restored. */
  readonly optional: boolean;
}

/** Feature bits, 64 in a word, bits 0 to 63 first. */
export interface FeaturesPart extends Part {
  readonly part: 'DEV_FEATURES' | 'DRV_FEATURES';
  readonly features: readonly bigint[];
}

/** One field of `struct virtio_pci_common_cfg`. */
export interface PciCommonConfigPart extends Part {
  readonly part: 'PCI_COMMON_CFG';
  /** Where the field is in the structure; its width follows. See `PCI_COMMON_CONFIG_FIELDS`. */
  readonly offset: number;
  readonly value: number;
}

export interface DeviceStatusPart extends Part {
  readonly part: 'DEVICE_STATUS';
  readonly status: number;
}

/** `struct virtio_dev_part_vq_cfg`. Addresses are guest physical, below 2^53. */
export interface QueueConfigPart extends Part {
  readonly part: 'VQ_CFG';
  readonly queue: number;
  /** Entries. */
  readonly size: number;
  /** MSI-X vector; 0xffff for none. */
  readonly vector: number;
  /** `enabled` as it is: 1 for a queue in use. */
  readonly enabled: number;
  readonly descriptors: number;
  readonly driver: number;
  readonly device: number;
}

/** `struct virtio_dev_part_vq_notify_data`. */
export interface QueueNotifyConfigPart extends Part {
  readonly part: 'VQ_NOTIFY_CFG';
  readonly queue: number;
  readonly notifyOffset: number;
  readonly notifyConfigData: number;
}

/** A part whose layout is not known here, or a PCI_COMMON_CFG of a field that virtio 1.4 does not have. */
export interface OpaquePart extends Part {
  readonly part: 'opaque';
  readonly type: number;
  /** 8 bytes. */
  readonly selector: Uint8Array;
  readonly value: Uint8Array;
}

export type VirtioDevicePart =
  | FeaturesPart
  | PciCommonConfigPart
  | DeviceStatusPart
  | QueueConfigPart
  | QueueNotifyConfigPart
  | OpaquePart;

/** A part's header, taken apart as far as all types have it in common. */
export interface DevicePartHeader {
  readonly type: number;
  readonly optional: boolean;
  /** 8 bytes. */
  readonly selector: Uint8Array;
  /** Bytes of the value. */
  readonly length: number;
}

/** Fields of `struct virtio_pci_common_cfg` by their offset: name and width in bytes. */
export const PCI_COMMON_CONFIG_FIELDS: ReadonlyMap<number, { name: string; width: 1 | 2 | 4 | 8 }> = new Map([
  [0, { name: 'device_feature_select', width: 4 }],
  [4, { name: 'device_feature', width: 4 }],
  [8, { name: 'driver_feature_select', width: 4 }],
  [12, { name: 'driver_feature', width: 4 }],
  [16, { name: 'config_msix_vector', width: 2 }],
  [18, { name: 'num_queues', width: 2 }],
  [20, { name: 'device_status', width: 1 }],
  [21, { name: 'config_generation', width: 1 }],
  [22, { name: 'queue_select', width: 2 }],
  [24, { name: 'queue_size', width: 2 }],
  [26, { name: 'queue_msix_vector', width: 2 }],
  [28, { name: 'queue_enable', width: 2 }],
  [30, { name: 'queue_notify_off', width: 2 }],
  [32, { name: 'queue_desc', width: 8 }],
  [40, { name: 'queue_driver', width: 8 }],
  [48, { name: 'queue_device', width: 8 }],
  [56, { name: 'queue_notif_config_data', width: 2 }],
  [58, { name: 'queue_reset', width: 2 }],
  [60, { name: 'admin_queue_index', width: 2 }],
  [62, { name: 'admin_queue_num', width: 2 }],
]);

const Header = { type: 0, flags: 2, reserved: 3, selector: 4, length: 12 } as const;
const SELECTOR_LENGTH = 8;
const FLAG_OPTIONAL = 1;
const QueueConfig = {
  size: 0,
  vector: 2,
  enabled: 4,
  reserved: 6,
  descriptors: 8,
  driver: 16,
  device: 24,
  length: 32,
} as const;
const QueueNotify = { notifyOffset: 0, notifyConfigData: 2, reserved: 4, length: 8 } as const;
const NO_SELECTOR = new Uint8Array(SELECTOR_LENGTH);
const U16_MAX = 0xffff;
const U32_MAX = 0xffffffff;

const TYPE_NAMES: ReadonlyMap<number, keyof typeof DevicePartType> = new Map(
  Object.entries(DevicePartType).map(([name, type]) => [type, name as keyof typeof DevicePartType]),
);

/** Name of a type, `VQ_CFG`; undefined if virtio 1.4 defines none. */
export function devicePartName(type: number): keyof typeof DevicePartType | undefined {
  return TYPE_NAMES.get(type);
}

/** @throws DevstateError DEVSTATE_E_STATE_VALUE that names what does not fit its field */
export function encodeDeviceParts(parts: Iterable<VirtioDevicePart>): Uint8Array {
  const pieces: Uint8Array[] = [];
  for (const part of parts) {
    if (pieces.length === 2 * DEVICE_PARTS_MAX) throw unfit(`more than ${DEVICE_PARTS_MAX} parts`);
    const { type, selector, value } = rawOf(part);
    const header = Buffer.alloc(DEVICE_PART_HEADER_LENGTH);
    header.writeUInt16LE(checked('type', type, U16_MAX), Header.type);
    header.writeUInt8(part.optional ? FLAG_OPTIONAL : 0, Header.flags);
    if (selector.length !== SELECTOR_LENGTH) throw unfit(`a selector of ${selector.length} bytes, not 8`);
    header.set(selector, Header.selector);
    header.writeUInt32LE(checked('the length of a value', value.length, U32_MAX), Header.length);
    pieces.push(header, value);
  }
  return new Uint8Array(Buffer.concat(pieces));
}

/**
 * Takes parts apart; `encodeDeviceParts` gives the same bytes again. Nothing in the result shares memory with `bytes`.
 * @throws DevstateError DEVSTATE_E_STATE_RECORD for a part that is cut, has another length than its type's, has
 *   reserved bits or bytes set, or an address from 2^53, and for more than `DEVICE_PARTS_MAX` parts
 */
export function decodeDeviceParts(bytes: Uint8Array): VirtioDevicePart[] {
  const parts: VirtioDevicePart[] = [];
  for (let at = 0; at < bytes.length; ) {
    if (parts.length === DEVICE_PARTS_MAX) {
      throw new DevstateError('DEVSTATE_E_STATE_RECORD', `there are more than ${DEVICE_PARTS_MAX} parts`);
    }
    const header = decodeDevicePartHeader(bytes.subarray(at, at + DEVICE_PART_HEADER_LENGTH));
    at += DEVICE_PART_HEADER_LENGTH;
    const value = bytes.subarray(at, at + header.length);
    if (value.length < header.length) {
      throw malformed(header.type, `${value.length} bytes of a value of ${header.length}`);
    }
    parts.push(decodeDevicePart(header, value));
    at += header.length;
  }
  return parts;
}

/** Reads a part's first 16 bytes. @throws DevstateError DEVSTATE_E_STATE_RECORD */
export function decodeDevicePartHeader(bytes: Uint8Array): DevicePartHeader {
  if (bytes.length < DEVICE_PART_HEADER_LENGTH) {
    throw new DevstateError(
      'DEVSTATE_E_STATE_RECORD',
      `the device parts end within a header: ${bytes.length} bytes of ${DEVICE_PART_HEADER_LENGTH}`,
    );
  }
  const header = bufferOf(bytes);
  const type = header.readUInt16LE(Header.type);
  const flags = header[Header.flags]!;
  if (flags > FLAG_OPTIONAL) throw malformed(type, `reserved flags are set (0x${flags.toString(16)})`);
  if (header[Header.reserved] !== 0) throw malformed(type, 'the reserved byte of the header is not zero');
  return {
    type,
    optional: flags === FLAG_OPTIONAL,
    selector: copyOf(bytes.subarray(Header.selector, Header.length)),
    length: header.readUInt32LE(Header.length),
  };
}

/** What can be said of a header without its value; undefined if it is sound. For a length before it is followed. */
export function devicePartHeaderProblem({ type, selector, length }: DevicePartHeader): string | undefined {
  const name = devicePartName(type);
  switch (name) {
    case 'DEV_FEATURES':
    case 'DRV_FEATURES':
      if (length === 0 || length % 8 !== 0) return `${length} bytes of feature words of 8`;
      break;
    case 'PCI_COMMON_CFG': {
      const field = PCI_COMMON_CONFIG_FIELDS.get(bufferOf(selector).readUInt32LE(0));
      if (field !== undefined && field.width !== length)
        return `${length} bytes of ${field.name}, not ${field.width}`;
      return selector.subarray(4).some((byte) => byte !== 0) ? RESERVED_SELECTOR : undefined;
    }
    case 'DEVICE_STATUS':
      if (length !== 1) return `${length} bytes, not 1`;
      break;
    case 'VQ_CFG':
    case 'VQ_NOTIFY_CFG': {
      const expected = name === 'VQ_CFG' ? QueueConfig.length : QueueNotify.length;
      if (length !== expected) return `${length} bytes, not ${expected}`;
      return selector.subarray(2).some((byte) => byte !== 0) ? RESERVED_SELECTOR : undefined;
    }
    case undefined:
      return undefined;
  }
  return selector.some((byte) => byte !== 0) ? RESERVED_SELECTOR : undefined;
}

const RESERVED_SELECTOR = 'reserved bytes of the selector are not zero';

/** @param value `header.length` bytes. @throws DevstateError DEVSTATE_E_STATE_RECORD */
export function decodeDevicePart(header: DevicePartHeader, value: Uint8Array): VirtioDevicePart {
  const { type, optional, selector } = header;
  const problem = devicePartHeaderProblem(header);
  if (problem !== undefined) throw malformed(type, problem);
  const part = devicePartName(type);
  const bytes = bufferOf(value);
  const index = bufferOf(selector).readUInt16LE(0);
  switch (part) {
    case 'DEV_FEATURES':
    case 'DRV_FEATURES': {
      const words = Array.from({ length: bytes.length / 8 }, (_, word) => bytes.readBigUInt64LE(word * 8));
      return { part, optional, features: words };
    }
    case 'PCI_COMMON_CFG': {
      const offset = bufferOf(selector).readUInt32LE(0);
      if (!PCI_COMMON_CONFIG_FIELDS.has(offset)) break;
      return { part, optional, offset, value: integerOf(bytes, type) };
    }
    case 'DEVICE_STATUS':
      return { part, optional, status: bytes[0]! };
    case 'VQ_CFG':
      if (bytes.readUInt16LE(QueueConfig.reserved) !== 0)
        throw malformed(type, 'reserved bytes are not zero');
      return {
        part,
        optional,
        queue: index,
        size: bytes.readUInt16LE(QueueConfig.size),
        vector: bytes.readUInt16LE(QueueConfig.vector),
        enabled: bytes.readUInt16LE(QueueConfig.enabled),
        descriptors: integerOf(bytes.subarray(QueueConfig.descriptors, QueueConfig.driver), type),
        driver: integerOf(bytes.subarray(QueueConfig.driver, QueueConfig.device), type),
        device: integerOf(bytes.subarray(QueueConfig.device), type),
      };
    case 'VQ_NOTIFY_CFG':
      if (bytes.readUInt32LE(QueueNotify.reserved) !== 0)
        throw malformed(type, 'reserved bytes are not zero');
      return {
        part,
        optional,
        queue: index,
        notifyOffset: bytes.readUInt16LE(QueueNotify.notifyOffset),
        notifyConfigData: bytes.readUInt16LE(QueueNotify.notifyConfigData),
      };
    case undefined:
      break;
  }
  return { part: 'opaque', optional, type, selector: copyOf(selector), value: copyOf(value) };
}

/** A part as its header and value have it. */
function rawOf(part: VirtioDevicePart): { type: number; selector: Uint8Array; value: Uint8Array } {
  if (part.part === 'opaque') {
    if (hasKnownLayout(part)) throw unfit(`an opaque part of type ${devicePartName(part.type)}`);
    return part;
  }
  const type = DevicePartType[part.part];
  switch (part.part) {
    case 'DEV_FEATURES':
    case 'DRV_FEATURES': {
      if (part.features.length === 0) throw unfit(`${part.part} without a word of features`);
      const value = Buffer.alloc(part.features.length * 8);
      for (const [word, bits] of part.features.entries()) {
        if (bits < 0n || bits >= 2n ** 64n) throw unfit(`word ${word} of ${part.part} has more than 64 bits`);
        value.writeBigUInt64LE(bits, word * 8);
      }
      return { type, selector: NO_SELECTOR, value };
    }
    case 'PCI_COMMON_CFG': {
      const field = PCI_COMMON_CONFIG_FIELDS.get(part.offset);
      if (field === undefined) throw unfit(`virtio_pci_common_cfg has no field at offset ${part.offset}`);
      return { type, selector: selectorOf(part.offset), value: bytesOf(field.name, part.value, field.width) };
    }
    case 'DEVICE_STATUS':
      return { type, selector: NO_SELECTOR, value: bytesOf('status', part.status, 1) };
    case 'VQ_CFG': {
      const value = Buffer.concat([
        bytesOf('size', part.size, 2),
        bytesOf('vector', part.vector, 2),
        bytesOf('enabled', part.enabled, 2),
        bytesOf('reserved', 0, 2),
        bytesOf('descriptors', part.descriptors, 8),
        bytesOf('driver', part.driver, 8),
        bytesOf('device', part.device, 8),
      ]);
      return { type, selector: selectorOf(checked('queue', part.queue, U16_MAX)), value };
    }
    case 'VQ_NOTIFY_CFG': {
      const value = Buffer.concat([
        bytesOf('notifyOffset', part.notifyOffset, 2),
        bytesOf('notifyConfigData', part.notifyConfigData, 2),
        bytesOf('reserved', 0, 4),
      ]);
      return { type, selector: selectorOf(checked('queue', part.queue, U16_MAX)), value };
    }
  }
}

/** Whether a reader would take these bytes for more than an opaque part. */
function hasKnownLayout({ type, selector }: OpaquePart): boolean {
  const name = devicePartName(type);
  if (name !== 'PCI_COMMON_CFG') return name !== undefined;
  return (
    selector.length === SELECTOR_LENGTH && PCI_COMMON_CONFIG_FIELDS.has(bufferOf(selector).readUInt32LE(0))
  );
}

function selectorOf(number: number): Uint8Array {
  return bytesOf('selector', number, SELECTOR_LENGTH);
}

function bytesOf(name: string, value: number, width: number): Uint8Array {
  const bytes = Buffer.alloc(8);
  const maximum = Math.min(2 ** (8 * width) - 1, Number.MAX_SAFE_INTEGER);
  bytes.writeBigUInt64LE(BigInt(checked(name, value, maximum)));
  return bytes.subarray(0, width);
}

/** An integer of 1 to 8 bytes. */
function integerOf(bytes: Buffer, type: number): number {
  if (bytes.length < 8) return bytes.readUIntLE(0, bytes.length);
  const value = Number(bytes.readBigUInt64LE(0));
  if (!Number.isSafeInteger(value)) throw malformed(type, 'an address is 2^53 or more');
  return value;
}

/** Not `slice`: that of a Buffer, which is a Uint8Array too, shares its memory. */
function copyOf(bytes: Uint8Array): Uint8Array {
  return new Uint8Array(bytes);
}

function bufferOf(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
}

function checked(name: string, value: number, maximum: number): number {
  if (Number.isInteger(value) && value >= 0 && value <= maximum) return value;
  throw unfit(`${name} is ${value}, not a whole number up to ${maximum}`);
}

function malformed(type: number, what: string): DevstateError {
  const name = devicePartName(type) ?? `0x${type.toString(16)}`;
  return new DevstateError('DEVSTATE_E_STATE_RECORD', `the device part ${name} is not sound: ${what}`);
}

function unfit(what: string): DevstateError {
  return new DevstateError('DEVSTATE_E_STATE_VALUE', `no virtio device part can hold this: ${what}`);
}
