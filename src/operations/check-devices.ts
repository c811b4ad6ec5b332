// SPDX-License-Identifier: Apache-2.0
/** Whether the state of one device could go on in another, asked of both servers; nothing is changed. */

import type { FormatOffer } from '../formats/index.js';
import { formatVersionText } from '../formats/index.js';
import { openDeviceSocket } from './device-socket.js';
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
  /** Migration socket of the server that has the state. */
  readonly source: string;
  /** Migration socket of the server that is to take it. */
  readonly dest: string;
}

/** What one end says of itself. */
export interface CheckedPeer {
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
  readonly source: CheckedPeer;
  readonly dest: CheckedPeer;
  readonly negotiation: NegotiationSummary;
}

/** @throws DEVSTATE_E_CONNECT, DEVSTATE_E_NOT_MIGRATABLE; what does not fit is in the result */
export async function checkDevices(options: CheckDevicesOptions): Promise<CheckDevicesResult> {
  const source = await openDeviceSocket(options.source);
  try {
    const dest = await openDeviceSocket(options.dest);
    try {
      const planned = planState(await askPeer(source.device), await askPeer(dest.device), options);
      const { plan } = planned;
      return {
        compatible: planned.reasons.length === 0,
        reasons: planReasons(planned),
        source: describePeer(plan.source),
        dest: describePeer(plan.destination),
        negotiation: summarisePlan(plan),
      };
    } finally {
      dest.device.close();
    }
  } finally {
    source.device.close();
  }
}

function describePeer(peer: StatePeer): CheckedPeer {
  return {
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
