// SPDX-License-Identifier: Apache-2.0
/** Format `org.devstate.pci.function` 1.0: a `PciFunctionState` as a record. `formats/pci-function.md` is the norm. */

import { DevstateError } from '../../errors.js';
import type { FormatRecord } from '../conversion/index.js';
import type { FormatDescription } from '../inspection/types.js';
import { Schema } from '../protobuf/schema.js';
import { PCI_FUNCTION } from '../registry.js';
import type { PciFunctionState } from './state.js';
import { pciFunctionDefect } from './validate.js';

const FUNCTION_RECORD = 0x10000;
const codec = new Schema('pci-function.proto').message('PciFunction');

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
  const defect = pciFunctionDefect(state);
  if (defect !== undefined) throw wrong(defect);
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
