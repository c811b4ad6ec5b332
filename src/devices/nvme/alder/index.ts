// SPDX-License-Identifier: Apache-2.0
/** NVMe controller, vendor "alder". */

import { type NvmeParameterName, nvmeParameterTable, type ParameterDefinition } from '../spec/index.js';

export { type AlderNvmeOptions, createAlderNvme } from './alder-nvme.js';
export { alderDescription } from './describe.js';
export { AlderRecord } from './state-format.js';

/** The model's parameters, all of which this implementation has in full. */
export const alderParameters: Readonly<Record<NvmeParameterName, ParameterDefinition>> = nvmeParameterTable;
