// SPDX-License-Identifier: Apache-2.0
/** A blob of one format as a blob of another. */

import { converters } from '../devices/catalogue.js';
import { DevstateError } from '../errors.js';
import {
  BlobConverter,
  COMPRESSIONS,
  type Converter,
  type EnvelopeHeader,
  findFormat,
  findPath,
  formatVersionText,
  isUuid,
  lossesOf,
  parseUuid,
  type Uuid,
} from '../formats/index.js';
import { PRODUCER } from '../version.js';
import type { InputFile, ReadProgress } from './files/input.js';
import type { OutputFile } from './files/output.js';

export interface ConvertOptions {
  /** The format to convert to: a name or UUID, perhaps with `@MAJOR` or `@MAJOR.MINOR`. */
  readonly to: string;
  /** Take a way that loses something, if there is no other. Default: false. */
  readonly allowLossy?: boolean;
  /** Compress the result. Default: as the input is. */
  readonly compress?: boolean | undefined;
  readonly progress?: ReadProgress | undefined;
}

export interface ConvertResult {
  /** Names of the formats passed through, from that of the input to that asked for. */
  readonly way: readonly string[];
  /** What has not come through, a phrase each. */
  readonly losses: readonly string[];
  /** Bytes written. */
  readonly bytes: number;
}

/** @throws DEVSTATE_E_INPUT, DEVSTATE_E_ENVELOPE_…, DEVSTATE_E_STATE_…, DEVSTATE_E_FORMAT_…, DEVSTATE_E_CONVERSION, DEVSTATE_E_OUTPUT */
export async function convertFile(
  input: InputFile,
  output: OutputFile,
  options: ConvertOptions,
): Promise<ConvertResult> {
  let names: string[] = [];
  let losses: string[] = [];
  const converter = new BlobConverter({
    choose: (header) => {
      const way = chooseWay(header, options);
      names = [nameOf(header), ...way.map(({ to }) => `${to.name} ${formatVersionText(to.version)}`)];
      losses = lossesOf(way);
      return way;
    },
    producer: PRODUCER,
    features: (header) => outputFeatures(header, options.compress),
    write: (bytes) => output.write(bytes),
  });
  for await (const chunk of input.chunks(options.progress)) {
    converter.push(chunk);
    await output.flush();
  }
  converter.finish();
  return { way: names, losses, bytes: output.bytes };
}

function outputFeatures({ features }: EnvelopeHeader, compress: boolean | undefined): string[] {
  if (compress === undefined) return features.filter((feature) => COMPRESSIONS.includes(feature));
  return compress ? COMPRESSIONS.slice(0, 1) : [];
}

function chooseWay(header: EnvelopeHeader, { to, allowLossy = false }: ConvertOptions): Converter[] {
  const wanted = parseTarget(to);
  const same =
    header.format === wanted.uuid && (wanted.major ?? header.version.major) === header.version.major;
  if (same) {
    if ((wanted.minor ?? header.version.minor) === header.version.minor) return [];
    const is = `it is ${formatVersionText(header.version)}, and minor versions are not converted`;
    throw new DevstateError('DEVSTATE_E_FORMAT_VERSION', `the blob cannot become ${to}: ${is}`);
  }
  const from = { uuid: header.format, major: header.version.major };
  const lossFree = waysTo(from, wanted, false)[0];
  if (lossFree !== undefined) return requireVersion(lossFree, wanted, to);
  const lossy = waysTo(from, wanted, true)[0];
  const what = `${nameOf(header)} cannot be converted to ${to}`;
  if (lossy === undefined) {
    throw new DevstateError(
      'DEVSTATE_E_CONVERSION',
      `${what}: no way is known (devstate formats lists the converters)`,
    );
  }
  if (allowLossy) return requireVersion(lossy, wanted, to);
  const lost = lossesOf(lossy).join(', ');
  throw new DevstateError(
    'DEVSTATE_E_CONVERSION',
    `${what} without losing ${lost}: with --allow-lossy it is converted all the same`,
  );
}

interface Target {
  readonly uuid: Uuid;
  readonly major: number | undefined;
  readonly minor: number | undefined;
}

/** @throws DEVSTATE_E_FORMAT_UNKNOWN */
function parseTarget(text: string): Target {
  const match = /^([^@]+)(?:@(\d{1,5})(?:\.(\d{1,5}))?)?$/.exec(text);
  const name = match?.[1] ?? text;
  const uuid = isUuid(name) ? parseUuid(name) : findFormat(name)?.uuid;
  if (match === null || uuid === undefined) {
    throw new DevstateError(
      'DEVSTATE_E_FORMAT_UNKNOWN',
      `no format ${JSON.stringify(text.slice(0, 64))} is known: devstate formats lists those that are, and a version is given as NAME@MAJOR.MINOR`,
    );
  }
  const numbers = match.slice(2).map((digits) => (digits === undefined ? undefined : Number(digits)));
  return { uuid, major: numbers[0], minor: numbers[1] };
}

/** The best way to each major version that is wanted, the newest version first. */
function waysTo(from: { uuid: Uuid; major: number }, { uuid, major }: Target, lossy: boolean): Converter[][] {
  const majors = new Set(converters.filter(({ to }) => to.uuid === uuid).map(({ to }) => to.version.major));
  return [...majors]
    .filter((known) => major === undefined || known === major)
    .sort((a, b) => b - a)
    .flatMap((known) => {
      const way = findPath(from, { uuid, major: known }, converters, { lossy });
      return way === undefined ? [] : [way];
    });
}

/** A reader takes any minor version, so only one that was asked for by number has to be the one that is written. */
function requireVersion(way: Converter[], { minor }: Target, asked: string): Converter[] {
  const written = way.at(-1)?.to.version;
  if (minor === undefined || written === undefined || written.minor === minor) return way;
  throw new DevstateError(
    'DEVSTATE_E_FORMAT_VERSION',
    `${asked} cannot be written here, but ${formatVersionText(written)}`,
  );
}

function nameOf({ format, version }: EnvelopeHeader): string {
  return `${findFormat(format)?.name ?? format} ${formatVersionText(version)}`;
}
