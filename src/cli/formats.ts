// SPDX-License-Identifier: Apache-2.0
/** `devstate formats`: what formats there are, and what can be done with them here. */

import { Command } from 'commander';
import {
  type ConvertibleFormat,
  type KnownFormat,
  listContentKinds,
  listFormats,
} from '../operations/index.js';
import { outputOption } from './options.js';
import { printColumns, printJson, writeStdout } from './output.js';

export function formatsCommand(): Command {
  return new Command('formats')
    .description('list the formats that are known, or show one of them')
    .argument('[format]', 'name or UUID')
    .addOption(outputOption())
    .action((wanted: string | undefined, { output }: { output: 'text' | 'json' }) => {
      const formats = listFormats(wanted);
      const recognised = listContentKinds();
      if (output === 'json') return printJson(wanted === undefined ? { formats, recognised } : formats[0]);
      if (wanted !== undefined) return formats.forEach(printFormat);
      for (const { name, versions, kind, uuid } of formats) {
        writeStdout(`${name.padEnd(36)} ${versions.join(', ').padEnd(6)} ${kind}\n  ${uuid}\n`);
      }
      writeStdout('\nRecognised by inspect, and not ours:\n');
      for (const { kind, title } of recognised) writeStdout(`${kind.padEnd(28)} ${title}\n`);
    });
}

function printFormat(format: KnownFormat): void {
  printColumns([
    ['Name', format.name],
    ['UUID', format.uuid],
    ['Kind', `${format.kind}, ${format.stability}`],
    ['Versions', format.versions.join(', ')],
    ['Models', format.models.join(', ')],
    ['Schema', format.schema === null ? 'none: its records are opaque' : `formats/${format.schema}`],
    ['Fields', format.described ? 'shown by inspect' : 'not known here'],
    ['By values', format.values ? 'yes' : 'no'],
    ...convertible('Converts to', format.convertsTo),
    ...convertible('Made from', format.convertsFrom),
  ]);
}

function convertible(key: string, formats: readonly ConvertibleFormat[]): [string, string][] {
  if (formats.length === 0) return [[key, 'nothing']];
  return formats.map(({ format, losses }, index) => [
    index === 0 ? key : '',
    losses.length === 0 ? format : `${format}, but for ${losses.join(', ')}`,
  ]);
}
