// SPDX-License-Identifier: Apache-2.0
/** One signal for everything that ends an operation before its time: cancellation, the time limit, somebody who is lost. */

import { DevstateError } from '../errors.js';

/** setTimeout takes no more, ms. */
const MAX_TIMER_MS = 2 ** 31 - 1;

export interface Limits {
  readonly signal: AbortSignal;
  readonly abort: (reason: DevstateError) => void;
  readonly clear: () => void;
}

/**
 * @param what the operation, as in `the migration was cancelled`
 * @param spentMs what earlier attempts have used of the time
 */
export function limitsOf(
  what: string,
  timeoutMs: number,
  cancel: AbortSignal | undefined,
  spentMs = 0,
): Limits {
  const controller = new AbortController();
  const onCancel = (): void => {
    controller.abort(new DevstateError('DEVSTATE_E_CANCELLED', `${what} was cancelled`));
  };
  if (cancel?.aborted === true) onCancel();
  cancel?.addEventListener('abort', onCancel);
  const timer = setTimeout(
    () => {
      const message = `${what} did not complete within ${timeoutMs / 1000} s`;
      controller.abort(new DevstateError('DEVSTATE_E_TIMEOUT', message));
    },
    Math.min(timeoutMs - spentMs, MAX_TIMER_MS),
  );
  return {
    signal: controller.signal,
    abort: (reason) => controller.abort(reason),
    clear: () => {
      clearTimeout(timer);
      cancel?.removeEventListener('abort', onCancel);
    },
  };
}
