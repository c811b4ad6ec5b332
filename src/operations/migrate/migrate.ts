// SPDX-License-Identifier: Apache-2.0
/**
 * Live migration of a VM with vfio-user devices between two stock QEMUs.
 *
 *     manager          source QEMU        source server      destination server     destination QEMU
 *        │ check ─────────▶│                  │                      │                     │
 *        │ DMA log, PRE_COPY ────────────────▶│                      │                     │
 *        │ RESUMING ────────────────────────────────────────────────▶│                     │
 *        │ migrate ───────▶│═══════════════ RAM ══════════════════════════════════════════▶│
 *        │◀ pre-switchover │                  │                      │                     │
 *        │ STOP_COPY ────────────────────────▶│                      │                     │
 *        │ capture, silence INTx ▶│           │                      │                     │
 *        │◀═════════════════════════ state ═══│═════════════════════▶│                     │
 *        │ migrate-continue ▶│═══════════════ the rest ═════════════════════════════════▶│
 *        │ STOP (commit the load), meanwhile ───────────────────────▶│                     │
 *        │◀ completed ═════│                  │                      │                     │
 *        │ dirty pages ─────────────────────────────────────────────▶│                     │
 *        │ replay ────────────────────────────────────────────────────────────────────────▶│
 *        │ RUNNING ─────────────────────────────────────────────────▶│                     │
 *        │ cont ──────────────────────────────────────────────────────────────────────────▶│
 *        │ STOP (released) ──────────────────▶│
 *
 * The source can continue until `cont`: every failure before it, cancellation included, ends in `rollback`.
 */

import { DevstateError } from '../../errors.js';
import { formatVersionText } from '../../formats/index.js';
import { queryMigration } from '../../qemu/index.js';
import {
  Course,
  checking,
  inPhases,
  type Limits,
  limitsOf,
  lostServer,
  type Reach,
  watchServer,
} from '../phased.js';
import { summarisePlan } from '../state-plan.js';
import { Stopwatch } from '../stopwatch.js';
import { check } from './check.js';
import { commit } from './commit.js';
import { watchVm, whyNot } from './guest.js';
import { land } from './land.js';
import { type CapturedDevice, closeParties, type Parties } from './parties.js';
import { needsSourceServers, phaseOf, type Revocable, type State, watchedOf } from './phases.js';
import { precopy } from './precopy.js';
import { causeOf as reasonOf } from './reasons.js';
import { rollback } from './rollback.js';
import { switchover } from './switchover.js';
import type { Downtime, MigrateOptions, MigrateProgress, MigrateResult } from './types.js';

/** How long the source's QEMU may take to say how much it has sent, when the VM has left it, ms. */
const ACCOUNT_MS = 5000;

export interface MigrateHooks {
  /** Cancels: the source continues, the operation rejects with DEVSTATE_E_CANCELLED. */
  readonly signal?: AbortSignal;
  readonly progress?: (progress: MigrateProgress) => void;
}

/**
 * Moves the VM and its devices. When it rejects, the VM and its devices run at the source as before, unless the error
 * is DEVSTATE_E_ROLLBACK.
 */
export async function migrate(options: MigrateOptions, hooks: MigrateHooks = {}): Promise<MigrateResult> {
  const stopwatch = new Stopwatch();
  const limits = limitsOf('the migration', options.timeoutMs, hooks.signal);
  try {
    const checked = await checking(check(options, limits.signal, hooks.progress ?? (() => {})));
    try {
      const course = new Course<Revocable>(checked);
      watchServers(course, limits.abort);
      const unwatch = watchVm(() => watchedOf(course.state), limits.abort);
      return await summarise(
        await inPhases(course, {
          proceed: (reach) => moveVm(checked, reach, stopwatch),
          phaseOf,
          causeOf,
          rollback: (state) => {
            unwatch();
            return rollback(state);
          },
          stuck: (problems) =>
            `and the source could not be put back: ${problems}. Mend that, then run devstate recover`,
        }),
        stopwatch,
      );
    } finally {
      closeParties(checked);
    }
  } finally {
    limits.clear();
  }
}

interface Moved {
  readonly committed: State<'committed'>;
  /** How long each phase took, ms. */
  readonly phases: MigrateResult['phases'];
}

async function moveVm(
  checked: State<'checked'>,
  reach: Reach<Revocable>,
  stopwatch: Stopwatch,
): Promise<Moved> {
  const checkMs = stopwatch.lap();
  const atSwitchover = await precopy(checked, reach);
  const precopyMs = stopwatch.lap();
  const stopped = await switchover(atSwitchover, reach);
  const switchoverMs = stopwatch.lap();
  const landed = await land(stopped, reach);
  const landMs = stopwatch.lap();
  const committed = await commit(landed, reach);
  return {
    committed,
    phases: {
      check: checkMs,
      precopy: precopyMs,
      switchover: switchoverMs,
      land: landMs,
      commit: stopwatch.lap(),
    },
  };
}

function downtimeOf({ source, destination, saved, landed }: State<'committed'>): Downtime {
  const { quiesceMs, captureMs, saveMs, dirtyLogMs } = saved;
  const { qemuMs, loadMs, pagesMs, replayMs, resumeMs } = landed;
  const stopped = source.watch.stopped?.receivedMs;
  const resumed = destination.watch.resumed?.receivedMs;
  const devstateMs = saved.wallMs + landed.wallMs;
  // A VM that was paused before has no downtime of its own: what the operation took stands in for it.
  const totalMs = stopped !== undefined && resumed !== undefined ? resumed - stopped : devstateMs + qemuMs;
  return {
    totalMs,
    quiesceMs,
    captureMs,
    saveMs,
    dirtyLogMs,
    qemuMs,
    loadMs,
    pagesMs,
    replayMs,
    resumeMs,
    devstateMs,
  };
}

async function summarise({ committed, phases }: Moved, stopwatch: Stopwatch): Promise<MigrateResult> {
  const { source, devices, pause, landed, running, warnings } = committed;
  const totalMs = stopwatch.elapsed;
  const downtime = downtimeOf(committed);
  const sum = (of: (device: CapturedDevice) => number): number =>
    devices.reduce((all, one) => all + of(one), 0);
  const ram = await queryMigration(source.qmp, { signal: AbortSignal.timeout(ACCOUNT_MS) }).then(
    (progress) => progress.ram.transferredBytes,
    () => 0,
  );
  return {
    status: 'completed',
    running,
    phases,
    totalMs,
    downtime,
    expected: pause.expected,
    bytes: {
      ram,
      precopy: sum(({ stream }) => stream.precopyBytes),
      stop: sum(({ stream }) => stream.stopBytes),
      pages: landed.pageBytes,
    },
    dirtyPages: sum(({ dirty }) => dirty.count),
    devices: devices.map((device) => {
      const format = device.plan.negotiation?.taken?.from;
      return {
        id: device.id,
        model: device.description?.model.uri,
        format:
          format === undefined
            ? undefined
            : { uuid: format.uuid, name: format.name, version: formatVersionText(format.version) },
        negotiation: summarisePlan(device.plan),
        precopyBytes: device.stream.precopyBytes,
        stopBytes: device.stream.stopBytes,
        dirtyPages: device.dirty.count,
        byMessage: pause.writesByMessage(device),
      };
    }),
    warnings,
  };
}

/** The source's servers are needed until they have nothing more to give. */
function watchServers(course: Course<Revocable>, abort: Limits['abort']): void {
  for (const { id, source, destination } of course.state.devices) {
    watchServer(id, 'source server', source, abort, () => needsSourceServers(course.state));
    watchServer(id, 'destination server', destination, abort);
  }
}

/** Why a migration has failed: what explains it best. */
async function causeOf(state: Revocable, error: unknown): Promise<unknown> {
  const known = whyNot(watchedOf(state)) ?? whichServer(state, error);
  // That it has failed is no explanation: one of the two QEMUs knows why.
  return known === undefined || isFailure(known, state) ? reasonOf(state, known ?? error) : known;
}

function isFailure({ code }: DevstateError, { source }: Parties): boolean {
  return code === 'DEVSTATE_E_QEMU_MIGRATION' && source.watch.history.at(-1) === 'failed';
}

/** A request that was under way when a server was lost fails before the watch does, and does not say whose it was. */
function whichServer({ devices }: Parties, error: unknown): DevstateError | undefined {
  if (!(error instanceof DevstateError) || error.code !== 'DEVSTATE_E_CONNECTION_CLOSED') return undefined;
  for (const { id, source, destination } of devices) {
    if (source.device.client.isClosed) return lostServer(id, 'source server', source);
    if (destination.device.client.isClosed) return lostServer(id, 'destination server', destination);
  }
  return undefined;
}
