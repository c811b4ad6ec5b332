// SPDX-License-Identifier: Apache-2.0
/** NVMe 1.4 as the model `devstate.org/nvme` presents it: numbers, layouts, parameters. Holds no state. */

export * from './commands.js';
export * from './counters.js';
export * from './identify.js';
export * from './identity.js';
export * from './log-pages.js';
export * from './model.js';
export * from './pci.js';
export * from './registers.js';
export * from './status.js';
