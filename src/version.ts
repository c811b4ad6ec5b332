// SPDX-License-Identifier: Apache-2.0
/** Which devstate this is. */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { PACKAGE_ROOT } from './package-root.js';

const { version } = JSON.parse(readFileSync(join(PACKAGE_ROOT, 'package.json'), 'utf8')) as {
  version: string;
};

export const VERSION: string = version;

/** Who writes the blobs that no device has written: what a conversion or a wrapping makes. */
export const PRODUCER = { name: 'devstate', version };
