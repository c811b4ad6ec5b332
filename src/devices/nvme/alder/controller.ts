// SPDX-License-Identifier: Apache-2.0
/** What the parts of the controller share. */

import type { DeviceHost } from '../../../device/index.js';
import type { ImageFile } from '../image-file.js';
import type { NvmeParameters } from '../spec/index.js';
import type { QueueEngine } from './engine.js';
import type { AsyncEvents } from './events.js';
import type { Features } from './features.js';
import type { Health } from './health.js';
import type { Registers } from './registers.js';

export interface Controller {
  readonly parameters: NvmeParameters;
  readonly image: ImageFile;
  readonly host: DeviceHost;
  readonly registers: Registers;
  readonly engine: QueueEngine;
  readonly features: Features;
  readonly health: Health;
  readonly events: AsyncEvents;
  /** Not quiesced. */
  readonly running: boolean;
}
