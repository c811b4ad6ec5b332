// SPDX-License-Identifier: Apache-2.0
/** Log lines of a server, on stderr: plain text for a terminal, JSON lines for everything else. */

import { pino } from 'pino';

export type Log = (level: 'info' | 'warn' | 'error', message: string) => void;

export function createLog(name: string): Log {
  if (process.stderr.isTTY) {
    return (level, message) =>
      process.stderr.write(`${new Date().toISOString()} ${level} ${name}: ${message}\n`);
  }
  const logger = pino({ name }, pino.destination({ dest: 2, sync: true }));
  return (level, message) => logger[level](message);
}
