// SPDX-License-Identifier: Apache-2.0
/** Log lines of a server, on stderr: plain text for a terminal, JSON lines for everything else. */

import { pino } from 'pino';

export type Log = (level: 'info' | 'warn' | 'error', message: string) => void;

/** Most characters that are kept while they cannot be written. */
const MAX_UNWRITTEN = 1024 * 1024;

export function createLog(name: string): Log {
  if (process.stderr.isTTY) {
    return (level, message) =>
      process.stderr.write(`${new Date().toISOString()} ${level} ${name}: ${message}\n`);
  }
  const destination = pino.destination({ dest: 2, sync: true, maxLength: MAX_UNWRITTEN });
  // A full disk costs log lines, not the device.
  destination.on('error', () => {});
  const logger = pino({ name }, destination);
  return (level, message) => logger[level](message);
}
