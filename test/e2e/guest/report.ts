// SPDX-License-Identifier: Apache-2.0
/**
 * How a program that runs in a test guest tells its results. The test that runs it, on this side of the console, is
 * `VfioGuest.run` in `../harness/vfio-guest.ts`: each {@link check} becomes a test of it.
 *
 *     import assert from 'node:assert/strict';
 *     import { check, finish } from './report.js';
 *
 *     await check('the group opens once', async () => {
 *       assert.throws(() => openGroup('1'), /EBUSY/);
 *     });
 *     finish();
 */
import { writeSync } from 'node:fs';

/** Begins a line that is a result; everything else that a program prints is shown as it is. */
export const RESULT_MARK = '@result ';

/** Begins the last line: how many results there were. Without it a program has not come to its end. */
export const END_MARK = '@results ';

/** One result, as JSON behind {@link RESULT_MARK}. */
export interface GuestResult {
  readonly name: string;
  readonly ok: boolean;
  /** Milliseconds it took. */
  readonly ms: number;
  /** Of the error, when not `ok`. */
  readonly message?: string;
  readonly stack?: string;
}

let told = 0;
let failed = 0;

/** Runs `body` and tells its outcome; a failure does not end the program. Resolves to whether it passed. */
export async function check(name: string, body: () => void | Promise<void>): Promise<boolean> {
  const began = performance.now();
  const took = () => Math.round(performance.now() - began);
  try {
    await body();
    tell({ name, ok: true, ms: took() });
    return true;
  } catch (error) {
    failed++;
    const { message, stack } = error instanceof Error ? error : new Error(String(error));
    tell({ name, ok: false, ms: took(), message, ...(stack === undefined ? {} : { stack }) });
    return false;
  }
}

/** A remark in the test's output, such as a number that was measured. */
export function remark(text: string): void {
  writeSync(1, `${text.replace(/^/gm, '# ')}\n`);
}

/** Ends the program, with code 1 if a check has failed. Handles that are still open do not keep it. */
export function finish(): never {
  writeSync(1, `${END_MARK}${told}\n`);
  process.exit(failed === 0 ? 0 : 1);
}

/** Synchronously: a line is out even if the next thing that happens is a crash. */
function tell(result: GuestResult): void {
  told++;
  writeSync(1, `${RESULT_MARK}${JSON.stringify(result)}\n`);
}
