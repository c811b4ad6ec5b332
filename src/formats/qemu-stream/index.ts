// SPDX-License-Identifier: Apache-2.0
/** QEMU's migration stream as a kind of content. */
export { type PreparedKind, qemuStreamKind } from './qemu-stream.js';
export { type ContentFile, readVmDescription, VmDescription } from './vm-description.js';
