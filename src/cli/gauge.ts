// SPDX-License-Identifier: Apache-2.0
/** A bar that fills, as text. */

import { styleText } from 'node:util';

const BAR_WIDTH = 24;

/** `[####....]  17 %  <text>`, at most `width - 1` columns, so that the terminal does not wrap it. @param done 0 to 1 */
export function gauge(done: number, text: string, width: number): string {
  const part = Math.min(1, Math.max(0, done));
  const filled = Math.round(part * BAR_WIDTH);
  const bar = `[${'#'.repeat(filled)}${'.'.repeat(BAR_WIDTH - filled)}] ${String(Math.round(part * 100)).padStart(3)} %`;
  const line = `${bar}  ${text}`.slice(0, Math.max(0, width - 1));
  return process.env.NO_COLOR === undefined ? line.replace(bar, styleText('cyan', bar)) : line;
}
