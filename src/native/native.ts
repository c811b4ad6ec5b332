// SPDX-License-Identifier: Apache-2.0
/** The native addon, loaded when this module is first imported. */

import type { NativeBinding } from './binding.js';
import { loadPackageAddon } from './loader.js';

/** The addon of this package. Importing fails with DEVSTATE_E_ADDON when it is not there. */
export const native: NativeBinding = loadPackageAddon();
