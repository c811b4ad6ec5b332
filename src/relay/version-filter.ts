// SPDX-License-Identifier: Apache-2.0
/**
 * VERSION through the relay: the proposal and the answer are the VMM's and the server's own, but for what the relay
 * cannot pass on: a twin socket, transfers that are longer than its buffers, messages with more fds than this process can
 * take. Ranges are the server's to limit: the relay holds one fd for all of a file, see dma-maps.ts.
 */

import { peerFds } from '../native/index.js';
import { DEFAULT_MAX_DATA_XFER_SIZE, DEFAULT_MAX_MSG_FDS, type Version } from '../wire/index.js';

/** `major u16, minor u16`, before the JSON. */
const NUMBERS_LENGTH = 4;

function ownLimits(): Readonly<Record<string, number>> {
  return {
    max_data_xfer_size: DEFAULT_MAX_DATA_XFER_SIZE,
    max_msg_fds: Math.max(1, Math.floor(peerFds() / 4)),
  };
}

/** What holds where a peer does not say: the specification's defaults. */
const UNSAID: Readonly<Record<string, number>> = {
  max_data_xfer_size: DEFAULT_MAX_DATA_XFER_SIZE,
  max_msg_fds: DEFAULT_MAX_MSG_FDS,
};

/** A VERSION payload as it is passed on. What is not JSON is left as it is: its receiver says what is wrong with it. */
export function filterVersion(payload: Uint8Array): Uint8Array {
  const end = payload.at(-1) === 0 ? payload.length - 1 : payload.length;
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder().decode(payload.subarray(NUMBERS_LENGTH, end)));
  } catch {
    return payload;
  }
  if (!isObject(json) || !isObject(json.capabilities)) return payload;
  const { twin_socket: _, ...capabilities } = json.capabilities;
  for (const [name, own] of Object.entries(ownLimits())) {
    const said = capabilities[name] ?? UNSAID[name];
    if (typeof said === 'number' && said > own) capabilities[name] = own;
  }
  const text = new TextEncoder().encode(JSON.stringify({ ...json, capabilities }));
  const filtered = new Uint8Array(NUMBERS_LENGTH + text.length + 1);
  filtered.set(payload.subarray(0, NUMBERS_LENGTH));
  filtered.set(text, NUMBERS_LENGTH);
  return filtered;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Why a server that answers `next` cannot keep what the VMM learned in `told`; empty if it can. */
export function versionDifferences(told: Version, next: Version): string[] {
  const differences: string[] = [];
  const limits = [
    ['max_msg_fds', told.capabilities.maxMsgFds, next.capabilities.maxMsgFds],
    ['max_data_xfer_size', told.capabilities.maxDataXferSize, next.capabilities.maxDataXferSize],
    ['max_dma_maps', told.capabilities.maxDmaMaps, next.capabilities.maxDmaMaps],
  ] as const;
  for (const [name, here, there] of limits)
    if (there < here) differences.push(`${name}: ${here} here, ${there} there`);
  if (told.major !== next.major || told.minor !== next.minor) {
    differences.push(`protocol: ${told.major}.${told.minor} here, ${next.major}.${next.minor} there`);
  }
  if (told.capabilities.writeMultiple && !next.capabilities.writeMultiple)
    differences.push('write_multiple: only here');
  return differences;
}
