// SPDX-License-Identifier: Apache-2.0
/** What commands have in common that read one file and write another: progress, and nothing left behind when they are ended. */

import { DevstateError } from '../errors.js';
import {
  type InputFile,
  type OutputFile,
  type ReadProgress,
  type WithOutputOptions,
  withInput,
  withOutput,
} from '../operations/index.js';
import { readProgress } from './byte-progress.js';
import { printWarning } from './output.js';
import { untilSignalled } from './signals.js';

type Work<T> = (input: InputFile, output: OutputFile, progress: ReadProgress) => Promise<T>;

/** @throws DEVSTATE_E_CANCELLED when this process is asked to end; the output is then as it was */
export async function rewrite<T>(
  inputPath: string,
  outputPath: string,
  { written, force }: Pick<WithOutputOptions, 'written' | 'force'>,
  work: Work<T>,
): Promise<T> {
  const view = readProgress();
  const cancelled = (): DevstateError =>
    new DevstateError('DEVSTATE_E_CANCELLED', `cancelled: ${outputPath} was not written`);
  const rewriting = untilSignalled((signal) => {
    // No one may be writing what we wait for.
    signal.addEventListener('abort', () => process.stdin.destroy(cancelled()));
    const progress: ReadProgress = (done, total) => {
      if (signal.aborted) throw cancelled();
      view.update(done, total);
    };
    const options = { written, force, inputs: [inputPath], warn: printWarning };
    return withInput(inputPath, (input) =>
      withOutput(outputPath, (output) => work(input, output, progress), options),
    );
  });
  return rewriting.finally(view.end);
}
