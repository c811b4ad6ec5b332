// SPDX-License-Identifier: Apache-2.0
/** `devstate inspect`: what a saved state, or a stream that others have written, is and holds. */

import { Command } from 'commander';
import { jsonpath } from 'json-p3';
import { DevstateError, exitCodeOf } from '../errors.js';
import { renderInspection, withHex } from '../formats/index.js';
import {
  type ExtractedFile,
  type InputFile,
  inspectFile,
  withInput,
  withRereadable,
} from '../operations/index.js';
import { readProgress } from './byte-progress.js';
import { outputOption, parseSize } from './options.js';
import { formatBytes, printJson, writeStdout } from './output.js';
import { writeStderr } from './stderr.js';

/** Bytes that `--hex` shows in all. */
const HEX_TOTAL = 8 * 1024 * 1024;

interface InspectCommandOptions {
  fields?: boolean;
  hex?: boolean;
  path?: string;
  extract?: string;
  limit?: number;
  output: 'text' | 'json';
}

export function inspectCommand(): Command {
  return new Command('inspect')
    .description('show what a saved state or a migration stream is and holds')
    .argument('<file>', 'the file; - for stdin')
    .option('--fields', 'with the fields of every record and section')
    .option('--hex', 'with the first bytes of every record and section: 4 KiB of each, 8 MiB in all')
    .option('--path <expr>', 'only what this JSONPath (RFC 9535) selects in the JSON, as JSON')
    .option('--extract <dir>', 'write what is found inside to files in this directory')
    .option('--limit <size>', 'most bytes to decompress of a compressed file', parseSize)
    .addOption(outputOption())
    .action((path: string, options: InspectCommandOptions) =>
      options.hex === true
        ? withRereadable(path, (input) => inspectInput(input, options))
        : withInput(path, (input) => inspectInput(input, options)),
    );
}

async function inspectInput(input: InputFile, options: InspectCommandOptions): Promise<void> {
  const select = options.path === undefined ? undefined : parsePath(options.path);
  const bytes = options.hex === true ? bytesOf(input) : undefined;
  const progress = readProgress();
  const { inspection, extracted } = await inspectFile(input, {
    extractTo: options.extract,
    limit: options.limit,
    progress: progress.update,
  }).finally(progress.end);
  const json = () => (bytes === undefined ? inspection : withHex(inspection, bytes));
  if (select !== undefined) printJson(select(json()));
  else if (options.output === 'json') printJson(json());
  else {
    const shown = bytes === undefined ? {} : { bytes };
    writeStdout(renderInspection(inspection, { fields: options.fields === true, ...shown }));
  }
  reportExtracted(extracted, options.extract);
  if (inspection.error !== null) process.exitCode = exitCodeOf(inspection.error.code);
}

/** @throws DEVSTATE_E_PATH */
function parsePath(text: string): (value: unknown) => unknown {
  // `records[0].name` is as good as `$.records[0].name`.
  const full = text.startsWith('$') ? text : text.startsWith('[') ? `$${text}` : `$.${text}`;
  const wrong = (what: string, cause: unknown): DevstateError => {
    const why = cause instanceof Error ? cause.message : String(cause);
    return new DevstateError('DEVSTATE_E_PATH', `${JSON.stringify(text)} ${what}: ${why}`, { cause });
  };
  try {
    const query = jsonpath.compile(full);
    return (value) => {
      try {
        const values = query.query(JSON.parse(JSON.stringify(value))).values();
        return query.singularQuery() ? (values[0] ?? null) : values;
      } catch (cause) {
        throw wrong('cannot be followed', cause);
      }
    };
  } catch (cause) {
    throw wrong('is no JSONPath (format.name and records[*].name are)', cause);
  }
}

/** Bytes of the file, until so many have been shown that no one reads them. */
function bytesOf(input: InputFile): (offset: number, length: number) => Uint8Array {
  let left = HEX_TOTAL;
  return (offset, length) => {
    const bytes = input.bytesAt(offset, Math.min(length, left));
    left -= bytes.length;
    return bytes;
  };
}

function reportExtracted(files: readonly ExtractedFile[], directory: string | undefined): void {
  if (directory === undefined) return;
  if (files.length === 0) writeStderr('nothing to extract was found\n');
  for (const { name, size } of files) writeStderr(`${directory}/${name}  ${formatBytes(size)}\n`);
}
