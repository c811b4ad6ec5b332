// SPDX-License-Identifier: Apache-2.0
/**
 * QEMU replaced by another QEMU under its VM, with the vfio-user devices that it has: the same servers, which notice
 * that their VMM is another one and nothing else.
 *
 *     manager          old QEMU          device server          new QEMU
 *        │ await ───────────────────────────▶│                     │
 *        │ (cpr-transfer) start ──────────────────────────────────▶│
 *        │ migrate ──────▶│════════════ state ════════════════════▶│
 *        │                │                  │◀═══ second VMM ═════│  an understudy
 *        │◀ pre-switchover│                  │                     │
 *        │ STOP ────────────────────────────▶│                     │
 *        │ capture, silence INTx ▶│          │                     │
 *        │ migrate-continue ▶│══════════════ the rest ════════════▶│
 *        │ promote ─────────────────────────▶│                     │
 *        │ replay ─────────────────────────────────────────────────▶│
 *        │ RUNNING ─────────────────────────▶│                     │
 *        │ cont ───────────────────────────────────────────────────▶│
 *        │ quit ─────────▶│                  │
 *        │ commit ──────────────────────────▶│
 *
 * With cpr-transfer the old one can go on until `cont`: every failure before it, cancellation included, ends in
 * `rollback`. With cpr-exec there is no old one from `migrate-continue` on.
 */

import { asDevstateError, DevstateError } from '../../errors.js';
import { IntxError } from '../../qemu/index.js';
import { limitsOf } from '../limits.js';
import { watchVm, whyNot } from '../migrate/guest.js';
import { runsAtSource, Stopwatch } from '../migrate/run.js';
import { delay } from '../waiting.js';
import { check } from './check.js';
import { connect, start } from './connect.js';
import { commit, destinationOf, land, switchover } from './land.js';
import { rollback } from './rollback.js';
import { closeUpgradeRun, type UpgradeRun } from './run.js';
import type { UpgradedDevice, UpgradeQemuHooks, UpgradeQemuOptions, UpgradeQemuResult } from './types.js';

/** How long a new QEMU that has failed may take to end, ms. */
const ENDING_MS = 1000;
/** Codes of errors that may come of a new QEMU that has ended. */
const SECOND_HAND: readonly string[] = [
  'DEVSTATE_E_QEMU_MIGRATION',
  'DEVSTATE_E_QMP_CLOSED',
  'DEVSTATE_E_QTEST',
  'DEVSTATE_E_REFUSED',
];

/** How often a guest that resets its device may hit the moment at which that has no message signalled interrupts. */
const MAX_ATTEMPTS = 5;

/**
 * When it rejects, the VM runs in the old QEMU as before, unless the error is DEVSTATE_E_ROLLBACK. A device that was reset when
 * the VM stood, and that its driver has not set up again, ends the attempt, not the upgrade.
 */
export async function upgradeQemu(
  options: UpgradeQemuOptions,
  hooks: UpgradeQemuHooks = {},
): Promise<UpgradeQemuResult> {
  const stopwatch = new Stopwatch();
  for (let attempt = 1; ; attempt++) {
    try {
      return await upgradeOnce(options, hooks, stopwatch.elapsed);
    } catch (error) {
      const isPassing = error instanceof DevstateError && error.cause instanceof IntxError;
      if (!isPassing || attempt === MAX_ATTEMPTS || hooks.signal?.aborted === true) throw error;
    }
  }
}

/** @param spentMs what earlier attempts have used of the time */
async function upgradeOnce(
  options: UpgradeQemuOptions,
  hooks: UpgradeQemuHooks,
  spentMs: number,
): Promise<UpgradeQemuResult> {
  const stopwatch = new Stopwatch();
  const limits = limitsOf('the upgrade', options.timeoutMs, hooks.signal, spentMs);
  let run: UpgradeRun;
  try {
    run = await check(options, limits.signal, hooks.progress ?? (() => {}));
  } catch (error) {
    limits.clear();
    throw inPhase('check', error);
  }
  for (const { id, source } of run.devices) {
    void source.device.client.closed().then(() => {
      const message = `device ${id}: its server (${source.path}) has closed the connection; see whether it still runs`;
      limits.abort(new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', message));
    });
  }
  watchVm(run, limits.abort);
  try {
    return await replace(run, stopwatch, limits.abort);
  } catch (error) {
    const { phase } = run;
    const reason = whyNot(run) ?? (await causeOf(run, error));
    const { left, problems, remarks } = await rollback(run);
    throw problems.length === 0
      ? inPhase(phase, reason, [left, ...remarks])
      : rollbackError(phase, reason, problems);
  } finally {
    limits.clear();
    closeUpgradeRun(run);
  }
}

async function replace(
  run: UpgradeRun,
  stopwatch: Stopwatch,
  abort: (reason: DevstateError) => void,
): Promise<UpgradeQemuResult> {
  const checkMs = stopwatch.lap();
  await start(run);
  watchProcess(run, abort);
  const startMs = stopwatch.lap();
  await connect(run);
  const connectMs = stopwatch.lap();
  const before = await switchover(run);
  const switchoverMs = stopwatch.lap();
  const after = await land(run);
  const landMs = stopwatch.lap();
  await commit(run);
  const commitMs = stopwatch.lap();
  const { qmp, watch } = destinationOf(run);
  const { major, minor, micro } = qmp.version;
  const stopped = run.source.watch.stopped?.receivedMs;
  const resumed = watch.resumed?.receivedMs;
  return {
    status: 'completed',
    mode: run.options.mode,
    running: runsAtSource(run),
    pid: run.process?.pid,
    version: `${major}.${minor}.${micro}`,
    phases: {
      check: checkMs,
      start: startMs,
      connect: connectMs,
      switchover: switchoverMs,
      land: landMs,
      commit: commitMs,
    },
    totalMs: stopwatch.elapsed,
    downtime: {
      // A VM that was paused before has no downtime of its own: what the operation took stands in for it.
      totalMs: stopped !== undefined && resumed !== undefined ? resumed - stopped : switchoverMs + landMs,
      ...before,
      ...after,
    },
    devices: await Promise.all(run.devices.map(account)),
    warnings: run.warnings,
  };
}

/** What became of the resets that a new QEMU begins with. */
async function account({ id, source, before }: UpgradeRun['devices'][number]): Promise<UpgradedDevice> {
  const after = await source.device.nextVmm();
  return {
    id,
    resets: after.resets - before.resets,
    absorbed: {
      resets: after.absorbed.resets - before.absorbed.resets,
      configWrites: after.absorbed.configWrites - before.absorbed.configWrites,
    },
  };
}

/** The old QEMU knows that the new one has failed, and the new one, which ends, says why. */
async function causeOf({ process }: UpgradeRun, error: unknown): Promise<unknown> {
  const isSecondHand = error instanceof DevstateError && SECOND_HAND.includes(error.code);
  if (process === undefined || !isSecondHand) return error;
  await Promise.race([process.exited, delay(ENDING_MS)]);
  if (process.ended === undefined || error.message.includes(process.ended)) return error;
  const message = `${error.message}; the new QEMU ${process.ended}`;
  return new DevstateError('DEVSTATE_E_QEMU_MIGRATION', message, { cause: error });
}

/** A new QEMU that ends, ends the upgrade when it does, not when it is next needed. */
function watchProcess({ process }: UpgradeRun, abort: (reason: DevstateError) => void): void {
  void process?.exited.then(() => {
    const message = `the new QEMU ${process.ended}`;
    abort(new DevstateError('DEVSTATE_E_QEMU_MIGRATION', message));
  });
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
  const what = `${phase}: ${message}; and the VM could not be put back: ${problems.join('; ')}`;
  return new DevstateError('DEVSTATE_E_ROLLBACK', what, { cause: error });
}
