// SPDX-License-Identifier: Apache-2.0
/** How far a long file is read: a bar on stderr, on a terminal only, and only if it takes long enough to be wondered at. */

import { isatty } from 'node:tty';
import type { ReadProgress } from '../operations/index.js';
import { gauge } from './gauge.js';
import { formatBytes } from './output.js';
import { writeStderr } from './stderr.js';

/** Nothing is drawn before, ms. */
const PATIENCE_MS = 300;
const REDRAW_MS = 100;
const CLEAR_LINE = '\x1b[K';

export interface ReadProgressView {
  readonly update: ReadProgress;
  /** Leaves the terminal as it should be. */
  readonly end: () => void;
}

export function readProgress(): ReadProgressView {
  if (!isatty(2)) return { update: () => {}, end: () => {} };
  const started = performance.now();
  let drawnAt = started + PATIENCE_MS - REDRAW_MS;
  let drawn = false;
  return {
    update: (done, total) => {
      const now = performance.now();
      if (now - drawnAt < REDRAW_MS) return;
      drawnAt = now;
      drawn = true;
      const width = process.stderr.columns || 80;
      writeStderr(`\r${progressText(done, total, now - started, width)}${CLEAR_LINE}`);
    },
    end: () => {
      if (drawn) writeStderr(`\r${CLEAR_LINE}`);
    },
  };
}

/** One line of at most `width - 1` columns. @param ms since the beginning */
export function progressText(done: number, total: number | undefined, ms: number, width: number): string {
  const rate = `${formatBytes(done)}  ${formatBytes((done / ms) * 1000)}/s`;
  return total === undefined || total === 0 ? rate.slice(0, width - 1) : gauge(done / total, rate, width);
}
