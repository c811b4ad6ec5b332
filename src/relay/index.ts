// SPDX-License-Identifier: Apache-2.0
/** The man in the middle between a VMM and its device server. */

export type { SwitchRequest } from './control.js';
export { RelayControl } from './control-client.js';
export type { HandOverRequest } from './handoff-document.js';
export { DEFAULT_HOLD_MS, Relay, type RelayOptions } from './relay.js';
export type { SwitchReport } from './switch.js';
