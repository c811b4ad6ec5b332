// SPDX-License-Identifier: Apache-2.0
/** Content of others, found in the wild: the kinds that are known, and which of them some bytes are. */
import { qemuCprKind } from '../qemu-cpr/index.js';
import { qemuStreamKind } from '../qemu-stream/index.js';
import type { ContentKind } from './content.js';
import { hisiAccKind } from './hisi-acc.js';
import { mlx5Kind } from './mlx5.js';
import { mttyKind } from './mtty.js';
import { nvmeControllerStateKind } from './nvme-controller-state.js';
import { qatKind } from './qat.js';
import { spdkNvmeKind } from './spdk-nvme.js';
import { virtioDevicePartsKind } from './virtio-device-parts.js';
import { virtioVfioKind } from './virtio-vfio.js';
import { xeKind } from './xe.js';

/**
 * Every kind of content that is not ours, those first that are surest of what they recognise: by a magic number, then by
 * fields that agree with each other.
 */
export const FOREIGN_KINDS: readonly ContentKind[] = [
  qemuStreamKind,
  qemuCprKind,
  mttyKind,
  hisiAccKind,
  spdkNvmeKind,
  qatKind,
  xeKind,
  virtioVfioKind,
  virtioDevicePartsKind,
  mlx5Kind,
  nvmeControllerStateKind,
];

/**
 * The kind of content that begins with `head`: the first of `kinds` that recognises it; undefined if none does.
 * @param head the first bytes, as many as `probeLengthOf(kinds)` or all there are
 */
export function detectContent(
  head: Uint8Array,
  kinds: readonly ContentKind[] = FOREIGN_KINDS,
): ContentKind | undefined {
  return kinds.find((kind) => kind.matches(head.subarray(0, kind.probeLength)));
}

/** First bytes that are enough to tell `kinds` apart. */
export function probeLengthOf(kinds: readonly ContentKind[]): number {
  return kinds.reduce((length, kind) => Math.max(length, kind.probeLength), 0);
}
