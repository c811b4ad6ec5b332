// SPDX-License-Identifier: Apache-2.0
/** How a process's place is taken, and its VMM's: what a server and a relay have in common there. */

export { SocketName } from './adopted-sockets.js';
export { BUSY, Desk, type DeskHost, type PerSocket } from './desk.js';
export { type FrozenWork, type GivenWork, type GiveRequest, giveWork } from './giver.js';
export { type Manager, makeRoom, refuse } from './managers.js';
export { type AbsorbingUnderstudy, NextVmm, type NextVmmHost, type NextVmmSteps } from './next-vmm.js';
export { type AdoptedWork, type WorkKind, WorkReceiver } from './receiver.js';
