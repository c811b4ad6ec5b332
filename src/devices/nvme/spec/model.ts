// SPDX-License-Identifier: Apache-2.0
/**
 * The device model `devstate.org/nvme`: what a guest can tell of the controller, as parameters. Implementations of any
 * vendor that are given equal parameters look the same to the guest.
 */

import type { DeviceModel, ParameterValue } from '../../../device/device.js';
import { DevstateError } from '../../../errors.js';

export const NVME_MODEL_URI = 'devstate.org/nvme';

/** Parameters under the names that the model publishes, resolved: every one has a value. */
export interface NvmeParameters {
  /** I/O queue pairs. */
  readonly queues: number;
  readonly msix_vectors: number;
  /** Entries a queue can have: CAP.MQES + 1. */
  readonly queue_entries: number;
  /** Largest transfer, as a power of two of 4 KiB pages. */
  readonly mdts: number;
  /** Bytes. */
  readonly lba_size: number;
  /** Bytes. */
  readonly namespace_size: number;
  readonly serial: string;
  readonly model_number: string;
  readonly firmware: string;
}

export type NvmeParameterName = keyof NvmeParameters;

/** One parameter, for validation and for people. */
export type ParameterDefinition = {
  readonly description: string;
} & (
  | {
      readonly type: 'integer';
      readonly minimum: number;
      readonly maximum: number;
      /** Only these, if given. */
      readonly allowed?: readonly number[];
      /** A number, or in words what it follows from. */
      readonly default: number | string;
    }
  | { readonly type: 'string'; readonly maximumLength: number; readonly default: string }
);

/** The model's parameters. */
export const nvmeParameterTable: Readonly<Record<NvmeParameterName, ParameterDefinition>> = {
  queues: {
    description: 'I/O queue pairs',
    type: 'integer',
    minimum: 1,
    maximum: 255,
    default: 4,
  },
  msix_vectors: {
    description: 'MSI-X vectors',
    type: 'integer',
    minimum: 1,
    maximum: 256,
    default: 'queues + 1',
  },
  queue_entries: {
    description: 'largest number of entries of a queue',
    type: 'integer',
    minimum: 2,
    maximum: 65536,
    default: 1024,
  },
  mdts: {
    description: 'largest transfer, 4 KiB shifted left by this',
    type: 'integer',
    minimum: 1,
    maximum: 10,
    default: 7,
  },
  lba_size: {
    description: 'bytes of a logical block',
    type: 'integer',
    minimum: 512,
    maximum: 4096,
    allowed: [512, 4096],
    default: 512,
  },
  namespace_size: {
    description: 'bytes of the namespace; that of the image',
    type: 'integer',
    minimum: 4096,
    maximum: Number.MAX_SAFE_INTEGER,
    default: 'size of the image',
  },
  serial: {
    description: 'serial number; two controllers of one guest must differ in it',
    type: 'string',
    maximumLength: 20,
    default: 'DEVSTATE0001',
  },
  model_number: { description: 'model number', type: 'string', maximumLength: 40, default: 'devstate NVMe' },
  firmware: { description: 'firmware revision', type: 'string', maximumLength: 8, default: '1.0' },
};

/**
 * Resolves what a user or a peer gave (numbers, or their text) to a full set of parameters.
 * @param imageSize bytes of the image, which the namespace must have
 * @throws DevstateError DEVSTATE_E_MODEL_PARAMETER
 */
export function resolveNvmeParameters(
  given: Readonly<Record<string, ParameterValue>>,
  imageSize: number,
): NvmeParameters {
  for (const name of Object.keys(given)) {
    if (!Object.hasOwn(nvmeParameterTable, name)) {
      const known = Object.keys(nvmeParameterTable).join(', ');
      throw wrong(`there is no parameter ${JSON.stringify(name)}: choose among ${known}`);
    }
  }
  const queues = integer('queues', given.queues, 0);
  return {
    queues,
    msix_vectors: integer('msix_vectors', given.msix_vectors, queues + 1),
    queue_entries: integer('queue_entries', given.queue_entries, 0),
    mdts: integer('mdts', given.mdts, 0),
    lba_size: integer('lba_size', given.lba_size, 0),
    namespace_size: integer('namespace_size', given.namespace_size, imageSize),
    serial: text('serial', given.serial),
    model_number: text('model_number', given.model_number),
    firmware: text('firmware', given.firmware),
  };
}

/** The model as the SDK and the migration check see it. */
export function nvmeModel(parameters: NvmeParameters): DeviceModel {
  return { uri: NVME_MODEL_URI, parameters: { ...parameters } };
}

function integer(name: NvmeParameterName, given: ParameterValue | undefined, derived: number): number {
  const definition = nvmeParameterTable[name];
  if (definition.type !== 'integer') throw new TypeError(`${name} is not an integer parameter`);
  if (given === undefined) return typeof definition.default === 'number' ? definition.default : derived;
  const decimal = typeof given === 'string' && /^\d{1,16}$/.test(given);
  const value = decimal ? Number(given) : given;
  const { minimum, maximum, allowed } = definition;
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < minimum || value > maximum) {
    throw wrong(`${name}=${given} is not an integer from ${minimum} to ${maximum}`);
  }
  if (allowed !== undefined && !allowed.includes(value)) {
    throw wrong(`${name}=${given} is not one of ${allowed.join(', ')}`);
  }
  return value;
}

function text(name: NvmeParameterName, given: ParameterValue | undefined): string {
  const definition = nvmeParameterTable[name];
  if (definition.type !== 'string') throw new TypeError(`${name} is not a text parameter`);
  const value = given === undefined ? definition.default : String(given);
  // Identify data pad with spaces, so spaces at the ends would be lost.
  if (!/^[!-~]([ -~]*[!-~])?$/.test(value) || value.length > definition.maximumLength) {
    throw wrong(
      `${name}=${JSON.stringify(value)} is not 1 to ${definition.maximumLength} printable ASCII characters without spaces at the ends`,
    );
  }
  return value;
}

function wrong(message: string): DevstateError {
  return new DevstateError('DEVSTATE_E_MODEL_PARAMETER', message);
}
