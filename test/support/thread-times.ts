// SPDX-License-Identifier: Apache-2.0
/** What the kernel counts of a thread. */

import { closeSync, openSync, readSync } from 'node:fs';

/** Ms since its start. */
export interface ThreadTimes {
  /** It had a processor. */
  readonly ran: number;
  /** It was ready, and another one had the processor. */
  readonly waited: number;
}

/** @param thread its folder in /proc @returns reads its times; always 0 where the kernel does not count them */
export function threadTimes(thread: string): () => ThreadTimes {
  const buffer = Buffer.alloc(256);
  let schedstat: number;
  try {
    schedstat = openSync(`${thread}/schedstat`, 'r');
  } catch {
    return () => ({ ran: 0, waited: 0 });
  }
  process.on('exit', () => closeSync(schedstat));
  return () => {
    const text = buffer.toString('latin1', 0, readSync(schedstat, buffer, 0, buffer.length, 0));
    const [ran = 0, waited = 0] = text.split(' ').map((ns) => Number(ns) / 1e6);
    return { ran, waited };
  };
}
