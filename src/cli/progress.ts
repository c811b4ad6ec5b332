// SPDX-License-Identifier: Apache-2.0
/** Progress on stderr: a bar on a terminal, JSON lines with `-o json`, else a line for each phase. */

import { isatty } from 'node:tty';
import type { MigrateProgress } from '../operations/index.js';
import { gauge } from './gauge.js';
import { formatBytes } from './output.js';
import { writeStderr } from './stderr.js';

export interface ProgressView {
  readonly update: (progress: MigrateProgress) => void;
  /** Leaves the terminal as it should be. May be called again. */
  readonly end: () => void;
}

/** Clears from the cursor to the end of the line: what a longer text has left. */
const CLEAR_LINE = '\x1b[K';

export function createProgress(output: 'text' | 'json'): ProgressView {
  if (output === 'json') {
    return { update: (progress) => writeStderr(`${JSON.stringify(progress)}\n`), end: () => {} };
  }
  return isatty(2) ? bar() : lines();
}

function lines(): ProgressView {
  let last = '';
  return {
    update: ({ phase }) => {
      if (phase !== last) writeStderr(`${phase}\n`);
      last = phase;
    },
    end: () => {},
  };
}

function bar(): ProgressView {
  let drawn = false;
  return {
    update: (progress) => {
      const width = process.stderr.columns || 80;
      writeStderr(`\r${barText(progress, width)}${CLEAR_LINE}`);
      drawn = true;
    },
    end: () => {
      // What comes next, the result or an error, says all that the line has said.
      if (drawn) writeStderr(`\r${CLEAR_LINE}`);
      drawn = false;
    },
  };
}

/** One line, at most `width - 1` columns wide, so that the terminal does not wrap it. */
export function barText(progress: MigrateProgress, width: number): string {
  const { phase, ramTotal = 0, ramRemaining = 0, bitsPerSecond = 0, deviceBytes = 0 } = progress;
  const name = phase.padEnd(10);
  if (phase !== 'precopy' || ramTotal === 0) return name.slice(0, width - 1);
  const rate = `${formatBytes(bitsPerSecond / 8)}/s`;
  const device = deviceBytes > 0 ? `  device ${formatBytes(deviceBytes)}` : '';
  const text = `${rate}${device}`;
  const left = width - name.length - 1;
  return left > 1 ? `${name} ${gauge(1 - ramRemaining / ramTotal, text, left)}` : name.slice(0, width - 1);
}
