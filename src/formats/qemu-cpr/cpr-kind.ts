// SPDX-License-Identifier: Apache-2.0
/** QEMU's CprState in a file, as a kind of content: a channel that was saved, or the memory file of cpr-exec. */
import type { ContentKind } from '../foreign/content.js';
import type { Pull, PushedInput } from '../foreign/pushed-input.js';
import { walkedKind } from '../foreign/walk-reader.js';
import { CPR_HEADER_LENGTH, CPR_MAGIC, emptyCprState, PASSED, walkCprState } from './cpr-state.js';

export const qemuCprKind: ContentKind = walkedKind({
  name: 'qemu-cpr',
  title: 'QEMU CPR state',
  probeLength: CPR_HEADER_LENGTH,
  matches: (first) =>
    first.length >= CPR_HEADER_LENGTH && Buffer.from(first.subarray(0, 4)).readUInt32BE() === CPR_MAGIC,
  *walk({ input, tree, fields }) {
    const state = emptyCprState();
    try {
      yield* walkCprState(input, tree, state, storedDescriptor);
    } finally {
      fields.descriptors = state.descriptors.length;
      fields.vfioDevices = state.vfioDevices.length;
    }
  },
});

/** In a file nothing travels beside: the first byte tells which of the two it is. */
function* storedDescriptor(input: PushedInput): Pull<number | null> {
  yield* input.need(1);
  if (input.view(1)[0] === PASSED) {
    input.skip(1);
    return null;
  }
  yield* input.need(4);
  return input.u32() | 0;
}
