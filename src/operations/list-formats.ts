// SPDX-License-Identifier: Apache-2.0
/** The formats that are registered, and what can be done with each here. */

import { converters, formatDescriptions, valueAdapters } from '../devices/catalogue.js';
import {
  type Converter,
  FOREIGN_KINDS,
  formatVersionText,
  REGISTERED_FORMATS,
  type RegisteredFormat,
  requireFormat,
} from '../formats/index.js';

/** A format at the other end of a converter. */
export interface ConvertibleFormat {
  /** Name, and the version that is read (major) or written (major.minor). */
  readonly format: string;
  /** What does not come through, a phrase each. */
  readonly losses: readonly string[];
}

export interface KnownFormat extends RegisteredFormat {
  /** `inspect` shows the fields of its records. */
  readonly described: boolean;
  /** A device can give and take it value by value. */
  readonly values: boolean;
  readonly convertsTo: readonly ConvertibleFormat[];
  readonly convertsFrom: readonly ConvertibleFormat[];
}

/** Content that is not ours and that `inspect` recognises. */
export interface KnownContent {
  readonly kind: string;
  readonly title: string;
}

/** @param wanted a name or UUID; undefined for all @throws DEVSTATE_E_FORMAT_UNKNOWN */
export function listFormats(wanted?: string): KnownFormat[] {
  return (wanted === undefined ? REGISTERED_FORMATS : [requireFormat(wanted)]).map((format) => ({
    ...format,
    described: formatDescriptions.some(({ uuid }) => uuid === format.uuid),
    values: valueAdapters.some((adapter) => adapter.uuid === format.uuid),
    convertsTo: converters.filter(({ from }) => from.uuid === format.uuid).map(writtenBy),
    convertsFrom: converters.filter(({ to }) => to.uuid === format.uuid).map(readBy),
  }));
}

export function listContentKinds(): KnownContent[] {
  return FOREIGN_KINDS.map(({ name, title }) => ({ kind: name, title }));
}

function writtenBy({ to, losses }: Converter): ConvertibleFormat {
  return { format: `${to.name} ${formatVersionText(to.version)}`, losses };
}

function readBy({ from, losses }: Converter): ConvertibleFormat {
  return { format: `${from.name} ${from.major}`, losses };
}
