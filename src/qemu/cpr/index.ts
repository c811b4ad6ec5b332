// SPDX-License-Identifier: Apache-2.0
/** QEMU's checkpoint and restart (CPR): what a source hands to its destination before anything else. */
export type { DescribedCprDescriptor } from './cpr-checks.js';
export { type CprRelayOptions, type CprReport, relayCprChannel } from './cpr-relay.js';
export { type DescriptorKind, describeDescriptor } from './descriptor-kind.js';
