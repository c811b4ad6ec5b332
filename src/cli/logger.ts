// SPDX-License-Identifier: Apache-2.0
/**
 * Log lines of a server, on stderr: plain text for a terminal, JSON lines for everything else. They never wait for a reader
 * (see stderr.ts), and what a peer can repeat is limited.
 */

import { isatty } from 'node:tty';
import { pino } from 'pino';
import { type Log, type LogLevel, limitRepeats, summarizeRepeats } from '../logging/index.js';
import { droppedText, setDroppedNotice, writeStderr } from './stderr.js';

export type { Log } from '../logging/index.js';

export function createLog(name: string): Log {
  const format = isatty(2) ? textFormat(name) : jsonFormat(name);
  setDroppedNotice((lines) => format('warn', droppedText(lines)));
  const log = limitRepeats((level, message) => writeStderr(format(level, message)));
  process.once('exit', () => summarizeRepeats(log));
  return log;
}

type Format = (level: LogLevel, message: string) => string;

function textFormat(name: string): Format {
  return (level, message) => `${new Date().toISOString()} ${level} ${name}: ${message}\n`;
}

function jsonFormat(name: string): Format {
  let text = '';
  const logger = pino({ name }, { write: (line) => (text = line) });
  return (level, message) => {
    logger[level](message);
    return text;
  };
}
