// SPDX-License-Identifier: Apache-2.0
/** The command line as it is installed (tools/bundle.mjs). */
import { fileURLToPath } from 'node:url';

export const MAIN = fileURLToPath(new URL('../../bin/devstate.cjs', import.meta.url));
