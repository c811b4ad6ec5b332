// SPDX-License-Identifier: Apache-2.0
/** Proof that what an operator names belongs together. */

export { createChallenge, judge, type Verdict } from './challenge.js';
export {
  type DeviceCensus,
  type NamedDevices,
  requireSameDevices,
  takeCensus,
  unknownWithout,
  whyNotThere,
} from './devices.js';
export { proveImages } from './images.js';
export { type OwnedDevice, type OwnerOptions, proveOwner, requireOwner } from './owner.js';
export { type Claim, type Examined, type NamedSocket, proveClaims, type Witness } from './prove.js';
