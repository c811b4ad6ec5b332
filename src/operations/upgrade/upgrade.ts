// SPDX-License-Identifier: Apache-2.0
/** Replaces a device server under its VMM by another process, which both agree on a format with. */

import { Client, type HandoffRequest, MigrationClient } from '../../client/index.js';
import { DevstateError } from '../../errors.js';
import { askPeer, planReasons, planState, type StatePlan, summarisePlan } from '../state-plan.js';
import { unlessAborted } from '../waiting.js';
import { Replacement } from './replacement.js';
import type { UpgradeHooks, UpgradeOptions, UpgradeResult } from './types.js';

/**
 * @throws DEVSTATE_E_HANDOFF when the old server continues; DEVSTATE_E_INCOMPATIBLE when the two do not fit;
 * DEVSTATE_E_NOT_MIGRATABLE when the old one cannot hand over
 */
export async function upgrade(options: UpgradeOptions, hooks: UpgradeHooks = {}): Promise<UpgradeResult> {
  const { migrationSocket } = options;
  const connect = async (path: string): Promise<MigrationClient> =>
    new MigrationClient(await Client.connect(path));
  const old = await connect(migrationSocket);
  try {
    if (!(await old.canHandOver())) {
      const message = `what is at ${migrationSocket} cannot hand over to a successor: a relay is named by its --control socket, a server under devstate run is replaced by SIGHUP to that, and one that is no devstate server, or an older one, needs a relay`;
      throw new DevstateError('DEVSTATE_E_NOT_MIGRATABLE', message);
    }
    const replaced = { name: 'server', old };
    const replacement = new Replacement<Pick<HandoffRequest, 'format'>>(replaced, options, hooks);
    let plan: StatePlan | undefined;
    const result = await replacement.run(connect, async (successor, signal) => {
      plan = await replacement.phase('negotiate', () =>
        unlessAborted(negotiate(old, successor, options), signal),
      );
      return { format: formatOf(plan) };
    });
    if (plan === undefined) throw new DevstateError('DEVSTATE_E_INTERNAL', 'nothing was negotiated');
    return { ...result, negotiation: summarisePlan(plan) };
  } finally {
    old.close();
  }
}

async function negotiate(
  old: MigrationClient,
  successor: MigrationClient,
  { format = 'auto', allowLossy = false }: UpgradeOptions,
): Promise<StatePlan> {
  const [source, destination] = [await askPeer(old), await askPeer(successor)];
  // Between two processes of one machine nothing converts: the format is one that both have.
  const planned = planState(source, destination, { format, allowLossy }, []);
  const reasons = planReasons(planned);
  for (const [peer, who] of [
    [source, 'old server'],
    [destination, 'successor'],
  ] as const)
    if (peer.interface !== 'formats') reasons.push(`the ${who} offers no format for its state`);
  if (reasons.length > 0)
    throw new DevstateError(
      'DEVSTATE_E_INCOMPATIBLE',
      `the successor cannot continue the work: ${reasons.join('; ')}`,
    );
  return planned.plan;
}

function formatOf({ negotiation }: StatePlan): HandoffRequest['format'] {
  const taken = negotiation?.taken;
  if (taken === undefined) throw new DevstateError('DEVSTATE_E_INTERNAL', 'a plan without a format');
  return { uuid: taken.to.uuid, ...taken.to.version };
}
