// SPDX-License-Identifier: Apache-2.0
/** Migration v1: the region's registers, and a front that has a device of v2 behind them. */

export {
  deviceStateOf,
  deviceStatePath,
  isDeviceState,
  migrationStateOf,
  requireTransition,
} from './device-state.js';
export { type DataSection, RegionFront } from './front.js';
export {
  type IterationAccess,
  type LoadAction,
  type LoadPhase,
  loadSteps,
  type SaveAction,
  type SavePhase,
  saveSteps,
} from './iteration.js';
export type { LifeCycle } from './life-cycle.js';
export { DATA_OFFSET, type RegionPlace, regionPlace } from './registers.js';
