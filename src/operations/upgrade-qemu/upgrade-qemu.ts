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
 * With cpr-transfer the old one can continue until `cont`: every failure before it, cancellation included, ends in
 * `rollback`. With cpr-exec there is no old one from `migrate-continue` on.
 */

import { DevstateError } from '../../errors.js';
import { IntxError } from '../../qemu/index.js';
import { watchVm, whyNot } from '../migrate/guest.js';
import {
  Course,
  checking,
  inPhases,
  type Limits,
  limitsOf,
  type Reach,
  warn,
  watchServer,
} from '../phased.js';
import { Stopwatch } from '../stopwatch.js';
import { delay } from '../waiting.js';
import { check } from './check.js';
import { commit } from './commit.js';
import { connect, start } from './connect.js';
import { land } from './land.js';
import { closeParties, type UpgradeDevice } from './parties.js';
import {
  destinationOf,
  isStateInFile,
  newProcess,
  phaseOf,
  type Revocable,
  type State,
  watchedOf,
} from './phases.js';
import { rollback } from './rollback.js';
import { switchover } from './switchover.js';
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
  const { abort } = limits;
  try {
    const checked = await checking(check(options, limits.signal, hooks.progress ?? (() => {})));
    const course = new Course<Revocable>(checked);
    try {
      for (const { id, source } of checked.devices) watchServer(id, 'server', source, abort);
      const unwatch = watchVm(() => watchedOf(course.state), abort);
      return await summarise(
        await inPhases(course, {
          proceed: (reach) => replace(checked, reach, stopwatch, abort),
          phaseOf,
          causeOf: async (state, error) => whyNot(watchedOf(state)) ?? (await causeOf(state, error)),
          rollback: (state) => {
            unwatch();
            return rollback(state);
          },
          stuck: (problems) => `and the VM could not be put back: ${problems}`,
        }),
        stopwatch,
      );
    } finally {
      const { state } = course;
      closeParties(checked, destinationOf(state), isStateInFile(state));
    }
  } finally {
    limits.clear();
  }
}

interface Moved {
  readonly committed: State<'committed'>;
  /** How long each phase took, ms. */
  readonly phases: UpgradeQemuResult['phases'];
}

async function replace(
  checked: State<'checked'>,
  reach: Reach<Revocable>,
  stopwatch: Stopwatch,
  abort: Limits['abort'],
): Promise<Moved> {
  const checkMs = stopwatch.lap();
  const configured = await start(checked, reach);
  watchProcess(configured, abort);
  const startMs = stopwatch.lap();
  const atSwitchover = await connect(configured, reach);
  const connectMs = stopwatch.lap();
  const stopped = await switchover(atSwitchover, reach);
  const switchoverMs = stopwatch.lap();
  const landed = await land(stopped, reach);
  const landMs = stopwatch.lap();
  const committed = await commit(landed, reach);
  return {
    committed,
    phases: {
      check: checkMs,
      start: startMs,
      connect: connectMs,
      switchover: switchoverMs,
      land: landMs,
      commit: stopwatch.lap(),
    },
  };
}

async function summarise({ committed, phases }: Moved, stopwatch: Stopwatch): Promise<UpgradeQemuResult> {
  const { options, source, destination, devices, running, warnings } = committed;
  const { major, minor, micro } = destination.qmp.version;
  // The VM runs in the new QEMU: a server that is lost now is no reason to say otherwise.
  const accounts = await Promise.all(
    devices.map((device) =>
      account(device).catch((error: unknown): [] => {
        warn(committed, `device ${device.id}: what was kept from it is unknown: `)(error);
        return [];
      }),
    ),
  );
  const began = source.watch.stopped?.receivedMs;
  const resumed = destination.watch.resumed?.receivedMs;
  return {
    status: 'completed',
    mode: options.mode,
    running,
    pid: newProcess(committed)?.process.pid,
    version: `${major}.${minor}.${micro}`,
    phases,
    totalMs: stopwatch.elapsed,
    downtime: {
      // A VM that was paused before has no downtime of its own: what the operation took stands in for it.
      totalMs:
        began !== undefined && resumed !== undefined ? resumed - began : phases.switchover + phases.land,
      ...committed.stopped,
      ...committed.landed,
    },
    devices: accounts.flat(),
    warnings,
  };
}

/** What became of the resets that a new QEMU begins with. */
async function account({ id, source, before }: UpgradeDevice): Promise<UpgradedDevice[]> {
  const after = await source.device.nextVmm();
  const absorbed = {
    resets: after.absorbed.resets - before.absorbed.resets,
    configWrites: after.absorbed.configWrites - before.absorbed.configWrites,
  };
  return [{ id, resets: after.resets - before.resets, absorbed }];
}

/** The old QEMU knows that the new one has failed, and the new one, which ends, says why. */
async function causeOf(state: Revocable, error: unknown): Promise<unknown> {
  const process = newProcess(state)?.process;
  const isSecondHand = error instanceof DevstateError && SECOND_HAND.includes(error.code);
  if (process === undefined || !isSecondHand) return error;
  await Promise.race([process.exited, delay(ENDING_MS)]);
  if (process.ended === undefined || error.message.includes(process.ended)) return error;
  const message = `${error.message}; the new QEMU ${process.ended}`;
  return new DevstateError('DEVSTATE_E_QEMU_MIGRATION', message, { cause: error });
}

/** A new QEMU that ends, ends the upgrade when it does, not when it is next needed. */
function watchProcess(configured: State<'configured'>, abort: Limits['abort']): void {
  const process = newProcess(configured)?.process;
  void process?.exited.then(() => {
    const message = `the new QEMU ${process.ended}`;
    abort(new DevstateError('DEVSTATE_E_QEMU_MIGRATION', message));
  });
}
