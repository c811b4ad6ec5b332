// SPDX-License-Identifier: Apache-2.0
/** What a QEMU hands to its successor before everything else: a list of file descriptors with names. */
export { type CprDecoderOptions, CprStateDecoder, type UnknownCprPart } from './cpr-decoder.js';
export { qemuCprKind } from './cpr-kind.js';
export type { CprDescriptor, CprState, CprVfioDevice } from './cpr-state.js';
