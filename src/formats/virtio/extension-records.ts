// SPDX-License-Identifier: Apache-2.0
/**
 * Payloads of the records that hold what device parts lack, little endian. `formats/virtio-device-parts.md` is the norm.
 * Decoding refuses whatever encoding would not have written, with DEVSTATE_E_STATE_RECORD.
 */
import { DevstateError } from '../../errors.js';
import type { PciFunctionState } from '../pci/state.js';
import { NET_RECEIVE_MODES, type VirtioNetControl, type VirtioRing, type VirtioState } from './state.js';

const U16_MAX = 0xffff;
const DEVICE_HEADER_LENGTH = 8;
const CONFIG_LENGTH_MAX = 65536;
const RING_LENGTH = 8;
const RINGS_MAX = 65536;
const PCI_HEADER_LENGTH = 16;
const PCI_CONFIG_LENGTHS = [256, 4096];
const MSIX_ENTRY_LENGTH = 16;
const MSIX_VECTORS_MAX = 2048;
const NET_HEADER_LENGTH = 24;
const MAC_LENGTH = 6;
const VLAN_MAX = 4095;
const RSS_LENGTH_MAX = 1 << 20;

type Device = Pick<VirtioState, 'deviceType' | 'queues' | 'config'>;

/** Type and queues of the device, and its configuration space. */
export function encodeDevice({ deviceType, queues, config }: Device): Uint8Array {
  if (config.length > CONFIG_LENGTH_MAX) throw unfit(`a configuration space of ${config.length} bytes`);
  const header = Buffer.alloc(DEVICE_HEADER_LENGTH);
  header.writeUInt16LE(checked('deviceType', deviceType), 0);
  header.writeUInt16LE(checked('queues', queues), 2);
  return plain(header, config);
}

export function decodeDevice(payload: Uint8Array): Device {
  const bytes = bufferOf(payload, 'device', DEVICE_HEADER_LENGTH);
  checkReserved('device', bytes.subarray(4, DEVICE_HEADER_LENGTH));
  const config = new Uint8Array(bytes.subarray(DEVICE_HEADER_LENGTH));
  if (config.length > CONFIG_LENGTH_MAX) throw malformed('device', `${config.length} bytes of configuration`);
  return { deviceType: bytes.readUInt16LE(0), queues: bytes.readUInt16LE(2), config };
}

/** 8 bytes for each ring. */
export function encodeRings(rings: readonly VirtioRing[]): Uint8Array {
  const bytes = Buffer.alloc(rings.length * RING_LENGTH);
  for (const [index, { queue, available, used }] of rings.entries()) {
    const at = index * RING_LENGTH;
    bytes.writeUInt16LE(checked('queue', queue), at);
    bytes.writeUInt16LE(checked('available', available), at + 2);
    bytes.writeUInt16LE(checked('used', used), at + 4);
  }
  return plain(bytes);
}

export function decodeRings(payload: Uint8Array): VirtioRing[] {
  const bytes = bufferOf(payload, 'rings', 0);
  if (bytes.length % RING_LENGTH !== 0 || bytes.length > RINGS_MAX * RING_LENGTH) {
    throw malformed('rings', `${bytes.length} bytes of up to ${RINGS_MAX} rings of 8`);
  }
  return Array.from({ length: bytes.length / RING_LENGTH }, (_, index) => {
    const at = index * RING_LENGTH;
    checkReserved('rings', bytes.subarray(at + 6, at + RING_LENGTH));
    return {
      queue: bytes.readUInt16LE(at),
      available: bytes.readUInt16LE(at + 2),
      used: bytes.readUInt16LE(at + 4),
    };
  });
}

/** Lengths, then configuration space, MSI-X table and pending bits. */
export function encodePci(pci: PciFunctionState): Uint8Array {
  const problem = pciProblem(pci);
  if (problem !== undefined) throw unfit(problem);
  const header = Buffer.alloc(PCI_HEADER_LENGTH);
  header.writeUInt32LE(pci.config.length, 0);
  header.writeUInt32LE(pci.msixTable.length, 4);
  header.writeUInt32LE(pci.msixPending.length, 8);
  return plain(header, pci.config, pci.msixTable, pci.msixPending);
}

export function decodePci(payload: Uint8Array): PciFunctionState {
  const bytes = bufferOf(payload, 'pci', PCI_HEADER_LENGTH);
  checkReserved('pci', bytes.subarray(12, PCI_HEADER_LENGTH));
  const lengths = [bytes.readUInt32LE(0), bytes.readUInt32LE(4), bytes.readUInt32LE(8)];
  const [config, msixTable, msixPending] = partsOf('pci', bytes.subarray(PCI_HEADER_LENGTH), lengths) as [
    Uint8Array,
    Uint8Array,
    Uint8Array,
  ];
  const pci = { config, msixTable, msixPending };
  const problem = pciProblem(pci);
  if (problem !== undefined) throw malformed('pci', problem);
  return pci;
}

function pciProblem({ config, msixTable, msixPending }: PciFunctionState): string | undefined {
  if (!PCI_CONFIG_LENGTHS.includes(config.length)) return `a configuration space of ${config.length} bytes`;
  const vectors = msixTable.length / MSIX_ENTRY_LENGTH;
  if (!Number.isInteger(vectors) || vectors > MSIX_VECTORS_MAX) {
    return `an MSI-X table of ${msixTable.length} bytes`;
  }
  const pending = 8 * Math.ceil(vectors / 64);
  if (msixPending.length !== pending) {
    return `${msixPending.length} bytes of pending bits, not ${pending}, for ${vectors} vectors`;
  }
  return undefined;
}

/** Modes, counts, offloads; then the tables. */
export function encodeNetControl(net: VirtioNetControl): Uint8Array {
  const { receiveModes, queuePairs, unicast, multicast, vlans, guestOffloads, rss } = net;
  const header = Buffer.alloc(NET_HEADER_LENGTH);
  const modes = receiveModes.reduce((bits, mode) => bits | (1 << NET_RECEIVE_MODES.indexOf(mode)), 0);
  header.writeUInt16LE(modes, 0);
  header.writeUInt16LE(checked('queuePairs', queuePairs), 2);
  header.writeUInt16LE(checked('unicast.length', unicast.length), 4);
  header.writeUInt16LE(checked('multicast.length', multicast.length), 6);
  header.writeUInt16LE(checked('vlans.length', vlans.length), 8);
  header.writeUInt32LE(checked('rss.length', rss.length, RSS_LENGTH_MAX), 12);
  if (guestOffloads < 0n || guestOffloads >= 2n ** 64n) throw unfit('guestOffloads of more than 64 bits');
  header.writeBigUInt64LE(guestOffloads, 16);
  for (const mac of [...unicast, ...multicast]) {
    if (mac.length !== MAC_LENGTH) throw unfit(`a MAC address of ${mac.length} bytes`);
  }
  const filter = Buffer.alloc(2 * vlans.length);
  for (const [index, vlan] of vlans.entries()) {
    filter.writeUInt16LE(checked('a VLAN', vlan, VLAN_MAX), 2 * index);
  }
  return plain(header, ...unicast, ...multicast, filter, rss);
}

export function decodeNetControl(payload: Uint8Array): VirtioNetControl {
  const bytes = bufferOf(payload, 'netControl', NET_HEADER_LENGTH);
  const modes = bytes.readUInt16LE(0);
  if (modes >= 1 << NET_RECEIVE_MODES.length) throw malformed('netControl', 'reserved receive modes are set');
  checkReserved('netControl', bytes.subarray(10, 12));
  const [unicast, multicast] = [bytes.readUInt16LE(4), bytes.readUInt16LE(6)];
  const lengths = [
    MAC_LENGTH * unicast,
    MAC_LENGTH * multicast,
    2 * bytes.readUInt16LE(8),
    bytes.readUInt32LE(12),
  ];
  const tables = partsOf('netControl', bytes.subarray(NET_HEADER_LENGTH), lengths);
  const vlans = Array.from({ length: lengths[2]! / 2 }, (_, index) => {
    const at = NET_HEADER_LENGTH + lengths[0]! + lengths[1]! + 2 * index;
    return bytes.readUInt16LE(at);
  });
  if (vlans.some((vlan) => vlan > VLAN_MAX)) throw malformed('netControl', 'a VLAN above 4095');
  if (lengths[3]! > RSS_LENGTH_MAX) throw malformed('netControl', `${lengths[3]} bytes of RSS configuration`);
  return {
    receiveModes: NET_RECEIVE_MODES.filter((_, bit) => (modes & (1 << bit)) !== 0),
    queuePairs: bytes.readUInt16LE(2),
    unicast: macsOf(tables[0]!),
    multicast: macsOf(tables[1]!),
    vlans,
    guestOffloads: bytes.readBigUInt64LE(16),
    rss: tables[3]!,
  };
}

function macsOf(table: Uint8Array): Uint8Array[] {
  return Array.from({ length: table.length / MAC_LENGTH }, (_, index) =>
    table.slice(index * MAC_LENGTH, (index + 1) * MAC_LENGTH),
  );
}

/** Copies of parts that have to make up `bytes`. */
function partsOf(record: string, bytes: Uint8Array, lengths: readonly number[]): Uint8Array[] {
  const length = lengths.reduce((sum, part) => sum + part, 0);
  if (bytes.length !== length) throw malformed(record, `${bytes.length} bytes, its lengths say ${length}`);
  let at = 0;
  return lengths.map((part) => {
    at += part;
    return new Uint8Array(bytes.subarray(at - part, at));
  });
}

function plain(...pieces: Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(pieces));
}

function bufferOf(payload: Uint8Array, record: string, minimum: number): Buffer {
  if (payload.length < minimum) throw malformed(record, `${payload.length} bytes, of ${minimum} or more`);
  return Buffer.from(payload.buffer, payload.byteOffset, payload.length);
}

function checkReserved(record: string, bytes: Uint8Array): void {
  if (bytes.some((byte) => byte !== 0)) throw malformed(record, 'reserved bytes are not zero');
}

function checked(name: string, value: number, maximum = U16_MAX): number {
  if (Number.isInteger(value) && value >= 0 && value <= maximum) return value;
  throw unfit(`${name} is ${value}, not a whole number up to ${maximum}`);
}

function malformed(record: string, what: string): DevstateError {
  return new DevstateError('DEVSTATE_E_STATE_RECORD', `the record ${record} is not sound: ${what}`);
}

function unfit(what: string): DevstateError {
  return new DevstateError('DEVSTATE_E_STATE_VALUE', `no record can hold this virtio state: ${what}`);
}
