// SPDX-License-Identifier: Apache-2.0
/** QEMU's migration stream as a kind of content. */
export { qemuStreamKind } from './qemu-stream.js';
export { readVmDescription, VmDescription } from './vm-description.js';
