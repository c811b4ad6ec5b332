// SPDX-License-Identifier: Apache-2.0
/** Which formats a device offers over the wire, and the ones a connection has chosen among them. */

import type { Device, DeviceModel, DeviceValues, RawState, StateFormat } from '../device/index.js';
import { DevstateError } from '../errors.js';
import {
  COMPRESSIONS,
  type EnvelopeHeader,
  formatVersionText,
  isSameName,
  modelDifferences,
  type Uuid,
  uuidFromBytes,
  uuidToBytes,
} from '../formats/index.js';
import {
  Errno,
  FormatFlag,
  type FormatSelection,
  formatFeatureBits,
  formatFeatureNames,
  RequestError,
  type WireFormatOffer,
} from '../wire/index.js';

/** How a device gives and takes its state: as streams of formats, value by value, or both. */
export interface StateOffer {
  /** In order of preference. */
  readonly formats: readonly StateFormat[];
  readonly values: DeviceValues | undefined;
  /** For a client that selects no format, instead of the first of them. */
  readonly raw: RawState | undefined;
}

/** Names the values of a device in a list of formats. */
const VALUES = 'values';

/**
 * What a device offers, or the part of it that an operator wants it to: to pin what its state looks like, whatever a newer
 * version of it can do.
 * @param names formats by name or UUID, each perhaps with `@MAJOR`, in order of preference; `values`; undefined for all
 * @throws DevstateError DEVSTATE_E_FORMAT_UNKNOWN for one that the device does not have
 */
export function stateOffer({ formats, values, rawState }: Device, names?: readonly string[]): StateOffer {
  if (names === undefined)
    return { formats, values: formats.length === 0 ? values : undefined, raw: rawState };
  return {
    // One that is named twice, perhaps by its UUID, is offered once: where it was named first.
    formats: [
      ...new Set(names.filter((name) => name !== VALUES).map((name) => requireOffered(formats, name))),
    ],
    values: names.includes(VALUES) ? requireValues(values) : undefined,
    raw: undefined,
  };
}

function requireOffered(formats: readonly StateFormat[], name: string): StateFormat {
  const [wanted = '', major] = name.split('@');
  const found = formats.find(
    (format) => isSameName(format, wanted) && (major === undefined || major === String(format.version.major)),
  );
  if (found !== undefined) return found;
  const known = formats.map((format) => `${format.name}@${format.version.major}`).join(', ');
  throw new DevstateError(
    'DEVSTATE_E_FORMAT_UNKNOWN',
    `the device does not have the format ${name}: it has ${known}`,
  );
}

function requireValues(values: DeviceValues | undefined): DeviceValues {
  if (values !== undefined) return values;
  throw new DevstateError('DEVSTATE_E_FORMAT_UNKNOWN', 'the device does not give its state value by value');
}

/** What one connection has chosen; the device's raw state or first format, without features, unless it has. */
export interface FormatChoice {
  save?: { readonly format: StateFormat; readonly features: readonly string[] };
  load?: StateFormat;
}

/** In the device's order of preference. */
export function formatOffers({ formats }: StateOffer): WireFormatOffer[] {
  const features = formatFeatureBits(COMPRESSIONS);
  return formats.map((format) => ({
    uuid: uuidToBytes(format.uuid),
    ...format.version,
    flags: FormatFlag.SAVE | FormatFlag.LOAD | (format.fidelity === 'partial' ? FormatFlag.PARTIAL : 0),
    features,
    limit: 0,
    estimate: format.estimate(),
    name: format.name,
  }));
}

/** @throws RequestError ENOTSUP when the device does not offer it, EINVAL for a selection that says nothing */
export function chooseFormat(offer: StateOffer, choice: FormatChoice, selection: FormatSelection): void {
  const { SAVE, LOAD } = FormatFlag;
  if ((selection.flags & (SAVE | LOAD)) === 0 || (selection.flags & ~(SAVE | LOAD)) !== 0) {
    throw new RequestError(Errno.EINVAL, 'a format is selected to save, to load, or both');
  }
  const uuid = uuidFromBytes(selection.uuid);
  const format = findFormat(offer.formats, uuid, selection.major);
  const version = formatVersionText(selection);
  if (format === undefined) throw new RequestError(Errno.ENOTSUP, `format ${uuid} is not offered here`);
  if (format.version.major !== selection.major) {
    throw new RequestError(
      Errno.ENOTSUP,
      `${format.name} ${version} is not offered here, but ${formatVersionText(format.version)}`,
    );
  }
  const features = requireFeatures(selection.features);
  if ((selection.flags & SAVE) !== 0) {
    // A reader takes every minor version, but a writer cannot write one that it does not know.
    if (selection.minor > format.version.minor) {
      throw new RequestError(Errno.ENOTSUP, `${format.name} ${version} is newer than what is written here`);
    }
    choice.save = { format, features };
  }
  if ((selection.flags & LOAD) !== 0) choice.load = format;
}

/** The format to load a blob with. @throws RequestError EINVAL with every reason why there is none */
export function formatFor(
  model: DeviceModel,
  { formats }: StateOffer,
  choice: FormatChoice,
  header: EnvelopeHeader,
): StateFormat {
  const reasons = modelDifferences({ uri: header.model, parameters: header.parameters }, model);
  const format = findFormat(formats, header.format, header.version.major);
  if (format === undefined) reasons.push(`format ${header.format} is not known here`);
  else if (format.version.major !== header.version.major) {
    reasons.push(
      `${format.name} version ${header.version.major} is not known here (${format.version.major} is)`,
    );
  } else if (choice.load !== undefined && choice.load !== format) {
    reasons.push(`the state is ${format.name}, but ${choice.load.name} was selected`);
  }
  if (format === undefined || reasons.length > 0) throw new RequestError(Errno.EINVAL, reasons.join('; '));
  return format;
}

/** A device may have several major versions of one format. @returns another version if it does not have this one */
function findFormat(formats: readonly StateFormat[], uuid: Uuid, major: number): StateFormat | undefined {
  const versions = formats.filter((format) => format.uuid === uuid);
  return versions.find(({ version }) => version.major === major) ?? versions[0];
}

/** @throws RequestError ENOTSUP for a feature that is not available */
function requireFeatures(bits: number): string[] {
  const names = formatFeatureNames(bits).filter((name) => COMPRESSIONS.includes(name));
  if (formatFeatureBits(names) !== bits) {
    throw new RequestError(Errno.ENOTSUP, `envelope features 0x${bits.toString(16)} are not offered here`);
  }
  return names;
}
