// SPDX-License-Identifier: Apache-2.0
/** From one format to another: converters, the way over several of them, and whole blobs. */
export { BlobConverter, type BlobConverterOptions } from './blob-converter.js';
export type { Converter, FormatRecord, RecordConverter } from './converter.js';
export { type FormatPoint, findPath, lossesOf } from './path.js';
