// SPDX-License-Identifier: Apache-2.0
/** Signals: those that cancel what a command does, instead of ending it in the middle, and those that end a server. */

import { writeStderr } from './stderr.js';

/** Ctrl-C, a service manager, a terminal or a connection that is lost. */
const CANCELLING = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** Runs `work` with a signal that aborts when this process is asked to end, by one of `signals`. */
export async function untilSignalled<T>(
  work: (signal: AbortSignal) => Promise<T>,
  signals: readonly NodeJS.Signals[] = CANCELLING,
): Promise<T> {
  const cancel = new AbortController();
  const onSignal = (): void => cancel.abort();
  for (const name of signals) process.on(name, onSignal);
  try {
    return await work(cancel.signal);
  } finally {
    for (const name of signals) process.off(name, onSignal);
  }
}

/** Runs `work` that only this process can undo: no stray failure may end it. */
export async function outlivingStrays<T>(work: () => Promise<T>): Promise<T> {
  const print = (reason: unknown): void => {
    writeStderr(`warning: ${reason instanceof Error ? reason.stack : reason}\n`);
  };
  process.on('unhandledRejection', print);
  try {
    return await work();
  } finally {
    process.off('unhandledRejection', print);
  }
}

/** Settles when a server is asked to end, by SIGTERM or SIGINT. */
export function untilTold(): Promise<void> {
  return new Promise((resolve) => {
    for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => resolve());
  });
}
