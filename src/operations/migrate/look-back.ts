// SPDX-License-Identifier: Apache-2.0
/** What others have done to the VM at its source while it left, once it is at the destination: put right, and told as warnings. */

import { deviceType, queryRunState, stopVm } from '../../qemu/index.js';
import type { Parties } from './parties.js';

/** How long a QEMU may take to answer, ms. */
const ANSWER_MS = 30_000;

export async function lookBack(parties: Parties): Promise<void> {
  await stopSource(parties);
  await tellRemoved(parties);
}

/** Between our last look and the destination's `cont` QEMU takes a `cont` at the source, and then the VM runs twice. */
async function stopSource({ source: { qmp }, warnings }: Parties): Promise<void> {
  const signal = AbortSignal.timeout(ANSWER_MS);
  const { status } = await queryRunState(qmp, { signal });
  if (status !== 'running' && status !== 'suspended') return;
  await stopVm(qmp, { signal });
  const what = 'another client of QEMU has resumed the VM at the source (cont) when it had left';
  warnings.push(
    `${what}: it was stopped there again; until then it ran at both ends, at the source without its devices`,
  );
}

/** QEMU's stream says nothing of a device that was removed, and the destination keeps its own. */
async function tellRemoved(parties: Parties): Promise<void> {
  const { source, destination, warnings } = parties;
  const signal = AbortSignal.timeout(ANSWER_MS);
  for (const id of source.guest.guest.removed) {
    const type = await deviceType(destination.qmp, id, { signal });
    if (type === undefined) continue;
    const what = `device ${id} (${type}) was removed from the VM while it was migrated`;
    warnings.push(`${what}, and the destination QEMU has it still: remove it there (device_del ${id})`);
  }
}
