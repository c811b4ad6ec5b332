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
 * The source can go on until `cont`: every failure before it, cancellation included, ends in `rollback`.
 */

import { asDevstateError, DevstateError } from '../../errors.js';
import { formatVersionText } from '../../formats/index.js';
import { queryMigration } from '../../qemu/index.js';
import { limitsOf } from '../limits.js';
import { summarisePlan } from '../state-plan.js';
import { check } from './check.js';
import { watchVm, whyNot } from './guest.js';
import { commit, type LandTimes, land } from './land.js';
import { precopy } from './precopy.js';
import { causeOf } from './reasons.js';
import { rollback } from './rollback.js';
import { closeRun, type Run, runsAtSource, Stopwatch } from './run.js';
import { type SwitchoverTimes, switchover } from './switchover.js';
import type { Downtime, MigrateOptions, MigrateProgress, MigrateResult } from './types.js';

export interface MigrateHooks {
  /** Cancels: the source goes on, the operation rejects with DEVSTATE_E_CANCELLED. */
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
  let run: Run;
  try {
    run = await check(options, limits.signal, hooks.progress ?? (() => {}));
  } catch (error) {
    limits.clear();
    throw inPhase('check', error);
  }
  watchServers(run, limits.abort);
  watchVm(run, limits.abort);
  try {
    return await moveVm(run, stopwatch);
  } catch (error) {
    const phase = run.phase;
    const reason = whyNot(run) ?? (await causeOf(run, error));
    const { left, problems, remarks } = await rollback(run);
    throw problems.length === 0
      ? inPhase(phase, reason, [left, ...remarks])
      : rollbackError(phase, reason, problems);
  } finally {
    limits.clear();
    closeRun(run);
  }
}

async function moveVm(run: Run, stopwatch: Stopwatch): Promise<MigrateResult> {
  const checkMs = stopwatch.lap();
  await precopy(run);
  const precopyMs = stopwatch.lap();
  const switchoverTimes = await switchover(run);
  const switchoverMs = stopwatch.lap();
  const landTimes = await land(run);
  const landMs = stopwatch.lap();
  await commit(run);
  const phases = {
    check: checkMs,
    precopy: precopyMs,
    switchover: switchoverMs,
    land: landMs,
    commit: stopwatch.lap(),
  };
  return summarise(
    run,
    phases,
    downtimeOf(run, switchoverTimes, landTimes),
    landTimes.pageBytes,
    stopwatch.elapsed,
  );
}

function downtimeOf(run: Run, before: SwitchoverTimes, after: LandTimes): Downtime {
  const { quiesceMs, captureMs, saveMs, dirtyLogMs } = before;
  const { qemuMs, loadMs, pagesMs, replayMs, resumeMs } = after;
  const stopped = run.source.watch.stopped?.receivedMs;
  const resumed = run.destination.watch.resumed?.receivedMs;
  const devstateMs = before.wallMs + after.wallMs;
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

async function summarise(
  run: Run,
  phases: MigrateResult['phases'],
  downtime: Downtime,
  pageBytes: number,
  totalMs: number,
): Promise<MigrateResult> {
  const sum = (of: (device: Run['devices'][number]) => number): number =>
    run.devices.reduce((all, one) => all + of(one), 0);
  const ram = await queryMigration(run.source.qmp).then(
    (progress) => progress.ram.transferredBytes,
    () => 0,
  );
  return {
    status: 'completed',
    running: runsAtSource(run),
    phases,
    totalMs,
    downtime,
    expected: run.pause?.expected,
    bytes: {
      ram,
      precopy: sum(({ precopyBytes }) => precopyBytes),
      stop: sum(({ stopBytes }) => stopBytes),
      pages: pageBytes,
    },
    dirtyPages: sum(({ dirty }) => dirty.count),
    devices: run.devices.map((device) => {
      const format = device.plan.negotiation?.taken?.from;
      return {
        id: device.id,
        model: device.description?.model.uri,
        format:
          format === undefined
            ? undefined
            : { uuid: format.uuid, name: format.name, version: formatVersionText(format.version) },
        negotiation: summarisePlan(device.plan),
        precopyBytes: device.precopyBytes,
        stopBytes: device.stopBytes,
        dirtyPages: device.dirty.count,
        byMessage: device.byMessage,
      };
    }),
    warnings: run.warnings,
  };
}

/** A device server that is lost ends the migration when it is lost, not when it is next needed; unless it never is. */
function watchServers(run: Run, abort: (reason: DevstateError) => void): void {
  for (const { id, source, destination } of run.devices) {
    for (const [where, { device, path }] of [
      ['source', source],
      ['destination', destination],
    ] as const) {
      void device.client.closed().then(() => {
        if (where === 'source' && run.sourceSpent) return;
        const message = `device ${id}: its ${where} server (${path}) has closed the connection; see whether it still runs`;
        abort(new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', message));
      });
    }
  }
}

/** The error with the phase it came from. Its code and exit code stay. */
function inPhase(phase: string, error: unknown, remarks: readonly string[] = []): DevstateError {
  const { code, message, errno } = asDevstateError(error);
  return new DevstateError(code, [`${phase}: ${message}`, ...remarks].join('; '), {
    cause: error,
    ...(errno === undefined ? {} : { errno }),
  });
}

function rollbackError(phase: string, error: unknown, problems: readonly string[]): DevstateError {
  const { message } = asDevstateError(error);
  const what = `${phase}: ${message}; and the source could not be put back: ${problems.join('; ')}`;
  return new DevstateError('DEVSTATE_E_ROLLBACK', `${what}. Mend that, then run devstate recover`, {
    cause: error,
  });
}
