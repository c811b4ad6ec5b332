// SPDX-License-Identifier: Apache-2.0
/** NVMe controller, vendor "alder". */

export { type AlderNvmeOptions, createAlderNvme } from './alder-nvme.js';
export { alderDescription } from './describe.js';
export { alderToStandard, standardToAlder } from './standard.js';
export { AlderRecord, AlderRecords, encodeAlderState } from './state-format.js';
