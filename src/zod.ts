// SPDX-License-Identifier: Apache-2.0
/**
 * zod, which interprets its schemas here. By itself it compiles each object's schema to a function when it is first used:
 * tens of milliseconds in which a server answers nobody, for documents that it reads once. A process that has to do without
 * code made at run time (`--disallow-code-generation-from-strings`) can.
 */

import { config } from 'zod';

config({ jitless: true });

export * from 'zod';
