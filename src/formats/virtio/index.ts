// SPDX-License-Identifier: Apache-2.0
/** Device parts of virtio 1.4, and the format that holds them with what they lack. */
export {
  DevicePartType,
  type DeviceStatusPart,
  decodeDeviceParts,
  devicePartName,
  encodeDeviceParts,
  type FeaturesPart,
  type OpaquePart,
  PCI_COMMON_CONFIG_FIELDS,
  type PciCommonConfigPart,
  type QueueConfigPart,
  type QueueNotifyConfigPart,
  type VirtioDevicePart,
} from './device-parts.js';
export { devicePartProblems } from './part-order.js';
export {
  decodeVirtioState,
  encodeVirtioState,
  VIRTIO_FORMAT_VERSION,
  virtioDescription,
} from './records.js';
export {
  NET_RECEIVE_MODES,
  type NetReceiveMode,
  VirtioDeviceType,
  type VirtioNetControl,
  type VirtioRing,
  type VirtioState,
} from './state.js';
