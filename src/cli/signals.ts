// SPDX-License-Identifier: Apache-2.0
/** Signals that cancel what a command does, instead of ending it in the middle. */

/** Ctrl-C, a service manager, a terminal or a connection that is lost. */
const CANCELLING = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** Runs `work` with a signal that aborts when this process is told to end. */
export async function untilSignalled<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const cancel = new AbortController();
  const onSignal = (): void => cancel.abort();
  for (const name of CANCELLING) process.on(name, onSignal);
  try {
    return await work(cancel.signal);
  } finally {
    for (const name of CANCELLING) process.off(name, onSignal);
  }
}
