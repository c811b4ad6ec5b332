// SPDX-License-Identifier: Apache-2.0
/** Payloads of commands as bytes, for tests that send them by hand. */

import {
  type Capabilities,
  defaultCapabilities,
  encodeDmaMap,
  encodeDmaUnmap,
  encodeRegionAccess,
  encodeSetIrqs,
  encodeVersion,
} from '../../src/wire/index.js';
import { viewOf } from './hex.js';

/** 32-bit words, little endian. */
export function u32(...values: number[]): Uint8Array {
  return new Uint8Array(Uint32Array.from(values).buffer);
}

export function version(capabilities: Partial<Capabilities> = {}, minor = 2): Uint8Array {
  return encodeVersion({ major: 0, minor, capabilities: { ...defaultCapabilities, ...capabilities } });
}

export function access(
  offset: number,
  region: number,
  count: number,
  data: Uint8Array = new Uint8Array(0),
): Uint8Array {
  const bytes = new Uint8Array(16 + data.length);
  encodeRegionAccess(viewOf(bytes), 0, offset, region, count);
  bytes.set(data, 16);
  return bytes;
}

export function dmaMap(address: number, size: number, flags = 3, offset = 0): Uint8Array {
  const bytes = new Uint8Array(32);
  encodeDmaMap(viewOf(bytes), 0, { flags, offset, address, size });
  return bytes;
}

export function dmaUnmap(address: number, size: number, flags = 0): Uint8Array {
  const bytes = new Uint8Array(24);
  encodeDmaUnmap(viewOf(bytes), 0, { flags, address, size });
  return bytes;
}

export function setIrqs(
  flags: number,
  index: number,
  start: number,
  count: number,
  data: Uint8Array = new Uint8Array(0),
): Uint8Array {
  const bytes = new Uint8Array(20 + data.length);
  encodeSetIrqs(viewOf(bytes), 0, { flags, index, start, count }, data.length);
  bytes.set(data, 20);
  return bytes;
}
