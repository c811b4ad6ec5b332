// SPDX-License-Identifier: Apache-2.0
/** vfio-user message layouts: encode and decode, nothing else. Pure: knows no socket and no device. */

export * from './config-reads.js';
export * from './constants.js';
export * from './device-info.js';
export * from './dirty-pages.js';
export * from './dma.js';
export * from './dma-files.js';
export * from './errno.js';
export * from './feature.js';
export * from './format-offer.js';
export * from './header.js';
export * from './images.js';
export * from './irq.js';
export * from './last-error.js';
export * from './migration-data.js';
export * from './migration-v1.js';
export * from './next-vmm.js';
export * from './reader.js';
export * from './region-access.js';
export * from './region-info.js';
export * from './region-io-fds.js';
export * from './state-value.js';
export * from './version.js';
