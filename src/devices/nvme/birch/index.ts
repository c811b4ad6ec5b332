// SPDX-License-Identifier: Apache-2.0
/** NVMe controller, vendor "birch". */

export { type BirchNvmeOptions, createBirchNvme } from './birch-nvme.js';
export { birchDescription } from './describe.js';
export { standardToBirch } from './from-standard.js';
export { BirchRecord } from './records.js';
export { birchToStandard } from './to-standard.js';
