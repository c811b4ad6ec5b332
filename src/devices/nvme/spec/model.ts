// SPDX-License-Identifier: Apache-2.0
/**
 * The device model `devstate.org/nvme`: what a guest can tell of the controller, as parameters. Implementations of any
 * vendor that are given equal parameters look the same to the guest.
 */

import { DevstateError } from '../../../errors.js';
import {
  allows,
  type DeviceModel,
  type ParameterDefinition,
  type ParameterValue,
} from '../../../formats/index.js';

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

/** A parameter of the model before its value is resolved. */
type NvmeParameterDefinition = Omit<ParameterDefinition, 'initial'> & {
  /** Absent: it follows from other parameters, or from the image. */
  readonly initial?: ParameterValue;
};

/** The model's parameters. None can be off: all of them are there since the model is. */
const nvmeParameterTable: Readonly<Record<NvmeParameterName, NvmeParameterDefinition>> = {
  queues: {
    type: 'int',
    description: 'I/O queue pairs',
    initial: 4,
    allowed: [{ minimum: 1, maximum: 255 }],
  },
  msix_vectors: {
    type: 'int',
    description: 'MSI-X vectors; queues + 1 unless given',
    allowed: [{ minimum: 1, maximum: 256 }],
  },
  queue_entries: {
    type: 'int',
    description: 'largest number of entries of a queue',
    initial: 1024,
    allowed: [{ minimum: 2, maximum: 65536 }],
  },
  mdts: {
    type: 'int',
    description: 'largest transfer, 4 KiB shifted left by this',
    initial: 7,
    allowed: [{ minimum: 1, maximum: 10 }],
  },
  lba_size: { type: 'int', description: 'bytes of a logical block', initial: 512, allowed: [512, 4096] },
  namespace_size: {
    type: 'int',
    description: 'bytes of the namespace; that of the image',
    allowed: [{ minimum: 4096, maximum: Number.MAX_SAFE_INTEGER }],
  },
  serial: {
    type: 'str',
    description: 'serial number; two controllers of one guest must differ in it',
    initial: 'DEVSTATE0001',
    maximumLength: 20,
  },
  model_number: {
    type: 'str',
    description: 'model number',
    initial: 'devstate NVMe',
    maximumLength: 40,
  },
  firmware: { type: 'str', description: 'firmware revision', initial: '1.0', maximumLength: 8 },
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
  const definitions = Object.entries(nvmeParameterTable).map(([name, { initial, ...definition }]) => [
    name,
    { ...definition, initial: initial ?? parameters[name as NvmeParameterName] },
  ]);
  return { uri: NVME_MODEL_URI, parameters: { ...parameters }, definitions: Object.fromEntries(definitions) };
}

function integer(name: NvmeParameterName, given: ParameterValue | undefined, derived: number): number {
  const definition = nvmeParameterTable[name];
  if (given === undefined) return typeof definition.initial === 'number' ? definition.initial : derived;
  const decimal = typeof given === 'string' && /^\d{1,16}$/.test(given);
  const value = decimal ? Number(given) : given;
  if (!allows({ ...definition, initial: derived }, value)) {
    throw wrong(`${name}=${given} is not ${allowedText(definition)}`);
  }
  return value as number;
}

function text(name: NvmeParameterName, given: ParameterValue | undefined): string {
  const { initial, maximumLength = 0 } = nvmeParameterTable[name];
  const value = String(given ?? initial);
  // Identify data pad with spaces, so spaces at the ends would be lost.
  if (!/^[!-~]([ -~]*[!-~])?$/.test(value) || value.length > maximumLength) {
    throw wrong(
      `${name}=${JSON.stringify(value)} is not 1 to ${maximumLength} printable ASCII characters without spaces at the ends`,
    );
  }
  return value;
}

function allowedText({ allowed = [] }: NvmeParameterDefinition): string {
  const [first] = allowed;
  if (typeof first === 'object') return `an integer from ${first.minimum} to ${first.maximum}`;
  return `one of ${allowed.join(', ')}`;
}

function wrong(message: string): DevstateError {
  return new DevstateError('DEVSTATE_E_MODEL_PARAMETER', message);
}
