// SPDX-License-Identifier: Apache-2.0
/** Has a relay replace the device server of its VM. */

import { RelayControl, type SwitchReport, type SwitchRequest } from '../relay/index.js';
import { type OwnerOptions, requireOwner } from './identity/index.js';

export interface RelaySwitchOptions extends SwitchRequest, OwnerOptions {
  /** The relay's control socket. */
  readonly control: string;
}

/**
 * @throws DEVSTATE_E_CONNECT
 * @throws DEVSTATE_E_INCOMPATIBLE when it is not proven that the relay's VMM is `owner`'s QEMU, or that the new server works on
 * the image of the old one
 * @throws what the relay answers: the old server then keeps serving
 */
export async function relaySwitch(options: RelaySwitchOptions): Promise<SwitchReport> {
  const { control, server, state, imageUnchecked = false } = options;
  const relay = await RelayControl.connect(control);
  try {
    await relay.requireRelay();
    const socket = { path: control, role: 'the relay', device: relay };
    await requireOwner(socket, options, 'nothing was replaced');
    return await relay.switchTo({ server, state, imageUnchecked });
  } finally {
    relay.close();
  }
}
