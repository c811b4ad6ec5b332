// SPDX-License-Identifier: Apache-2.0
/** Replaces a relay between a VMM and its device server by another process. */

import { RelayControl } from '../../relay/index.js';
import { Replacement } from './replacement.js';
import type { ReplacementResult, UpgradeHooks, UpgradeRelayOptions } from './types.js';

/** @throws DEVSTATE_E_HANDOFF when the old relay continues, DEVSTATE_E_CONNECT */
export async function upgradeRelay(
  options: UpgradeRelayOptions,
  hooks: UpgradeHooks = {},
): Promise<ReplacementResult> {
  const old = await RelayControl.connect(options.control);
  try {
    await old.requireRelay();
    const replacement = new Replacement<object>({ name: 'relay', old }, options, hooks);
    return await replacement.run(RelayControl.connect, async () => ({}));
  } finally {
    old.close();
  }
}
