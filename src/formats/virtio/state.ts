// SPDX-License-Identifier: Apache-2.0
/**
 * The state of a virtio device: the device parts of virtio 1.4, and what they lack for a driver to continue as if nothing had
 * happened. The device is stopped, and has nothing in flight: every buffer that it took it has given back.
 */
import type { PciFunctionState } from '../pci/state.js';
import type { VirtioDevicePart } from './device-parts.js';
import { devicePartProblems } from './part-order.js';

/** Device types ("Device Types" of the specification) that have a state of their own here. */
export const VirtioDeviceType = { net: 1, blk: 2 } as const;

export interface VirtioState {
  /** `VirtioDeviceType`, or another of the specification's. */
  readonly deviceType: number;
  /** Virtqueues of the device, those that are not in use too. */
  readonly queues: number;
  /** The device configuration space as the driver reads it: `struct virtio_net_config`, `struct virtio_blk_config`. */
  readonly config: Uint8Array;
  readonly parts: readonly VirtioDevicePart[];
  /** In order of the queue; those of queues that are enabled. */
  readonly rings: readonly VirtioRing[];
  /** null for a device on another transport, or whose VMM keeps it. */
  readonly pci: PciFunctionState | null;
  /** What the driver set through the control queue of a network device; null for other devices, and without that queue. */
  readonly net: VirtioNetControl | null;
}

/** Where a device is in a queue. In a packed ring, bit 15 is the wrap counter, the others a place in the ring. */
export interface VirtioRing {
  readonly queue: number;
  /** The available buffer that is taken next. */
  readonly available: number;
  /** Where the next used buffer goes. */
  readonly used: number;
}

/** The modes of VIRTIO_NET_CTRL_RX, in order of their command. */
export const NET_RECEIVE_MODES = [
  'promiscuous',
  'allMulticast',
  'allUnicast',
  'noMulticast',
  'noUnicast',
  'noBroadcast',
] as const;
export type NetReceiveMode = (typeof NET_RECEIVE_MODES)[number];

/** "Network Device / Device Operation / Control Virtqueue". The MAC address itself is in the configuration space. */
export interface VirtioNetControl {
  /** Those that are on, in the order above. */
  readonly receiveModes: readonly NetReceiveMode[];
  /** Pairs of queues in use. */
  readonly queuePairs: number;
  /** The MAC filter tables; 6 bytes each. */
  readonly unicast: readonly Uint8Array[];
  readonly multicast: readonly Uint8Array[];
  /** The VLAN filter: identifiers that pass. */
  readonly vlans: readonly number[];
  /** Offloads that the driver asked for, by feature bit. */
  readonly guestOffloads: bigint;
  /** `struct virtio_net_rss_config` as the driver gave it; empty if it did not. */
  readonly rss: Uint8Array;
}

/** Reasons shown of a state that has many. */
const REASONS_SHOWN = 16;

/** What the parts of a state say about each other that cannot be; empty if there is nothing. */
export function virtioStateProblems({ deviceType, queues, parts, rings, net }: VirtioState): string[] {
  const problems = devicePartProblems(parts);
  for (const part of parts) {
    if ('queue' in part && part.queue >= queues) {
      problems.push(`${part.part} of queue ${part.queue}, the device has ${queues}`);
    }
  }
  let before = -1;
  for (const { queue } of rings) {
    if (queue >= queues) problems.push(`a ring of queue ${queue}, the device has ${queues}`);
    if (queue <= before) problems.push(`the ring of queue ${queue} comes after that of ${before}`);
    before = queue;
  }
  if (net !== null && deviceType !== VirtioDeviceType.net) {
    problems.push(`network control of a device of type ${deviceType}`);
  }
  return problems.slice(0, REASONS_SHOWN);
}
