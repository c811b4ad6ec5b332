// SPDX-License-Identifier: Apache-2.0
/** NVMe: the model `devstate.org/nvme`, its store, and its implementations. */

export { type AlderNvmeOptions, createAlderNvme } from './alder/index.js';
export { ImageFile, type ImageOptions } from './image-file.js';
export {
  NVME_MODEL_URI,
  type NvmeParameterName,
  type NvmeParameters,
} from './spec/index.js';
