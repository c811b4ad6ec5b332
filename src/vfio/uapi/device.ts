// SPDX-License-Identifier: Apache-2.0
/**
 * A device (<linux/vfio.h>). Region and interrupt info are laid out as in vfio-user, which has them from here.
 *
 *     DEVICE_GET_INFO           argsz u32, flags u32, num_regions u32, num_irqs u32, cap_offset u32, pad u32
 *     DEVICE_SET_IRQS           argsz u32, flags u32, index u32, start u32, count u32, data: u8 or s32 each
 *     DEVICE_FEATURE            argsz u32, flags u32 (index and what is asked), data
 *     DEVICE_BIND_IOMMUFD       argsz u32, flags u32, iommufd s32, out_devid u32
 *     DEVICE_ATTACH_IOMMUFD_PT  argsz u32, flags u32, pt_id u32 (in the answer: what it is attached to)
 *     DEVICE_DETACH_IOMMUFD_PT  argsz u32, flags u32
 */

import {
  encodeFeatureHeader,
  encodeSetIrqs,
  FEATURE_LENGTH,
  SET_IRQS_LENGTH,
  type SetIrqs,
} from '../../wire/index.js';
import { structure, viewOf } from './container.js';

export const DEVICE_INFO_LENGTH = 24;
export const BIND_IOMMUFD_LENGTH = 16;
export const ATTACH_IOMMUFD_LENGTH = 12;
export const DETACH_IOMMUFD_LENGTH = 8;

export interface DeviceInfo {
  /** `DeviceFlag`. */
  readonly flags: number;
  readonly regions: number;
  readonly irqs: number;
}

export function encodeDeviceInfo(): Uint8Array {
  const { bytes, view } = structure(DEVICE_INFO_LENGTH);
  view.setUint32(0, DEVICE_INFO_LENGTH, true);
  return bytes;
}

export function decodeDeviceInfo(bytes: Uint8Array): DeviceInfo {
  const view = viewOf(bytes);
  return {
    flags: view.getUint32(4, true),
    regions: view.getUint32(8, true),
    irqs: view.getUint32(12, true),
  };
}

/** `fds` for DATA_EVENTFD, -1 for none; `bools` for DATA_BOOL. */
export function encodeSetIrqsRequest(
  request: SetIrqs,
  data: { fds?: readonly number[]; bools?: readonly boolean[] } = {},
): Uint8Array {
  const { fds = [], bools = [] } = data;
  const dataLength = 4 * fds.length + bools.length;
  const { bytes, view } = structure(SET_IRQS_LENGTH + dataLength);
  encodeSetIrqs(view, 0, request, dataLength);
  fds.forEach((fd, index) => {
    view.setInt32(SET_IRQS_LENGTH + 4 * index, fd, true);
  });
  bytes.set(bools.map(Number), SET_IRQS_LENGTH + 4 * fds.length);
  return bytes;
}

/** A DEVICE_FEATURE with room for `data`, whose answer is in the same bytes from `FEATURE_LENGTH` on. */
export function encodeFeature(flags: number, data: Uint8Array): Uint8Array {
  const { bytes, view } = structure(FEATURE_LENGTH + data.length);
  encodeFeatureHeader(view, 0, bytes.length, flags);
  bytes.set(data, FEATURE_LENGTH);
  return bytes;
}

export function encodeBindIommufd(iommufd: number): Uint8Array {
  const { bytes, view } = structure(BIND_IOMMUFD_LENGTH);
  view.setUint32(0, BIND_IOMMUFD_LENGTH, true);
  view.setInt32(8, iommufd, true);
  return bytes;
}

/** The id of the device within its iommufd. */
export function decodeBindIommufd(bytes: Uint8Array): number {
  return viewOf(bytes).getUint32(12, true);
}

export function encodeAttachIommufd(id: number): Uint8Array {
  const { bytes, view } = structure(ATTACH_IOMMUFD_LENGTH);
  view.setUint32(0, ATTACH_IOMMUFD_LENGTH, true);
  view.setUint32(8, id, true);
  return bytes;
}

/** The id of the page table that the device is attached to. */
export function decodeAttachIommufd(bytes: Uint8Array): number {
  return viewOf(bytes).getUint32(8, true);
}

export function encodeDetachIommufd(): Uint8Array {
  const { bytes, view } = structure(DETACH_IOMMUFD_LENGTH);
  view.setUint32(0, DETACH_IOMMUFD_LENGTH, true);
  return bytes;
}
