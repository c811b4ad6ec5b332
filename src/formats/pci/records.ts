// SPDX-License-Identifier: Apache-2.0
/** Format `org.devstate.pci.function` 1.0: a `PciFunctionState` as a record. `formats/pci-function.md` is the norm. */

import { DevstateError } from '../../errors.js';
import type { FormatRecord } from '../conversion/index.js';
import type { FormatDescription } from '../inspection/types.js';
import { Schema } from '../protobuf/schema.js';
import { PCI_FUNCTION } from '../registry.js';
import type { PciFunctionState } from './state.js';

const FUNCTION_RECORD = 0x10000;
const codec = new Schema('pci-function.proto').message('PciFunction');

const CONFIG_LENGTHS: readonly number[] = [256, 4096];
const VECTOR_LENGTH = 16;
const VECTORS_MAX = 2048;

export const PCI_FUNCTION_VERSION = { major: 1, minor: 0 } as const;

export function encodePciFunction(state: PciFunctionState): FormatRecord[] {
  return [{ type: FUNCTION_RECORD, optional: false, payload: codec.encode(state) }];
}

/** Unknown records are skipped if they are optional. @throws DevstateError DEVSTATE_E_STATE_RECORD */
export function decodePciFunction(records: Iterable<FormatRecord>): PciFunctionState {
  let found: PciFunctionState | undefined;
  for (const { type, optional, payload } of records) {
    if (type === FUNCTION_RECORD) {
      if (found !== undefined) throw wrong('the record function came twice');
      found = checkPciFunction(codec.decode(payload) as unknown as PciFunctionState);
    } else if (!optional) throw wrong(`record type 0x${type.toString(16)} is not known, and not optional`);
  }
  if (found === undefined) throw wrong('no record function');
  return found;
}

function checkPciFunction(state: PciFunctionState): PciFunctionState {
  const { config, msixTable, msixPending } = state;
  const vectors = msixTable.length / VECTOR_LENGTH;
  if (!CONFIG_LENGTHS.includes(config.length)) throw wrong(`configuration space of ${config.length} bytes`);
  if (!Number.isInteger(vectors) || vectors > VECTORS_MAX)
    throw wrong(`an MSI-X table of ${msixTable.length} bytes`);
  if (msixPending.length !== Math.ceil(vectors / 64) * 8) {
    throw wrong(`pending bits of ${msixPending.length} bytes for ${vectors} vectors`);
  }
  return state;
}

export const pciFunctionDescription: FormatDescription = {
  uuid: PCI_FUNCTION.uuid,
  recordName: (type) => (type === FUNCTION_RECORD ? 'function' : undefined),
  describe: (type, payload) => (type === FUNCTION_RECORD ? codec.describe(payload) : undefined),
};

function wrong(what: string): DevstateError {
  return new DevstateError(
    'DEVSTATE_E_STATE_RECORD',
    `the state of ${PCI_FUNCTION.name} is not sound: ${what}`,
  );
}
