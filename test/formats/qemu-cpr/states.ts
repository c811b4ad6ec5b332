// SPDX-License-Identifier: Apache-2.0
/** CprStates, put together from the layout that `src/formats/qemu-cpr/cpr-state.ts` documents. */

const be32 = (...values: number[]): Buffer => {
  const bytes = Buffer.alloc(4 * values.length);
  for (const [index, value] of values.entries()) bytes.writeUInt32BE(value >>> 0, 4 * index);
  return bytes;
};
const named = (name: string): Buffer =>
  Buffer.concat([be32(Buffer.byteLength(name) + 1), Buffer.from(`${name}\0`)]);

export interface Entry {
  readonly name: string;
  readonly id: number;
  /** Its number, as cpr-exec writes it; left out, it travels beside. */
  readonly number?: number;
}

export interface Device {
  readonly name: string;
  readonly devid: number;
  readonly ioasId: number;
  readonly hwptId: number;
}

export const header = (version = 1): Buffer => Buffer.concat([Buffer.from('QCPR'), be32(version)]);

/** A descriptor of the list up to what stands for it. */
export const beforeDescriptor = ({ name, id }: Entry): Buffer =>
  Buffer.concat([Buffer.from([1]), named(name), be32(id)]);

export function entry(one: Entry): Buffer {
  return Buffer.concat([
    beforeDescriptor(one),
    one.number === undefined ? Buffer.from(' ') : be32(one.number),
  ]);
}

export function subsection(name: string, version: number, content: Buffer): Buffer {
  return Buffer.concat([Buffer.from([5, name.length]), Buffer.from(name), be32(version), content]);
}

export function vfioDevices(devices: readonly Device[], version = 1): Buffer {
  const list = devices.map(({ name, devid, ioasId, hwptId }) =>
    Buffer.concat([Buffer.from([1]), named(name), be32(devid, ioasId, hwptId)]),
  );
  return subsection('CprState/vfio devices', version, Buffer.concat([...list, Buffer.from([0])]));
}

/** A whole state; without `devices` as QEMU 10.0 wrote it. */
export function cprState(entries: readonly Entry[], devices?: readonly Device[]): Buffer {
  return Buffer.concat([
    header(),
    ...entries.map(entry),
    Buffer.from([0]),
    ...(devices === undefined ? [] : [vfioDevices(devices)]),
  ]);
}

const GROUPED = '0000:3a:00.0';
const IOMMUFD = 'nic0';

/** Of a machine with a VFIO device in a group, and one that is attached through iommufd. */
export const ENTRIES: readonly Entry[] = [
  { name: `${GROUPED}_interrupt`, id: 1 },
  { name: `${GROUPED}_interrupt`, id: 0 },
  { name: GROUPED, id: 0 },
  { name: 'vfio_container_for_group', id: 12 },
  { name: 'vfio_group', id: 12 },
  { name: IOMMUFD, id: 0 },
  { name: 'iommufd0', id: 0 },
  { name: 'mem', id: 0 },
];
export const DEVICES: readonly Device[] = [{ name: IOMMUFD, devid: 1, ioasId: 2, hwptId: 3 }];
