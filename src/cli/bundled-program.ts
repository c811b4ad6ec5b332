// SPDX-License-Identifier: Apache-2.0
/** Takes the place of `program.ts` in the bundle (tools/bundle.mjs). */

import { fileURLToPath } from 'node:url';
import { compile, evaluate } from './script.js';

const file = fileURLToPath(new URL('program.cjs', import.meta.url));

export const { main } = evaluate(compile(file), file);
