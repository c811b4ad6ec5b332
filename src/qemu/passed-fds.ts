// SPDX-License-Identifier: Apache-2.0
/**
 * Handing open file descriptors to a QEMU over QMP, so that it need not open anything itself.
 *
 * - By name (`getfd`), for one use on the same QMP connection: `"fd": NAME` of an object, a device, a socket, a migration
 *   channel takes it. A name begins with no digit. What no one takes stays open in QEMU until `closefd`.
 * - In an fd set (`add-fd`), for any number of uses: QEMU opens `/dev/fdset/N` wherever it would open a file. A set that
 *   no one uses goes when the connection that made it ends.
 *
 * The open file is shared, not copied: QEMU makes it blocking, also for us.
 */

import type { Fd } from '../transport/index.js';
import * as z from '../zod.js';
import { type QmpClient, QmpCommandError } from './qmp.js';

interface Cancellable {
  readonly signal?: AbortSignal | undefined;
}

const AddedFd = z.object({ 'fdset-id': z.int(), fd: z.int() });

const FdSets = z.array(
  z.object({
    'fdset-id': z.int(),
    fds: z.array(z.object({ fd: z.int(), opaque: z.string().optional() })),
  }),
);

/** A descriptor in an fd set. */
export interface FdInSet {
  /** Number of the set: QEMU opens {@link fdSetPath}. */
  readonly set: number;
  /** Its number in QEMU's process. Memory backends know no fd sets, but open `/proc/self/fd/<number>`. */
  readonly number: number;
}

/** An fd set as QEMU lists it. */
export interface FdSet {
  readonly set: number;
  readonly fds: readonly { readonly number: number; readonly opaque: string | undefined }[];
}

/** Where QEMU finds an fd set, in place of a file. */
export function fdSetPath(set: number): string {
  return `/dev/fdset/${set}`;
}

/** Gives QEMU a descriptor under a name; one that has the name already is closed there. The caller keeps its own. */
export async function giveFd(qmp: QmpClient, name: string, fd: Fd, options: Cancellable = {}): Promise<void> {
  await qmp.execute('getfd', { arguments: { fdname: name }, fds: [fd], ...options });
}

/** Closes what was given under a name and not used. DEVSTATE_E_QMP_COMMAND if there is none. */
export async function dropFd(qmp: QmpClient, name: string, options: Cancellable = {}): Promise<void> {
  await qmp.execute('closefd', { arguments: { fdname: name }, ...options });
}

/** Puts a descriptor into the fd set `set`, or into a new one. The caller keeps its own. */
export async function addFd(
  qmp: QmpClient,
  fd: Fd,
  options: Cancellable & { readonly set?: number; readonly opaque?: string } = {},
): Promise<FdInSet> {
  const { set, opaque, signal } = options;
  const given = {
    ...(set === undefined ? {} : { 'fdset-id': set }),
    ...(opaque === undefined ? {} : { opaque }),
  };
  const added = await qmp.execute('add-fd', { arguments: given, fds: [fd], schema: AddedFd, signal });
  return { set: added['fdset-id'], number: added.fd };
}

/** Takes a descriptor, or all of them, out of an fd set; users continue with theirs. */
export async function removeFd(
  qmp: QmpClient,
  { set, number }: { readonly set: number; readonly number?: number },
  options: Cancellable = {},
): Promise<void> {
  const which = { 'fdset-id': set, ...(number === undefined ? {} : { fd: number }) };
  await qmp.execute('remove-fd', { arguments: which, ...options });
}

export async function queryFdSets(qmp: QmpClient, options: Cancellable = {}): Promise<FdSet[]> {
  const sets = await qmp.execute('query-fdsets', { schema: FdSets, ...options });
  return sets.map(({ 'fdset-id': set, fds }) => ({
    set,
    fds: fds.map(({ fd, opaque }) => ({ number: fd, opaque })),
  }));
}

/**
 * Gives QEMU a descriptor under a name and runs a command that takes it by that name. If QEMU refuses the command,
 * nothing is left of the descriptor there.
 */
export async function executeWithFd(
  qmp: QmpClient,
  command: string,
  args: Readonly<Record<string, unknown>>,
  { name, fd }: { readonly name: string; readonly fd: Fd },
  options: Cancellable = {},
): Promise<void> {
  await giveFd(qmp, name, fd, options);
  try {
    await qmp.execute(command, { arguments: args, ...options });
  } catch (error) {
    const dropped = dropFd(qmp, name).catch((unused) => {
      // It may have been taken before the command failed.
      if (!(unused instanceof QmpCommandError)) throw unused;
    });
    // Sent in any case; the answer of a QEMU that has fallen silent is not waited for.
    if (options.signal?.aborted === true) dropped.catch(() => {});
    else await dropped;
    throw error;
  }
}

/**
 * Adds an iommufd object that works through an open `/dev/iommu`: QEMU needs no right to open it. QEMU (11.1) keeps the
 * descriptor open when the object is removed.
 */
export async function addIommufd(
  qmp: QmpClient,
  { id, fd }: { readonly id: string; readonly fd: Fd },
  options: Cancellable = {},
): Promise<void> {
  const name = `iommufd-${id}`;
  await executeWithFd(qmp, 'object-add', { 'qom-type': 'iommufd', id, fd: name }, { name, fd }, options);
}

/**
 * Plugs in the VFIO device behind an open `/dev/vfio/devices/vfioN`, attached through the iommufd object `iommufd`.
 * QEMU cannot tell by a descriptor which device it is; the `id` names it, in a cpr-transfer as well.
 * @param properties more of the device's, such as `bus` and `addr`
 */
export async function addVfioPci(
  qmp: QmpClient,
  device: {
    readonly id: string;
    readonly fd: Fd;
    readonly iommufd: string;
    readonly properties?: Readonly<Record<string, unknown>>;
  },
  options: Cancellable = {},
): Promise<void> {
  const { id, fd, iommufd, properties } = device;
  const name = `vfio-${id}`;
  const args = { driver: 'vfio-pci', id, iommufd, ...properties, fd: name };
  await executeWithFd(qmp, 'device_add', args, { name, fd }, options);
}
