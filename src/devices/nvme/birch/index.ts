// SPDX-License-Identifier: Apache-2.0
/** NVMe controller, vendor "birch". */

export { type BirchNvmeOptions, createBirchNvme } from './birch-nvme.js';
export { BirchRecord } from './records.js';
