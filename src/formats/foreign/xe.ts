// SPDX-License-Identifier: Apache-2.0
/**
 * State of a virtual function of an Intel GPU, from Linux's xe driver (drivers/gpu/drm/xe/xe_sriov_packet_types.h,
 * xe_sriov_packet.c): packets, little endian. The first describes the device, the last is empty.
 *
 *       0 │ version u8 │ type u8 │ tile u8 │ gt u8 │ flags u32 │ offset u64 │ size u64 │
 *      24 │ data, size bytes │
 */
import type { FieldMap } from '../fields.js';
import { fieldsOf, type Layout, listOf, u64At } from './layout.js';
import type { Pull } from './pushed-input.js';
import { damaged, unsupported } from './section-context.js';
import { type WalkContext, walkedKind } from './walk-reader.js';
import { peek, unknownBytes } from './walk-steps.js';

const VERSION = 1;
const HEADER_LENGTH = 24;
const PacketType = { DESCRIPTOR: 1, TRAILER: 2, GGTT: 3, MMIO: 4, GUC: 5, VRAM: 6 } as const;
const TYPE_NAMES: ReadonlyMap<number, string> = new Map(
  Object.entries(PacketType).map(([name, type]) => [type, name]),
);
const HEADER: Layout = [
  ['type', 'u8', 1],
  ['tile', 'u8', 2],
  ['gt', 'u8', 3],
  ['flags', 'u32', 4],
  ['resourceOffset', 'u64', 8],
  ['length', 'u64', 16],
];
/** A descriptor is a list of values: u32 with the length in dwords in its lower half and the key in the upper, value. */
const KEY_NAMES: ReadonlyMap<number, string> = new Map([
  [0xf001, 'deviceId'],
  [0xf002, 'revisionId'],
]);
const FIRST_KEY = 0xf001;
const DESCRIPTOR_LENGTH_MAX = 4096;

export const xeKind = walkedKind({
  name: 'xe',
  title: 'Linux xe virtual function state',
  probeLength: HEADER_LENGTH + 4,
  matches(first) {
    if (first.length < HEADER_LENGTH + 4) return false;
    const bytes = Buffer.from(first);
    // Version and type, and zeros for tile, gt, flags and offset.
    const begin = bytes[0] === VERSION && bytes[1] === PacketType.DESCRIPTOR;
    if (!begin || bytes.subarray(2, 16).some((byte) => byte !== 0)) return false;
    const size = u64At(bytes, 16);
    return (
      size >= 8 &&
      size <= DESCRIPTOR_LENGTH_MAX &&
      bytes.readUInt32LE(HEADER_LENGTH) === FIRST_KEY * 65536 + 1
    );
  },
  *walk(context) {
    let packets = 0;
    let type: number;
    do {
      type = yield* walkPacket(context);
      context.fields.packets = ++packets;
    } while (type !== PacketType.TRAILER);
  },
});

/** Reads one packet; returns its type. */
function* walkPacket(context: WalkContext): Pull<number> {
  const { input, tree } = context;
  const view = yield* peek(context, HEADER_LENGTH);
  const [version, type] = [view[0]!, view[1]!];
  const size = u64At(view, 16);
  if (version !== VERSION) throw unsupported(input.offset, `a packet of version ${version}, not ${VERSION}`);
  if (!Number.isSafeInteger(size)) throw damaged(input.offset, 'a packet is 2^53 bytes or more');
  const section = tree.begin(TYPE_NAMES.get(type) ?? null, input.offset, fieldsOf(HEADER, view));
  input.skip(HEADER_LENGTH);
  if (type === PacketType.DESCRIPTOR && size <= DESCRIPTOR_LENGTH_MAX) {
    Object.assign(section.fields, descriptorValues(yield* input.take(size)));
  } else yield* unknownBytes(context, size);
  tree.end(input.offset, true);
  return type;
}

function descriptorValues(bytes: Buffer): FieldMap {
  const known: FieldMap = {};
  const others: FieldMap[] = [];
  let at = 0;
  while (at + 4 <= bytes.length) {
    const key = bytes.readUInt16LE(at + 2);
    const end = at + 4 + 4 * bytes.readUInt16LE(at);
    const value = listOf('u32', bytes.subarray(at + 4, end));
    const name = KEY_NAMES.get(key);
    if (name !== undefined && value.length === 1) known[name] = value[0]!;
    else others.push({ key, value });
    at = end;
  }
  return others.length === 0 ? known : { ...known, others };
}
