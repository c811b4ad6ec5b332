// SPDX-License-Identifier: Apache-2.0
/** The formats this project registers. `formats/registry.json` is the same list for readers in other languages. */
import { DevstateError } from '../errors.js';
import type { FormatVersion } from './envelope/header.js';
import { KERNEL_DRIVER_FORMATS } from './kernel-drivers.js';
import type { RegisteredFormat } from './registered-format.js';
import { isUuid, parseUuid, type Uuid } from './uuid.js';

/** State of the counter device. */
export const COUNTER: RegisteredFormat = {
  uuid: parseUuid('a7b6cfd5-824f-48d2-9374-6c30af5c24f2'),
  name: 'org.devstate.counter',
  kind: 'standard',
  models: ['devstate.org/counter'],
  versions: ['1.0'],
  schema: 'counter.md',
  stability: 'experimental',
};

/** Native state of the reference NVMe controller of vendor alder. */
export const NVME_ALDER: RegisteredFormat = {
  uuid: parseUuid('d49a84ce-5d67-4c5c-9ba8-6c99372bc19d'),
  name: 'org.devstate.nvme.alder',
  kind: 'vendor',
  models: ['devstate.org/nvme'],
  versions: ['1.0'],
  schema: null,
  stability: 'experimental',
};

/** Native state of the NVMe controller of vendor birch. */
export const NVME_BIRCH: RegisteredFormat = {
  uuid: parseUuid('f9e76e99-5d3d-44e6-bd73-a439ff2e990f'),
  name: 'org.devstate.nvme.birch',
  kind: 'vendor',
  models: ['devstate.org/nvme'],
  versions: ['1.0'],
  schema: null,
  stability: 'experimental',
};

/** State of an NVMe controller of any vendor. */
export const NVME_STANDARD: RegisteredFormat = {
  uuid: parseUuid('1019ff7c-6696-465e-8314-c4f70b20b6c3'),
  name: 'org.devstate.nvme',
  kind: 'standard',
  models: ['devstate.org/nvme'],
  versions: ['1.0'],
  schema: 'nvme.proto',
  stability: 'experimental',
};

/** State of the device of libvfio-user's sample server, as our own has it. */
export const SAMPLE: RegisteredFormat = {
  uuid: parseUuid('a509945d-7310-4ed8-b217-7f20e7aa2551'),
  name: 'org.devstate.sample',
  kind: 'standard',
  models: ['devstate.org/sample'],
  versions: ['1.0'],
  schema: 'sample.md',
  stability: 'experimental',
};

/** The I/O queues of an NVMe controller as NVMe 2.1 encodes them, with what its vendor adds. */
export const NVME_CONTROLLER_STATE: RegisteredFormat = {
  uuid: parseUuid('7b02d6fc-182e-45ca-ad89-fc45bdb22fef'),
  name: 'org.nvmexpress.controller-state',
  kind: 'standard',
  models: ['devstate.org/nvme'],
  versions: ['1.0'],
  schema: 'nvme-controller-state.md',
  stability: 'experimental',
};

/** State of a PCI function, whatever the device. */
export const PCI_FUNCTION: RegisteredFormat = {
  uuid: parseUuid('10dc3814-99e1-4df1-84de-2b98dbcbb70c'),
  name: 'org.devstate.pci.function',
  kind: 'standard',
  models: ['devstate.org/nvme'],
  versions: ['1.0'],
  schema: 'pci-function.proto',
  stability: 'experimental',
};

/** State of a virtio device of any vendor: the device parts of virtio 1.4 and what they lack. */
export const VIRTIO_DEVICE_PARTS: RegisteredFormat = {
  uuid: parseUuid('9d0357ba-e402-4ae8-b9b7-cf618129dd63'),
  name: 'org.oasis-open.virtio.device-parts',
  kind: 'standard',
  models: ['virtio-spec.org/pci/virtio-blk', 'virtio-spec.org/pci/virtio-net'],
  versions: ['1.0'],
  schema: 'virtio-device-parts.md',
  stability: 'experimental',
};

/** Every registered format, ordered by name. */
export const REGISTERED_FORMATS: readonly RegisteredFormat[] = [
  COUNTER,
  NVME_STANDARD,
  NVME_ALDER,
  NVME_BIRCH,
  PCI_FUNCTION,
  SAMPLE,
  ...KERNEL_DRIVER_FORMATS,
  NVME_CONTROLLER_STATE,
  VIRTIO_DEVICE_PARTS,
];

/** The format of this UUID (either case) or name; undefined if it is not registered. */
export function findFormat(uuidOrName: string): RegisteredFormat | undefined {
  if (!isUuid(uuidOrName)) return REGISTERED_FORMATS.find((format) => format.name === uuidOrName);
  const uuid = parseUuid(uuidOrName);
  return REGISTERED_FORMATS.find((format) => format.uuid === uuid);
}

/** Whether `uuidOrName`, as a user gives it, means this format. */
export function isSameName(format: { uuid: Uuid; name: string }, uuidOrName: string): boolean {
  return format.name === uuidOrName || format.uuid === uuidOrName.toLowerCase();
}

/** As {@link findFormat}; DEVSTATE_E_FORMAT_UNKNOWN if it is not registered. */
export function requireFormat(uuidOrName: string): RegisteredFormat {
  const format = findFormat(uuidOrName);
  if (format !== undefined) return format;
  throw new DevstateError(
    'DEVSTATE_E_FORMAT_UNKNOWN',
    `no format ${JSON.stringify(uuidOrName.slice(0, 64))} is registered: see formats/registry.json`,
  );
}

/** `major.minor` as text. */
export function formatVersionText(version: FormatVersion): string {
  return `${version.major}.${version.minor}`;
}

/**
 * Checks that a reader of `format` may read a blob of `version`: its major version must exist here, its minor
 * version need not, because what a newer minor version adds is optional or announced as a feature.
 * @throws DevstateError DEVSTATE_E_FORMAT_VERSION
 */
export function requireReadableVersion(format: RegisteredFormat, version: FormatVersion): void {
  if (format.versions.some((known) => known.startsWith(`${version.major}.`))) return;
  throw new DevstateError(
    'DEVSTATE_E_FORMAT_VERSION',
    `the blob is ${format.name} ${formatVersionText(version)}, this reader knows ${format.versions.join(', ')}: update devstate or convert the blob`,
  );
}
