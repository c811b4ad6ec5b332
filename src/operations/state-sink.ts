// SPDX-License-Identifier: Apache-2.0

/** Where the stream goes, once it is in the destination's format. */
export interface StateSink {
  write(bytes: Uint8Array, signal?: AbortSignal): Promise<void>;
  /** All has been written. */
  finish(signal?: AbortSignal): Promise<void>;
}
