// SPDX-License-Identifier: Apache-2.0
/** Which formats a device offers over the wire, and the ones a connection has chosen among them. */

import {
  type EnvelopeHeader,
  formatVersionText,
  modelDifferences,
  uuidFromBytes,
  uuidToBytes,
} from '../formats/index.js';
import type { StateFormat } from '../migration/index.js';
import {
  Errno,
  FormatFlag,
  type FormatSelection,
  formatFeatureBits,
  formatFeatureNames,
  RequestError,
  type WireFormatOffer,
} from '../wire/index.js';
import type { Device } from './device.js';

const availableCompressions = (): string[] => [];

/** What one connection has chosen; the device's first format, without features, unless it has. */
export interface FormatChoice {
  save?: { readonly format: StateFormat; readonly features: readonly string[] };
  load?: StateFormat;
}

/** In the device's order of preference. */
export function formatOffers(device: Device): WireFormatOffer[] {
  const features = formatFeatureBits(availableCompressions());
  return device.formats.map((format) => ({
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
export function chooseFormat(device: Device, choice: FormatChoice, selection: FormatSelection): void {
  const { SAVE, LOAD } = FormatFlag;
  if ((selection.flags & (SAVE | LOAD)) === 0 || (selection.flags & ~(SAVE | LOAD)) !== 0) {
    throw new RequestError(Errno.EINVAL, 'a format is selected to save, to load, or both');
  }
  const uuid = uuidFromBytes(selection.uuid);
  const format = device.formats.find((offered) => offered.uuid === uuid);
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
export function formatFor(device: Device, choice: FormatChoice, header: EnvelopeHeader): StateFormat {
  const reasons = modelDifferences({ uri: header.model, parameters: header.parameters }, device.model);
  const format = device.formats.find(({ uuid }) => uuid === header.format);
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

/** @throws RequestError ENOTSUP for a feature that is not available */
function requireFeatures(bits: number): string[] {
  const available = availableCompressions();
  const names = formatFeatureNames(bits).filter((name) => available.includes(name));
  if (formatFeatureBits(names) !== bits) {
    throw new RequestError(Errno.ENOTSUP, `envelope features 0x${bits.toString(16)} are not offered here`);
  }
  return names;
}
