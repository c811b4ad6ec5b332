// SPDX-License-Identifier: Apache-2.0
/**
 * The state that a QEMU hands to its successor before everything else, "CprState": a list of file descriptors with
 * names. All integers are big-endian.
 *
 *     be32 magic "QCPR" │ be32 version 1 │
 *     for each descriptor:  u8 1 │ be32 length of the name with its NUL │ name │ be32 id │ descriptor
 *     u8 0
 *     u8 5 │ u8 21 │ "CprState/vfio devices" │ be32 version 1 │          since QEMU 10.1
 *     for each device:      u8 1 │ be32 length │ name │ be32 devid │ be32 ioas_id │ be32 hwpt_id
 *     u8 0
 *
 * A descriptor is a space that carries it (cpr-transfer, over a UNIX socket), or its number as be32 (cpr-exec, in a memory
 * file that the new program inherits). No number begins with the byte of a space: it would be above 2^29.
 */
import type { Pull, PushedInput } from '../foreign/pushed-input.js';
import { damaged, unsupported } from '../foreign/section-context.js';
import type { SectionTree } from '../foreign/section-tree.js';

/** `QCPR` (QEMU: `QEMU_CPR_FILE_MAGIC`). */
export const CPR_MAGIC = 0x51435052;
export const CPR_VERSION = 1;
export const CPR_HEADER_LENGTH = 8;

/** What stands for a descriptor that travels beside the stream. */
export const PASSED = 0x20;
const MORE = 1;
const END = 0;
/** QEMU: `QEMU_VM_SUBSECTION`. */
const SUBSECTION = 5;
const VFIO_DEVICES = 'CprState/vfio devices';
const VFIO_DEVICES_VERSION = 1;

/** Bounds; a large machine has some hundreds of descriptors, and names of some tens of bytes. */
export const CPR_DESCRIPTORS_MAX = 16_384;
const DEVICES_MAX = 4096;
const NAME_MAX = 1024;

/** A descriptor of the list. `name` and `id` together are what the successor looks it up by. */
export interface CprDescriptor {
  /** Such as `pc.ram`, `vfio_group`, `0000:3a:00.0_interrupt`. */
  readonly name: string;
  /** What it is of those with the same name, such as a group's or a vector's number; else 0. */
  readonly id: number;
  /** Its number in the process (cpr-exec); null if it travelled beside the stream (cpr-transfer). */
  readonly number: number | null;
}

/** A VFIO device that is attached through iommufd. */
export interface CprVfioDevice {
  readonly name: string;
  /** The device's id in iommufd, that of its address space, and that of its page table. */
  readonly devid: number;
  readonly ioasId: number;
  readonly hwptId: number;
}

export interface CprState {
  version: number | undefined;
  readonly descriptors: CprDescriptor[];
  readonly vfioDevices: CprVfioDevice[];
}

export function emptyCprState(): CprState {
  return { version: undefined, descriptors: [], vfioDevices: [] };
}

/** Reads one descriptor: its number, or null if it travelled beside the stream. */
export type DescriptorReader = (input: PushedInput) => Pull<number | null>;

/**
 * Follows a whole state; `state` and `tree` have what was found so far.
 * StreamDefect for what is not such a state, or is of a version that is not known.
 */
export function* walkCprState(
  input: PushedInput,
  tree: SectionTree,
  state: CprState,
  readDescriptor: DescriptorReader,
): Pull<void> {
  yield* header(input, tree, state);
  while (yield* another(input)) yield* descriptor(input, tree, state, readDescriptor);
  tree.begin('end of list', input.offset - 1);
  tree.end(input.offset);
  let listed = false;
  while ((yield* input.reach(1)) > 0) {
    if (listed || input.view(1)[0] !== SUBSECTION) throw damaged(input.offset, 'more bytes follow the end');
    yield* vfioDevices(input, tree, state);
    listed = true;
  }
}

function* header(input: PushedInput, tree: SectionTree, state: CprState): Pull<void> {
  const start = input.offset;
  const section = tree.begin('header', start);
  yield* input.need(CPR_HEADER_LENGTH);
  if (input.u32() !== CPR_MAGIC) throw damaged(start, 'it does not begin with QCPR');
  const version = input.u32();
  state.version = version;
  section.fields.version = version;
  tree.end(input.offset);
  if (version !== CPR_VERSION) {
    throw unsupported(start + 4, `it is of version ${version}; only ${CPR_VERSION} is known here`);
  }
}

function* another(input: PushedInput): Pull<boolean> {
  yield* input.need(1);
  const more = input.view(1)[0];
  if (more !== MORE && more !== END)
    throw damaged(input.offset, 'neither an element nor the end of the list');
  input.skip(1);
  return more === MORE;
}

function* descriptor(
  input: PushedInput,
  tree: SectionTree,
  state: CprState,
  readDescriptor: DescriptorReader,
): Pull<void> {
  const start = input.offset - 1;
  if (state.descriptors.length === CPR_DESCRIPTORS_MAX)
    throw damaged(start, `there are more than ${CPR_DESCRIPTORS_MAX} descriptors`);
  const section = tree.begin(null, start);
  const name = yield* text(input);
  yield* input.need(4);
  const id = input.u32() | 0;
  const number = yield* readDescriptor(input);
  state.descriptors.push({ name, id, number });
  section.name = name;
  section.fields = { id, descriptor: number ?? 'passed' };
  tree.end(input.offset);
}

function* vfioDevices(input: PushedInput, tree: SectionTree, state: CprState): Pull<void> {
  const start = input.offset;
  const section = tree.begin(null, start);
  input.skip(1);
  const name = yield* input.countedText();
  section.name = name;
  if (name !== VFIO_DEVICES)
    throw unsupported(start, `the subsection ${name} is not known, and says no length`);
  yield* input.need(4);
  const version = input.u32();
  if (version !== VFIO_DEVICES_VERSION)
    throw unsupported(start, `the subsection ${name} is of version ${version}, not ${VFIO_DEVICES_VERSION}`);
  section.fields.version = version;
  while (yield* another(input)) {
    const offset = input.offset - 1;
    if (state.vfioDevices.length === DEVICES_MAX)
      throw damaged(offset, `there are more than ${DEVICES_MAX} VFIO devices`);
    const device = yield* vfioDevice(input);
    state.vfioDevices.push(device);
    const { name, ...fields } = device;
    tree.begin(name, offset, fields);
    tree.end(input.offset);
  }
  section.fields.devices = state.vfioDevices.length;
  tree.end(input.offset);
}

function* vfioDevice(input: PushedInput): Pull<CprVfioDevice> {
  const name = yield* text(input);
  yield* input.need(12);
  return { name, devid: input.u32() | 0, ioasId: input.u32(), hwptId: input.u32() };
}

/** A name that ends with a NUL, which its length counts. */
function* text(input: PushedInput): Pull<string> {
  const start = input.offset;
  yield* input.need(4);
  const length = input.u32();
  if (length === 0 || length > NAME_MAX) throw damaged(start, `a name is ${length} bytes long`);
  const bytes = yield* input.take(length);
  if (bytes.indexOf(0) !== length - 1) throw damaged(start, 'a name does not end where its length says');
  return bytes.toString('utf8', 0, length - 1);
}
