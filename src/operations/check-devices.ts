// SPDX-License-Identifier: Apache-2.0
/** Whether the state of one device could be loaded into another, asked of both, and what pause that would take; nothing is changed. */

import { type Stats, statSync } from 'node:fs';
import { DevstateError } from '../errors.js';
import type { FormatOffer } from '../formats/index.js';
import { formatVersionText } from '../formats/index.js';
import type { MigrationProtocol } from '../migration/index.js';
import { MigrationFlag } from '../wire/index.js';
import type { ProtocolChoice } from './device-socket.js';
import { proveImages, proveOwner } from './identity/index.js';
import { foreseePause } from './migrate/foresee.js';
import { DEFAULT_DOWNTIME_MS, type ExpectedPause } from './migrate/types.js';
import { deviceAddress, type OpenEnd, openMigrationEnd, requireSocket } from './migration-end.js';
import {
  askPeer,
  type FormatOptions,
  type NegotiationSummary,
  planReasons,
  planState,
  type StateInterface,
  type StatePeer,
  summarisePlan,
} from './state-plan.js';

export interface CheckDevicesOptions extends FormatOptions {
  /** The device that has the state: the migration socket of its server, or a VFIO device as in `DeviceAddress`. */
  readonly source: string;
  /** The one that is to take it. */
  readonly dest: string;
  /** For both ends. Default: `auto`. */
  readonly protocol?: ProtocolChoice;
  /** QEMU's id of the device, the same at both ends. Needed with either of the QMP sockets. */
  readonly device?: string | undefined;
  /** QMP socket of the QEMU that has the source device; it is proven that it has it. */
  readonly sourceQmp?: string | undefined;
  /** QMP socket of the QEMU that has the destination device; it is proven that it has it. With both, that they work on one image. */
  readonly destQmp?: string | undefined;
  /** Ids of devices whose images at both ends are kept the same by other means than being one file. */
  readonly imageUnchecked?: readonly string[];
  /** The pause that a migration would aim at, ms. Default: what `migrate` aims at. */
  readonly downtimeMs?: number;
}

/** What one end says of itself. */
export interface CheckedPeer {
  readonly protocol: MigrationProtocol;
  /** Whether it can end its own DMA to other devices while it still answers theirs. */
  readonly p2p: boolean;
  readonly model: string | null;
  readonly parameters: Readonly<Record<string, string | number | boolean>>;
  readonly producer: { readonly name: string; readonly version: string } | null;
  readonly interface: StateInterface;
  readonly formats: readonly CheckedFormat[];
}

export interface CheckedFormat {
  readonly uuid: string;
  readonly name: string;
  readonly version: string;
  readonly save: boolean;
  readonly load: boolean;
  readonly fidelity: FormatOffer['fidelity'];
  readonly features: readonly string[];
  /** About how long the state would be if the device stopped now, bytes; null if not known. */
  readonly estimate: number | null;
}

export interface CheckDevicesResult {
  readonly compatible: boolean;
  /** Why they are not; empty if they are. */
  readonly reasons: readonly string[];
  /** What is to be kept in mind although they are. */
  readonly remarks: readonly string[];
  readonly source: CheckedPeer;
  readonly dest: CheckedPeer;
  readonly negotiation: NegotiationSummary;
  /** What the pause of a migration would be, measured at the source; null if that could not be done. */
  readonly expected: ExpectedPause | null;
  /** Why not; null if it was. */
  readonly notExpected: string | null;
}

/** What the device is called where QEMU's id of it was not given. */
const UNNAMED = 'source';

/** @throws DEVSTATE_E_USAGE for one device in both places, or a QMP socket without an id, DEVSTATE_E_QMP_CONNECT, DEVSTATE_E_QTEST, DEVSTATE_E_CONNECT, DEVSTATE_E_NOT_MIGRATABLE; what does not fit is in the result */
export async function checkDevices(options: CheckDevicesOptions): Promise<CheckDevicesResult> {
  requireTwo(options);
  const source = await openMigrationEnd(deviceAddress(options.source), options);
  try {
    const dest = await openMigrationEnd(deviceAddress(options.dest), options);
    try {
      const planned = planState(await askPeer(source.device), await askPeer(dest.device), options);
      const { plan } = planned;
      // First what was mixed up: it may be why the rest does not fit.
      const reasons = [...(await proveEnds(source, dest, options)), ...planReasons(planned)];
      const foresight =
        reasons.length > 0
          ? { why: 'the two do not fit together' }
          : await foreseePause(
              options.device ?? UNNAMED,
              source.device,
              dest.device,
              options.downtimeMs ?? DEFAULT_DOWNTIME_MS,
            );
      return {
        compatible: reasons.length === 0,
        reasons,
        remarks: [...p2pRemark('source', source), ...p2pRemark('destination', dest)],
        source: describePeer(plan.source, source),
        dest: describePeer(plan.destination, dest),
        negotiation: summarisePlan(plan),
        expected: 'expected' in foresight ? foresight.expected : null,
        notExpected: 'why' in foresight ? foresight.why : null,
      };
    } finally {
      dest.device.close();
    }
  } finally {
    source.device.close();
  }
}

/** What does not belong together of what was named. */
async function proveEnds(source: OpenEnd, dest: OpenEnd, options: CheckDevicesOptions): Promise<string[]> {
  const { device: id, sourceQmp, destQmp, imageUnchecked = [] } = options;
  const isNamed = sourceQmp !== undefined || destQmp !== undefined;
  if (isNamed !== (id !== undefined)) {
    const message = 'the id of a device and the QMP socket of a QEMU that has it belong together: give both';
    throw new DevstateError('DEVSTATE_E_USAGE', message);
  }
  if (id === undefined) return [];
  const from = { ...requireSocket(source), role: `the source of device ${id}` };
  const to = { ...requireSocket(dest), role: `the destination of device ${id}` };
  const reasons: string[] = [];
  if (sourceQmp !== undefined)
    reasons.push(...(await proveOwner(from, { qmp: sourceQmp, id }, { where: 'source', others: [to] })));
  if (destQmp !== undefined)
    reasons.push(...(await proveOwner(to, { qmp: destQmp, id }, { where: 'destination', others: [from] })));
  const areBothProven = sourceQmp !== undefined && destQmp !== undefined;
  if (reasons.length > 0 || !areBothProven || imageUnchecked.includes(id)) return reasons;
  return proveImages(id, from, to);
}

/** A device fits itself, and its second connection may have to wait for the first to end. */
function requireTwo({ source, dest }: CheckDevicesOptions): void {
  const [one, other] = [source, dest].map((path) => statSync(path, { throwIfNoEntry: false }));
  const isSame = one === undefined || other === undefined ? source === dest : isSameFile(one, other);
  if (!isSame) return;
  const message = `source and destination are the same device, ${source}; name the one that is to take its state`;
  throw new DevstateError('DEVSTATE_E_USAGE', message);
}

function isSameFile(one: Stats, other: Stats): boolean {
  return one.dev === other.dev && one.ino === other.ino;
}

/** Devices of one VM stop one after the other, and meanwhile one may still write to another that has stopped. */
function p2pRemark(where: string, socket: OpenEnd): string[] {
  if (hasP2p(socket)) return [];
  return [
    `the ${where} (${socket.path}) has no P2P state: beside other devices of its VM, DMA between them may be lost when they stop`,
  ];
}

function hasP2p({ flags }: OpenEnd): boolean {
  return (flags & MigrationFlag.P2P) !== 0;
}

function describePeer(peer: StatePeer, socket: OpenEnd): CheckedPeer {
  return {
    protocol: socket.device.protocol,
    p2p: hasP2p(socket),
    model: peer.model?.uri ?? null,
    parameters: peer.model?.parameters ?? {},
    producer: peer.description?.producer ?? null,
    interface: peer.interface,
    formats: peer.offers.map(({ uuid, name, version, save, load, fidelity, features, estimate }) => ({
      uuid,
      name,
      version: formatVersionText(version),
      save,
      load,
      fidelity,
      features,
      estimate: estimate ?? null,
    })),
  };
}
