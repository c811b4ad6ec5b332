// SPDX-License-Identifier: Apache-2.0
/** QEMU's migration stream, as `migrate file:PATH` or `migrate exec:cat>PATH` write it, as a kind of content. */
import type { ContentKind, ContentReader, ContentReaderOptions } from '../foreign/content.js';
import { Nesting } from '../foreign/nested-content.js';
import { WalkReader } from '../foreign/walk-reader.js';
import { FILE_HEADER_LENGTH, QEMU_VM_FILE_MAGIC, QEMU_VM_FILE_VERSION } from './constants.js';
import { StreamWalk } from './stream-walk.js';
import { readVmDescription, type VmDescription } from './vm-description.js';

export const qemuStreamKind: Required<ContentKind> = {
  name: 'qemu-stream',
  title: 'QEMU migration stream',
  probeLength: FILE_HEADER_LENGTH,
  matches(first) {
    if (first.length < FILE_HEADER_LENGTH) return false;
    const view = new DataView(first.buffer, first.byteOffset, first.length);
    return view.getUint32(0) === QEMU_VM_FILE_MAGIC && view.getUint32(4) === QEMU_VM_FILE_VERSION;
  },
  read: (options) => readStream(options, undefined),
  prepare(file) {
    const description = readVmDescription(file) ?? null;
    return { ...qemuStreamKind, read: (options) => readStream(options, description) };
  },
};

function readStream(
  { offset = 0, extraction, kinds = [] }: ContentReaderOptions,
  description: VmDescription | null | undefined,
): ContentReader {
  // Streams within streams are not looked into: each level would hold bytes of its own.
  const inner = kinds.filter(({ name }) => name !== qemuStreamKind.name);
  const nesting = new Nesting(inner, extraction);
  return new WalkReader(qemuStreamKind.name, new StreamWalk({ offset, description, nesting }));
}
