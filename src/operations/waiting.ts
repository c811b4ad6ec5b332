// SPDX-License-Identifier: Apache-2.0
/** Not waiting for ever for somebody who does not answer. */

import { DevstateError } from '../errors.js';

/**
 * Settles like `work`, or rejects with the signal's reason once it aborts. The peer may still do what it was asked for;
 * what is sent to it afterwards comes after that.
 */
export async function unlessAborted<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return work;
  let abort = (): void => {};
  const aborted = new Promise<never>((_, reject) => {
    abort = () => reject(signal.reason);
    signal.addEventListener('abort', abort);
    if (signal.aborted) abort();
  });
  try {
    return await Promise.race([work, aborted]);
  } finally {
    signal.removeEventListener('abort', abort);
  }
}

/** Settles like `work`, within a time. @throws DEVSTATE_E_REQUEST_TIMEOUT */
export function within<T>(ms: number, work: Promise<T>): Promise<T> {
  const timeout = new AbortController();
  const timer = setTimeout(() => {
    timeout.abort(new DevstateError('DEVSTATE_E_REQUEST_TIMEOUT', `no answer within ${ms / 1000} s`));
  }, ms);
  return unlessAborted(work, timeout.signal).finally(() => clearTimeout(timer));
}

/**
 * Like Promise.all, but settles when all have: what is undone after a failure must not be under way any more.
 * @throws the first error in order
 */
export async function together<T extends readonly unknown[]>(
  work: readonly [...{ [K in keyof T]: Promise<T[K]> }],
): Promise<T> {
  await Promise.allSettled(work);
  return (await Promise.all(work)) as unknown as T;
}

export function delay(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
