// SPDX-License-Identifier: Apache-2.0
/** Which devstate this is. */

import { readFileSync } from 'node:fs';

const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
  version: string;
};

export const VERSION: string = version;

/** Who writes the blobs that no device has written: what a conversion or a wrapping makes. */
export const PRODUCER = { name: 'devstate', version };
