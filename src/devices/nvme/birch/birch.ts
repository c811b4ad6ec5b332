// SPDX-License-Identifier: Apache-2.0
/** What the controller's functions are given: the image, the disk, the engine, and the world outside. */

import type { DeviceHost } from '../../../device/index.js';
import type { Comparing } from '../comparing.js';
import type { ImageFile } from '../image-file.js';
import type { NvmeParameters } from '../spec/index.js';
import type { ControllerImage } from './controller-image.js';
import type { QueueEngine } from './engine.js';

export interface Birch {
  readonly parameters: NvmeParameters;
  readonly image: ControllerImage;
  readonly disk: ImageFile;
  readonly comparing: Comparing;
  readonly engine: QueueEngine;
  readonly host: DeviceHost;
}
