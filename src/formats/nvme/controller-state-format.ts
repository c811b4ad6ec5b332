// SPDX-License-Identifier: Apache-2.0
/**
 * Format `org.nvmexpress.controller-state` 1.0: the Controller State data structure of NVMe 2.1 in an envelope, its
 * vendor's part apart, with the UUID that says whose it is. `formats/nvme-controller-state.md` is the norm.
 */
import { DevstateError } from '../../errors.js';
import type { FormatRecord } from '../conversion/index.js';
import { RECORD_LENGTH_MAX } from '../envelope/layout.js';
import type { FieldMap, FieldValue } from '../fields.js';
import type { FormatDescription } from '../inspection/types.js';
import { NVME_CONTROLLER_STATE } from '../registry.js';
import { UUID_LENGTH, type Uuid, uuidFromBytes, uuidToBytes } from '../uuid.js';
import {
  CONTROLLER_STATE_HEADER_LENGTH,
  decodeControllerState,
  decodeControllerStateHeader,
  decodeIoQueues,
  encodeControllerState,
  type NvmeControllerState,
} from './controller-state.js';

export const CONTROLLER_STATE_FORMAT_VERSION = { major: 1, minor: 0 } as const;

/** What a blob holds. */
export interface TaggedControllerState {
  readonly state: NvmeControllerState;
  /** The UUID of the vendor specific part's format, from Supported Controller State Formats; null if it has none. */
  readonly vendorFormat: Uuid | null;
}

const ControllerStateRecord = {
  /** The structure up to its vendor specific part. */
  structure: 0x10000,
  /** The UUID of the format of the vendor specific part. */
  vendorFormat: 0x10001,
  /** The vendor specific part, in as many records as it takes. */
  vendor: 0x10002,
} as const;

const recordNames = new Map<number, string>(
  Object.entries(ControllerStateRecord).map(([name, type]) => [type, name]),
);

/** Queues of one kind that are shown, and bytes of what is opaque. */
const QUEUES_SHOWN = 256;
const FIRST_BYTES = 16;

/** @throws DevstateError DEVSTATE_E_STATE_VALUE as `encodeControllerState` */
export function encodeControllerStateRecords({ state, vendorFormat }: TaggedControllerState): FormatRecord[] {
  const bytes = encodeControllerState(state);
  const vendorStart = bytes.length - state.vendor.length;
  const records = [record(ControllerStateRecord.structure, bytes.subarray(0, vendorStart))];
  if (vendorFormat !== null) {
    records.push(record(ControllerStateRecord.vendorFormat, uuidToBytes(vendorFormat)));
  }
  for (let at = vendorStart; at < bytes.length; at += RECORD_LENGTH_MAX) {
    records.push(record(ControllerStateRecord.vendor, bytes.subarray(at, at + RECORD_LENGTH_MAX)));
  }
  return records;
}

/** Unknown records are skipped if they are optional. @throws DevstateError DEVSTATE_E_STATE_RECORD, _FORMAT_VERSION */
export function decodeControllerStateRecords(records: Iterable<FormatRecord>): TaggedControllerState {
  let structure: Uint8Array | undefined;
  let vendorFormat: Uuid | null = null;
  const vendor: Uint8Array[] = [];
  for (const { type, optional, payload } of records) {
    if (type === ControllerStateRecord.vendor) vendor.push(payload);
    else if (type === ControllerStateRecord.structure) {
      if (structure !== undefined) throw wrong('the record structure came twice');
      structure = payload;
    } else if (type === ControllerStateRecord.vendorFormat) {
      if (vendorFormat !== null) throw wrong('the record vendorFormat came twice');
      vendorFormat = uuidOf(payload);
    } else if (!optional) throw wrong(`record type 0x${type.toString(16)} is not known, and not optional`);
  }
  if (structure === undefined) throw wrong('no record structure');
  return { state: decodeControllerState(Buffer.concat([structure, ...vendor])), vendorFormat };
}

export const controllerStateDescription: FormatDescription = {
  uuid: NVME_CONTROLLER_STATE.uuid,
  recordName: (type) => recordNames.get(type),
  describe(type, payload) {
    switch (type) {
      case ControllerStateRecord.structure:
        return structureFields(payload);
      case ControllerStateRecord.vendorFormat:
        return { uuid: uuidOf(payload) };
      case ControllerStateRecord.vendor: {
        const first = Buffer.from(payload.subarray(0, FIRST_BYTES)).toString('hex');
        return { length: payload.length, first };
      }
      default:
        return undefined;
    }
  },
};

function structureFields(payload: Uint8Array): FieldMap {
  const { version, suspended, nvmeLength, vendorLength } = decodeControllerStateHeader(payload);
  const fields = { version, suspended, vendorLength };
  if (nvmeLength === 0) return fields;
  const { submissionQueues, completionQueues, ...rest } = decodeIoQueues(
    payload.subarray(CONTROLLER_STATE_HEADER_LENGTH),
  );
  return {
    ...fields,
    nvmeVersion: rest.version,
    submissionQueues: shown(submissionQueues),
    completionQueues: shown(completionQueues),
  };
}

function shown(queues: readonly object[]): FieldValue[] {
  const list = queues.slice(0, QUEUES_SHOWN).map((queue): FieldValue => ({ ...queue }) as FieldMap);
  return list.length === queues.length ? list : [...list, `… ${queues.length - list.length} more`];
}

function record(type: number, payload: Uint8Array): FormatRecord {
  return { type, optional: false, payload };
}

function uuidOf(payload: Uint8Array): Uuid {
  if (payload.length !== UUID_LENGTH) throw wrong(`a UUID of ${payload.length} bytes`);
  return uuidFromBytes(payload);
}

function wrong(what: string): DevstateError {
  return new DevstateError(
    'DEVSTATE_E_STATE_RECORD',
    `the state of ${NVME_CONTROLLER_STATE.name} is not whole: ${what}`,
  );
}
