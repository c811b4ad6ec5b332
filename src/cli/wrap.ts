// SPDX-License-Identifier: Apache-2.0
/** `devstate wrap` and `devstate unwrap`: foreign streams as blobs, and back. */

import { Command, InvalidArgumentError } from 'commander';
import { DevstateError } from '../errors.js';
import {
  type FormatVersion,
  findFormat,
  isUuid,
  type ParameterValue,
  parseUuid,
  type Uuid,
} from '../formats/index.js';
import { unwrapFile, wrapFile } from '../operations/index.js';
import { collectParameter, forceOption } from './options.js';
import { formatBytes } from './output.js';
import { rewrite } from './rewrite.js';
import { writeStderr } from './stderr.js';

interface WrapCommandOptions {
  format: string;
  formatVersion: FormatVersion;
  model: string;
  param: Record<string, string>;
  output: string;
  force?: boolean;
}

export function wrapCommand(): Command {
  return new Command('wrap')
    .description('put a foreign stream into a blob that says what it is')
    .requiredOption('--format <uuid>', 'what the stream is: the UUID of its format, or a registered name')
    .option('--format-version <major.minor>', 'the version of the format', parseVersion, {
      major: 1,
      minor: 0,
    })
    .requiredOption('--model <uri>', "the device's model", parseModel)
    .option(
      '--param <key=value>',
      'a parameter of the model: JSON, or else text (repeatable)',
      collectParameter,
      {},
    )
    .argument('<raw>', 'the stream; - for stdin')
    .requiredOption('-o, --output <file>', 'where to; - for stdout')
    .addOption(forceOption())
    .action(async (path: string, options: WrapCommandOptions) => {
      const wrapping = {
        format: requireUuid(options.format),
        version: options.formatVersion,
        model: options.model,
        parameters: Object.fromEntries(
          Object.entries(options.param).map(([key, text]) => [key, parseValue(text)]),
        ),
      };
      const { output: to, force } = options;
      const bytes = await rewrite(path, to, { written: 'blob', force }, (input, output, progress) =>
        wrapFile(input, output, { ...wrapping, progress }),
      );
      writeStderr(`wrapped ${formatBytes(bytes)} to ${options.output}\n`);
    });
}

export function unwrapCommand(): Command {
  return new Command('unwrap')
    .description('take the foreign stream out of a blob, as it was wrapped')
    .argument('<in>', 'a blob that wraps a stream; - for stdin')
    .requiredOption('-o, --output <file>', 'where to; - for stdout')
    .addOption(forceOption())
    .action(async (path: string, { output, force }: { output: string; force?: boolean }) => {
      const bytes = await rewrite(path, output, { written: 'device-stream', force }, unwrapFile);
      writeStderr(`unwrapped ${formatBytes(bytes)} to ${output}\n`);
    });
}

function parseVersion(text: string): FormatVersion {
  const [, major, minor] = /^(\d{1,5})\.(\d{1,5})$/.exec(text) ?? [];
  const version = { major: Number(major), minor: Number(minor) };
  if (version.major <= 0xffff && version.minor <= 0xffff) return version;
  throw new InvalidArgumentError('A version is given as MAJOR.MINOR.');
}

function parseModel(text: string): string {
  if (text !== '') return text;
  throw new InvalidArgumentError('A model has a name.');
}

/** Any UUID will do: formats need not be registered here. @throws DEVSTATE_E_FORMAT_UNKNOWN */
function requireUuid(text: string): Uuid {
  const uuid = isUuid(text) ? parseUuid(text) : findFormat(text)?.uuid;
  if (uuid !== undefined) return uuid;
  const message = `${JSON.stringify(text.slice(0, 64))} is neither a UUID nor a registered format: devstate formats lists those`;
  throw new DevstateError('DEVSTATE_E_FORMAT_UNKNOWN', message);
}

/** `4` and `true` are what they look like, everything else is text. */
function parseValue(text: string): ParameterValue {
  if (text === 'true' || text === 'false') return text === 'true';
  if (/^-?\d{1,15}$/.test(text)) return Number(text);
  if (!text.startsWith('"')) return text;
  try {
    return String(JSON.parse(text));
  } catch {
    return text;
  }
}
