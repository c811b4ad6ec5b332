// SPDX-License-Identifier: Apache-2.0
/** Format `org.oasis-open.virtio.device-parts` 1.0: a `VirtioState` as records. */
import { DevstateError } from '../../errors.js';
import type { FormatRecord } from '../conversion/index.js';
import type { FieldMap, FieldValue } from '../fields.js';
import type { FormatDescription } from '../inspection/types.js';
import { VIRTIO_DEVICE_PARTS } from '../registry.js';
import { deviceConfigFields, macText } from './device-config.js';
import {
  DEVICE_PARTS_MAX,
  decodeDeviceParts,
  encodeDeviceParts,
  type VirtioDevicePart,
} from './device-parts.js';
import {
  decodeDevice,
  decodeNetControl,
  decodePci,
  decodeRings,
  encodeDevice,
  encodeNetControl,
  encodePci,
  encodeRings,
} from './extension-records.js';
import { devicePartFields } from './part-fields.js';
import { type VirtioState, virtioStateProblems } from './state.js';

export const VIRTIO_FORMAT_VERSION = { major: 1, minor: 0 } as const;

const VirtioRecord = {
  device: 0x10000,
  parts: 0x10001,
  rings: 0x10002,
  pci: 0x10003,
  netControl: 0x10004,
} as const;

const recordNames = new Map<number, string>(Object.entries(VirtioRecord).map(([name, type]) => [type, name]));

/** Parts, rings and addresses shown of a record that has many. */
const ITEMS_SHOWN = 256;
const FIRST_BYTES = 16;

/** @throws DevstateError DEVSTATE_E_STATE_VALUE that names what cannot be */
export function encodeVirtioState(state: VirtioState): FormatRecord[] {
  const problems = virtioStateProblems(state);
  if (problems.length > 0) {
    throw new DevstateError('DEVSTATE_E_STATE_VALUE', `no such virtio state: ${problems.join('; ')}`);
  }
  const { pci, net } = state;
  return [
    record(VirtioRecord.device, encodeDevice(state)),
    record(VirtioRecord.parts, encodeDeviceParts(state.parts)),
    record(VirtioRecord.rings, encodeRings(state.rings)),
    ...(pci === null ? [] : [record(VirtioRecord.pci, encodePci(pci))]),
    ...(net === null ? [] : [record(VirtioRecord.netControl, encodeNetControl(net))]),
  ];
}

/**
 * The state that records are of; unknown ones are skipped if they are optional.
 * @throws DevstateError DEVSTATE_E_STATE_RECORD that names what is missing, twice, or cannot be
 */
export function decodeVirtioState(records: Iterable<FormatRecord>): VirtioState {
  const single = new Map<number, Uint8Array>();
  const parts: VirtioDevicePart[] = [];
  for (const { type, optional, payload } of records) {
    const name = recordNames.get(type);
    if (name === undefined) {
      if (optional) continue;
      throw wrong(`record type 0x${type.toString(16)} is not known, and not optional`);
    }
    if (type === VirtioRecord.parts) {
      for (const part of decodeDeviceParts(payload)) parts.push(part);
      if (parts.length > DEVICE_PARTS_MAX) throw wrong(`more than ${DEVICE_PARTS_MAX} parts`);
    } else if (single.has(type)) throw wrong(`the record ${name} came twice`);
    else single.set(type, payload);
  }
  const device = single.get(VirtioRecord.device);
  const rings = single.get(VirtioRecord.rings);
  if (device === undefined || rings === undefined) {
    throw wrong(`no record ${device === undefined ? 'device' : 'rings'}`);
  }
  const pci = single.get(VirtioRecord.pci);
  const net = single.get(VirtioRecord.netControl);
  const state: VirtioState = {
    ...decodeDevice(device),
    parts,
    rings: decodeRings(rings),
    pci: pci === undefined ? null : decodePci(pci),
    net: net === undefined ? null : decodeNetControl(net),
  };
  const problems = virtioStateProblems(state);
  if (problems.length > 0) throw wrong(problems.join('; '));
  return state;
}

export const virtioDescription: FormatDescription = {
  uuid: VIRTIO_DEVICE_PARTS.uuid,
  recordName: (type) => recordNames.get(type),
  describe(type, payload) {
    switch (type) {
      case VirtioRecord.device: {
        const { deviceType, queues, config } = decodeDevice(payload);
        return { deviceType, queues, config: deviceConfigFields(deviceType, config) };
      }
      case VirtioRecord.parts: {
        const parts = decodeDeviceParts(payload);
        return { parts: shown(parts, (part) => ({ part: part.part, ...devicePartFields(part) })) };
      }
      case VirtioRecord.rings:
        return { rings: shown(decodeRings(payload), (ring) => ({ ...ring })) };
      case VirtioRecord.pci: {
        const { config, msixTable, msixPending } = decodePci(payload);
        return { config: hex(config), msixTable: hex(msixTable), msixPending: hex(msixPending) };
      }
      case VirtioRecord.netControl:
        return netFields(payload);
      default:
        return undefined;
    }
  },
};

function netFields(payload: Uint8Array): FieldMap {
  const { receiveModes, queuePairs, unicast, multicast, vlans, guestOffloads, rss } =
    decodeNetControl(payload);
  return {
    receiveModes: [...receiveModes],
    queuePairs,
    unicast: shown(unicast, macText),
    multicast: shown(multicast, macText),
    vlans: shown(vlans, (vlan) => vlan),
    guestOffloads: `0x${guestOffloads.toString(16)}`,
    rss: { length: rss.length, first: hex(rss.subarray(0, FIRST_BYTES)) },
  };
}

function shown<T>(items: readonly T[], fieldOf: (item: T) => FieldValue): FieldValue[] {
  const list = items.slice(0, ITEMS_SHOWN).map(fieldOf);
  return list.length === items.length ? list : [...list, `… ${items.length - list.length} more`];
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('hex');
}

function record(type: number, payload: Uint8Array): FormatRecord {
  return { type, optional: false, payload };
}

function wrong(what: string): DevstateError {
  return new DevstateError(
    'DEVSTATE_E_STATE_RECORD',
    `the state of ${VIRTIO_DEVICE_PARTS.name} is not whole: ${what}`,
  );
}
