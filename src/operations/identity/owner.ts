// SPDX-License-Identifier: Apache-2.0
/** Proof that a device which was named by a socket alone is the one of the VM that the operator means. */

import { DevstateError } from '../../errors.js';
import { listVfioUserDevices, QmpClient, Qtest, queryRunState } from '../../qemu/index.js';
import { whyNotThere } from './devices.js';
import { hasVmm, type NamedSocket, proveClaims } from './prove.js';

/** A device as the QEMU that has it knows it. */
export interface OwnedDevice {
  /** The QEMU's QMP socket. */
  readonly qmp: string;
  /** QEMU's id of the device. */
  readonly id: string;
}

/** Proves which VM and which of its devices a server belongs to. */
export interface OwnerOptions {
  /** The device must be this one. */
  readonly owner?: OwnedDevice | undefined;
  /** It may be the device of any VMM. Default: false. */
  readonly unproven?: boolean | undefined;
}

export interface ProofOptions {
  /** The QEMU, for messages: `source`. */
  readonly where: string;
  /** Sockets that were named for something else. */
  readonly others?: readonly NamedSocket[];
  readonly signal?: AbortSignal | undefined;
}

/** How long QEMU and the servers may take for the proof, ms. */
const PROOF_TIMEOUT_MS = 30_000;
/** Run states of a QEMU whose guest has not run yet. */
const FRESH: readonly string[] = ['inmigrate', 'prelaunch'];

/**
 * Whether the device behind `socket` is `owner`.
 * @returns what could not be proven, as sentences; nothing has been changed
 * @throws DEVSTATE_E_QMP_CONNECT, DEVSTATE_E_QTEST
 */
export async function proveOwner(
  socket: NamedSocket,
  { qmp: path, id }: OwnedDevice,
  { where, others = [], signal }: ProofOptions,
): Promise<string[]> {
  const timeout = AbortSignal.timeout(PROOF_TIMEOUT_MS);
  const limit = signal === undefined ? timeout : AbortSignal.any([signal, timeout]);
  const qmp = await QmpClient.connect(path, { signal: limit });
  try {
    const present = await listVfioUserDevices(qmp, { signal: limit });
    const reason = await whyNotThere(qmp, where, { id, present }, limit);
    if (reason !== undefined) return [reason];
    const { status } = await queryRunState(qmp, { signal: limit });
    const qtest = await Qtest.attach(qmp, { signal: limit });
    try {
      const isFresh = FRESH.includes(status);
      const qemu = { name: `the ${where} QEMU`, qmp, qtest, devices: present, isFresh };
      return await proveClaims(qemu, [{ id, socket }], others, limit);
    } finally {
      qtest.close();
    }
  } finally {
    qmp.close();
  }
}

/**
 * That the device behind `socket` is the one of the VM that was named. A VMM that is connected must be named.
 * @param what is not done otherwise, for messages: `nothing was saved`
 * @throws DEVSTATE_E_INCOMPATIBLE, and what `proveOwner` throws
 */
export async function requireOwner(
  socket: NamedSocket,
  { owner, unproven = false }: OwnerOptions,
  what: string,
  signal?: AbortSignal,
): Promise<void> {
  const reasons =
    owner === undefined
      ? await unnamed(socket, unproven)
      : await proveOwner(socket, owner, { where: "VM's", signal });
  if (reasons.length === 0) return;
  throw new DevstateError('DEVSTATE_E_INCOMPATIBLE', `${what}: ${reasons.join('; ')}`);
}

async function unnamed({ path, device }: NamedSocket, unproven: boolean): Promise<string[]> {
  if (unproven || !(await hasVmm(device))) return [];
  const how = 'name the QEMU that has the device, --qmp PATH --device ID, so that this can be proven';
  return [
    `a VMM is connected to ${path}, and nothing shows that it is the one you mean: ${how}; or do without the proof, --unproven`,
  ];
}
