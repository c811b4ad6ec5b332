// SPDX-License-Identifier: Apache-2.0
/**
 * Proof that a migration socket belongs to the device that a QEMU has under an id. The manager reads the device's
 * configuration space through QEMU in a random order; the server, or relay, that QEMU talks to has seen that order.
 *
 *     manager ── qtest ──▶ QEMU ── vfio-user ──▶ server
 *        └────────────── migration socket ─────────┘   "which reads have arrived?"
 */

import type { MigrationClient } from '../../client/index.js';
import { DevstateError } from '../../errors.js';
import {
  connectedSocket,
  makeConfigReads,
  type QmpClient,
  type QtestAccess,
  type VfioUserDevice,
  withLocation,
} from '../../qemu/index.js';
import { type ConfigReads, Errno, WitnessedVmm } from '../../wire/index.js';
import { unlessAborted } from '../waiting.js';
import { createChallenge, judge, type Verdict } from './challenge.js';

/** How often a challenge is made before its outcome counts: a guest may renumber buses, or read all the time. */
const ATTEMPTS = 3;

/** A server or relay that tells what its VMM reads. */
export type Witness = Pick<MigrationClient, 'canWitness' | 'configReads'>;

/** A socket of a server or relay as it was named. */
export interface NamedSocket {
  readonly path: string;
  /** What it was named as: `the source of device disk0`. */
  readonly role: string;
  readonly device: Witness;
}

/** The QEMU that has the devices. */
export interface Examined {
  /** For messages: `the source QEMU`. */
  readonly name: string;
  readonly qmp: QmpClient;
  readonly qtest: QtestAccess;
  readonly devices: readonly VfioUserDevice[];
  /** Its guest has not run: bridges may be numbered for as long as it takes. */
  readonly isFresh: boolean;
  /** Which of its servers' VMMs it may be. Default: the one that has the device. */
  readonly vmms?: readonly WitnessedVmm[];
}

export interface Claim {
  /** QEMU's id of the device. */
  readonly id: string;
  readonly socket: NamedSocket;
}

/**
 * Asks for the proof of every claim.
 * @param others sockets that were named for something else: if the reads arrive at one of them it is said
 * @returns what could not be proven, as sentences; nothing has been changed
 */
export async function proveClaims(
  qemu: Examined,
  claims: readonly Claim[],
  others: readonly NamedSocket[],
  signal: AbortSignal,
): Promise<string[]> {
  const sockets = [...claims.map(({ socket }) => socket), ...others];
  const witnesses: NamedSocket[] = [];
  for (const socket of sockets) if (await socket.device.canWitness()) witnesses.push(socket);
  const reasons: string[] = [];
  // One after the other: the reads of one challenge would be noise to another.
  for (const claim of claims) {
    const { id, socket } = claim;
    if (!witnesses.includes(socket)) reasons.push(`device ${id}: ${cannotWitness(socket)}`);
    else reasons.push(...(await proveClaim(qemu, claim, witnesses, signal)));
  }
  return reasons;
}

function cannotWitness({ path }: NamedSocket): string {
  const what = `the server at ${path} does not say which accesses its VMM makes, so it cannot be proven that it is this device's`;
  return `${what}; update it, put a devstate relay before it, or, if you are certain, do without the proof: --unproven`;
}

async function proveClaim(
  qemu: Examined,
  claim: Claim,
  witnesses: readonly NamedSocket[],
  signal: AbortSignal,
): Promise<string[]> {
  let verdicts = new Map<NamedSocket, Verdict>();
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    try {
      verdicts = await challenge(qemu, claim, witnesses, signal);
    } catch (error) {
      if (!(error instanceof DevstateError) || error.code !== 'DEVSTATE_E_PCI_DEVICE') throw error;
      return [`device ${claim.id}: ${error.message}`];
    }
    if (verdicts.get(claim.socket) === 'proven') break;
  }
  return objections(qemu, claim, verdicts, signal);
}

/** One challenge, and what each witness has seen of it. */
async function challenge(
  { qmp, qtest, isFresh, vmms = [WitnessedVmm.PRESENT] }: Examined,
  { id }: Claim,
  witnesses: readonly NamedSocket[],
  signal: AbortSignal,
): Promise<Map<NamedSocket, Verdict>> {
  const logs = witnesses.flatMap((witness) => vmms.map((vmm) => ({ witness, vmm })));
  const starts = await Promise.all(
    logs.map(({ witness, vmm }) => readsOf(witness.device, vmm, Number.MAX_SAFE_INTEGER)),
  );
  const reads = createChallenge();
  const ask = withLocation({ qmp, qtest }, id, isFresh, (at) => makeConfigReads(qtest, at, reads), {
    signal,
  });
  await unlessAborted(ask, signal);
  const verdicts = new Map<NamedSocket, Verdict>();
  for (const [index, { witness, vmm }] of logs.entries()) {
    const { reads: seen } = await readsOf(witness.device, vmm, starts[index]?.next ?? 0);
    if (verdicts.get(witness) !== 'proven') verdicts.set(witness, judge(reads, seen));
  }
  return verdicts;
}

/** Whether a VMM has the device, as far as the witness tells. */
export async function hasVmm(witness: Witness): Promise<boolean> {
  if (!(await witness.canWitness())) return false;
  return (await readsIfThere(witness, WitnessedVmm.PRESENT, Number.MAX_SAFE_INTEGER)) !== undefined;
}

/** Nothing where no such VMM is connected. */
async function readsOf(witness: Witness, vmm: WitnessedVmm, since: number): Promise<ConfigReads> {
  return (await readsIfThere(witness, vmm, since)) ?? { next: 0, reads: [] };
}

/** Undefined where no such VMM is connected. */
async function readsIfThere(
  witness: Witness,
  vmm: WitnessedVmm,
  since: number,
): Promise<ConfigReads | undefined> {
  try {
    return await witness.configReads({ since, vmm });
  } catch (error) {
    if (error instanceof DevstateError && error.errno === Errno.ENOTCONN) return undefined;
    throw error;
  }
}

async function objections(
  { name, qmp, devices }: Examined,
  { id, socket }: Claim,
  verdicts: ReadonlyMap<NamedSocket, Verdict>,
  signal: AbortSignal,
): Promise<string[]> {
  const about = `device ${id}: ${name} (${qmp.path})`;
  const elsewhere = [...verdicts].filter(([one, verdict]) => one !== socket && verdict === 'proven');
  const [other] = elsewhere.map(([one]) => one);
  if (verdicts.get(socket) === 'proven')
    return other === undefined
      ? []
      : [
          `${about} reaches ${socket.path} and ${other.path} alike, named as ${other.role}: both lead to one server`,
        ];
  if (verdicts.get(socket) === 'unclear')
    return [
      `${about}: its guest reads configuration space so much that nothing can be proven; try again when it is quiet`,
    ];
  const device = devices.find((one) => one.id === id);
  const path = device === undefined ? undefined : await connectedSocket(qmp, device, { signal });
  const connected = path === undefined ? '' : `; QEMU connected this device to ${path}`;
  const seen =
    other === undefined
      ? 'at none of the sockets named'
      : `at ${other.path}, named as ${other.role} (are the two exchanged?)`;
  return [
    `${about} does not talk to the server behind ${socket.path}: reads made through QEMU arrived ${seen}${connected}. Name the migration socket of that server`,
  ];
}
