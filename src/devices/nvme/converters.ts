// SPDX-License-Identifier: Apache-2.0
/**
 * Between the vendors' own formats and the standard one: every state by way of its vendor-neutral value, nothing is lost.
 * And from the standard one to that of NVMe 2.1, where much is.
 */

import { asDevstateError, DevstateError } from '../../errors.js';
import {
  type Converter,
  decodeNvmeState,
  type EnvelopeHeader,
  encodeNvmeState,
  type FormatRecord,
  NVME_ALDER,
  NVME_BIRCH,
  NVME_STANDARD,
  NVME_STANDARD_VERSION,
  type NvmeState,
  NvmeStateDecoder,
  type RegisteredFormat,
} from '../../formats/index.js';
import {
  AlderRecord,
  AlderRecords,
  alderToStandard,
  encodeAlderState,
  standardToAlder,
} from './alder/index.js';
import { BirchRecord, birchToStandard, standardToBirch } from './birch/index.js';
import { type NvmeParameters, resolveNvmeParameters } from './spec/index.js';
import { standardToControllerState } from './standard/to-controller-state.js';
import { standardToPciFunction } from './standard/to-pci-function.js';

/** The version that both vendors write of their formats. */
const VENDOR_VERSION = { major: 1, minor: 0 } as const;

interface PlainRecord {
  readonly type: number;
  readonly optional?: boolean;
  readonly payload: Uint8Array;
}

/** One end of a conversion. */
interface NvmeFormat {
  readonly format: RegisteredFormat;
  readonly version: { readonly major: number; readonly minor: number };
  /** Whether it has records of this type. */
  knows(type: number): boolean;
  decode(records: readonly FormatRecord[], header: EnvelopeHeader): NvmeState;
  encode(state: NvmeState, header: EnvelopeHeader): Iterable<PlainRecord>;
  /** The payload as it would be written of what is understood of it. Default: all is understood, or refused. */
  canonical?(record: PlainRecord): Uint8Array;
}

const standard: NvmeFormat = {
  format: NVME_STANDARD,
  version: NVME_STANDARD_VERSION,
  knows: (type) => NvmeStateDecoder.knows(type),
  decode: decodeNvmeState,
  encode: encodeNvmeState,
  canonical: (record) => NvmeStateDecoder.canonical(record),
};

const alder: NvmeFormat = {
  format: NVME_ALDER,
  version: VENDOR_VERSION,
  knows: (type) => (Object.values(AlderRecord) as number[]).includes(type),
  decode: (records, header) => {
    const parameters = parametersOf(header);
    const collected = new AlderRecords();
    for (const record of records) collected.add(record);
    const pending = new Uint8Array(8 * Math.ceil(parameters.msix_vectors / 64));
    return alderToStandard(collected.finish(parameters), parameters, pending);
  },
  encode: (standardState, header) => {
    const parameters = parametersOf(header);
    const { state, problem } = standardToAlder(standardState, parameters);
    if (problem !== undefined) throw new DevstateError('DEVSTATE_E_CONVERSION', problem);
    return encodeAlderState(state, parameters);
  },
};

const birch: NvmeFormat = {
  format: NVME_BIRCH,
  version: VENDOR_VERSION,
  knows: (type) => (Object.values(BirchRecord) as number[]).includes(type),
  decode: birchToStandard,
  encode: standardToBirch,
};

export const nvmeConverters: readonly Converter[] = [
  converter(alder, standard),
  converter(standard, alder),
  converter(birch, standard),
  converter(standard, birch),
  standardToControllerState,
  standardToPciFunction,
];

function converter(from: NvmeFormat, to: NvmeFormat): Converter {
  return {
    from: { uuid: from.format.uuid, name: from.format.name, major: from.version.major },
    to: { uuid: to.format.uuid, name: to.format.name, version: to.version },
    losses: [],
    begin: (header) => {
      const records: FormatRecord[] = [];
      const originals = new Map<number, Uint8Array>();
      return {
        record: (record) => {
          if (!from.knows(record.type)) return undefined;
          records.push({ ...record, payload: new Uint8Array(record.payload) });
          return [];
        },
        isPartial: (record) =>
          from.canonical !== undefined &&
          !isSame(
            converted(from, to, () => from.canonical?.(record)),
            record.payload,
          ),
        original: ({ type, payload }) => {
          originals.set(type, new Uint8Array(payload));
        },
        end: () =>
          converted(from, to, () =>
            [...to.encode(from.decode(records, header), header)].map(
              ({ optional = false, type, payload }) => {
                const original = originals.get(type);
                const stands =
                  original !== undefined && isSame(to.canonical?.({ type, payload: original }), payload);
                return { type, optional, payload: stands ? original : payload };
              },
            ),
          ),
      };
    },
  };
}

function isSame(a: Uint8Array | undefined, b: Uint8Array): boolean {
  return a !== undefined && Buffer.compare(a, b) === 0;
}

/** What keeps a state from being converted is said with the two formats. */
function converted<T>(from: NvmeFormat, to: NvmeFormat, work: () => T): T {
  try {
    return work();
  } catch (cause) {
    const { message } = asDevstateError(cause);
    const what = `a state of ${from.format.name} cannot become one of ${to.format.name}: ${message}`;
    throw new DevstateError('DEVSTATE_E_CONVERSION', what, { cause });
  }
}

/** The parameters of the device that a blob is of. */
function parametersOf({ parameters }: EnvelopeHeader): NvmeParameters {
  return resolveNvmeParameters(parameters, Number(parameters.namespace_size ?? 0));
}
