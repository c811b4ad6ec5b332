// SPDX-License-Identifier: Apache-2.0
/**
 * The VM lives on while it is moved, and its guest, or another client of QEMU, may do anything to it meanwhile. Here is
 * what that means for the operation, from the moment it knows the VM until the VM runs elsewhere:
 *
 *     what happens                     precopy, connect            switchover              land
 *     reset, reboot, wake-up           device streams begin anew   all is saved anew       the VM is reset there before it runs
 *     stopped, resumed                 arrives like that           QEMU refuses            `cont`: back to the source, which runs
 *     sleeps (S3)                      arrives sleeping            -                       -
 *     powered off, panicked, failed    ends; left as it is         -                       -
 *     QEMU told to quit                ends; the VM is gone        ends; the VM is gone    ends; the VM is gone
 *     device removed                   ends; the VM runs on        -                       ends; back to the source
 *     QEMU's migration cancelled       ends; the VM runs on        ends; the VM runs on    -
 *     VM run at the destination        not before it has arrived   not before              ends; neither side runs
 *
 * A dash: QEMU does not let it happen, as the CPUs stand.
 *
 * What is read early and used late, and what makes it true then:
 *
 *     run state                      events since it was read (GuestWatch), asked again before migrate-continue, before the
 *                                    destination's `cont`, in rollback and in recover
 *     a device's migration state     asked before each round of pre-copy and when the VM stands: a reset has made it RUNNING
 *     where QEMU has a device        asked again at the stop and at the destination: bus numbers are the guest's, and a
 *                                    reset clears those of bridges, which get one while their device is read or written
 *     BARs, COMMAND, MSI-X, INTx     read when the VM stands; read anew after a reset; COMMAND is put back only if it is
 *                                    still what was written to silence INTx
 *     memory ranges of a device      asked before each use; what is refused because they changed is asked for again
 *     the log of dirty pages         outlives a reset in our servers; where it does not its next report is refused, and the
 *                                    migration ends
 *     QEMU's migration status        events; `pre-switchover` is asked for before migrate-continue
 *     that the destination waits     `stop` is sent once more before the rest: somebody may have sent `cont`
 *     configuration space of the destination's fresh device (`like`), models, parameters, formats, namespaces
 *                                    cannot change: of a server's start, and the destination has run no guest
 *     capabilities of the two QEMUs  QEMU refuses to change them while it migrates; changed before, it passes
 *                                    `pre-switchover` by, which is noticed
 */

import { DevstateError } from '../../errors.js';
import {
  continueMigration,
  type Guest,
  type QmpClient,
  queryMigration,
  queryRunState,
  stopVm,
} from '../../qemu/index.js';
import { connectIfThere } from './destination-vm.js';
import type { Vm } from './run.js';

/** As much of an operation as is needed here. */
export interface WatchedRun {
  readonly source: Vm;
  readonly destination?: Vm | undefined;
  readonly devices: readonly { readonly id: string }[];
  readonly phase: string;
  /** The destination has all that there is: the source's QEMU may end. */
  readonly sourceSpent?: boolean;
  /** How things stood when the VM's CPUs had been stopped by QEMU's migration and nothing had been saved; undefined until then. */
  readonly stand: Stand | undefined;
}

/** A moment: what comes later is seen by the difference. */
export interface Stand {
  readonly resets: number;
  readonly resumes: number;
}

/** Phases in which the VM is the source's, and the source's QEMU has it stopped for us. */
const STANDING: readonly string[] = ['switchover', 'land'];
/** Phases in which nothing is watched any more. */
const OVER: readonly string[] = ['commit', 'rollback'];

/** What has happened so far. */
export interface Facts {
  readonly guest: Guest;
  /** How often the VM's CPUs were started at the destination. */
  readonly resumesThere: number;
  /** Statuses of QEMU's migration at the source. */
  readonly history: readonly string[];
  /** The devices that are moved. */
  readonly ids: readonly string[];
  readonly phase: string;
  readonly stand: Stand | undefined;
  readonly sourceSpent: boolean;
}

/** Why an operation cannot go on. Pure. */
export function obstacle(facts: Facts): DevstateError | undefined {
  const { guest, resumesThere, history, ids, phase, stand, sourceSpent } = facts;
  if (OVER.includes(phase)) return undefined;
  if (resumesThere > 0) {
    const message = 'another client of QEMU has run the VM at the destination, before its devices were there';
    return new DevstateError('DEVSTATE_E_VM_CHANGED', message);
  }
  if (guest.ended !== undefined && !sourceSpent) return new DevstateError('DEVSTATE_E_VM_ENDED', guest.ended);
  const removed = ids.filter((id) => guest.removed.has(id));
  if (removed.length > 0) {
    const message = `device ${removed.join(', ')} was removed from the VM (device_del)`;
    return new DevstateError('DEVSTATE_E_VM_CHANGED', message);
  }
  const status = history.at(-1);
  if (status === 'cancelling' || status === 'cancelled') {
    const message = "another client of QEMU has cancelled QEMU's migration (migrate_cancel)";
    return new DevstateError('DEVSTATE_E_QEMU_MIGRATION', message);
  }
  // In the other phases somebody waits for it, and says more.
  if (status === 'failed' && phase === 'switchover') {
    const message = "QEMU's migration failed; see what the destination's QEMU said on its stderr";
    return new DevstateError('DEVSTATE_E_QEMU_MIGRATION', message);
  }
  // Before it has completed QEMU refuses `cont`, and resumes the VM itself when its migration fails.
  const hasResumed = stand !== undefined && guest.resumes > stand.resumes && status === 'completed';
  if (STANDING.includes(phase) && hasResumed) {
    const message = 'another client of QEMU has resumed the VM (cont)';
    return new DevstateError('DEVSTATE_E_VM_CHANGED', message);
  }
  return undefined;
}

/** Ends an operation as soon as its VM cannot be moved any more. */
export function watchVm(run: WatchedRun, abort: (reason: DevstateError) => void): void {
  const { guest: watch, watch: migration } = run.source;
  const there = run.destination?.guest;
  const look = (): void => {
    const reason = whyNot(run);
    if (reason !== undefined) abort(reason);
  };
  watch.onChange = look;
  migration.onStatus = look;
  if (there !== undefined) there.onChange = look;
  look();
}

/** What of all that has happened explains a failure best: what a device server or a socket says came of it. */
export function whyNot(run: WatchedRun): DevstateError | undefined {
  return obstacle({
    guest: run.source.guest.guest,
    resumesThere: run.destination?.guest.guest.resumes ?? 0,
    history: run.source.watch.history,
    ids: run.devices.map(({ id }) => id),
    phase: run.phase,
    stand: run.stand,
    sourceSpent: run.sourceSpent === true,
  });
}

/** The moment from which on nothing may change unnoticed: everything is read after it. */
export function standOf({ source }: Pick<WatchedRun, 'source'>): Stand {
  const { resets, resumes } = source.guest.guest;
  return { resets, resumes };
}

/** Whether the VM was reset since. QEMU has been asked before, or just now. */
export function wasResetSince({ source }: Pick<WatchedRun, 'source'>, stand: Stand | undefined): boolean {
  return stand !== undefined && source.guest.guest.resets > stand.resets;
}

/**
 * Looks once more, right before QEMU sends the rest. The answer comes after every event from before it.
 * @throws when the VM cannot be moved any more
 */
export async function requireStanding(run: WatchedRun, signal: AbortSignal): Promise<void> {
  const { source } = run;
  const [{ status }, migration] = await Promise.all([
    queryRunState(source.qmp, { signal }),
    queryMigration(source.qmp, { signal }),
  ]);
  throwObstacle(run);
  if (status === 'finish-migrate' && migration.status === 'pre-switchover') return;
  const message = `the VM is ${status} and QEMU's migration ${migration.status}, where the VM was to stand at pre-switchover: another client of QEMU has changed it`;
  throw new DevstateError('DEVSTATE_E_VM_CHANGED', message);
}

/** Has QEMU send the rest, to a destination that waits for its `cont`, whatever somebody has told it since. */
export async function continueToWaiting(
  { source, destination }: { source: Vm; destination: Vm },
  signal: AbortSignal,
): Promise<void> {
  // Not waited for: it is with the destination's QEMU before the rest is, and that may take its time.
  const waits = stopVm(destination.qmp, { signal });
  waits.catch(() => {});
  await continueMigration(source.qmp, { signal });
}

/** Looks once more, right before the VM is run elsewhere. @throws when it runs here, or was run there */
export async function requireStopped(run: WatchedRun, signal: AbortSignal): Promise<void> {
  const status = await statusOf(run.source.qmp, signal);
  throwObstacle(run);
  if (status !== 'running' && status !== 'suspended') return;
  throw new DevstateError('DEVSTATE_E_VM_CHANGED', `the VM is ${status} at the source: it was resumed there`);
}

/** QEMU's run state; undefined when it has ended, and so runs nothing. */
async function statusOf(qmp: QmpClient, signal: AbortSignal): Promise<string | undefined> {
  try {
    return (await queryRunState(qmp, { signal })).status;
  } catch (error) {
    if (signal.aborted || !(error instanceof DevstateError) || error.code !== 'DEVSTATE_E_QMP_CLOSED')
      throw error;
    const again = await connectIfThere(qmp.path, signal);
    if (again === undefined) return undefined;
    again.close();
    throw error;
  }
}

function throwObstacle(run: WatchedRun): void {
  const reason = whyNot(run);
  if (reason !== undefined) throw reason;
}

/** Resets a VM that has arrived and does not run yet, as it was reset where it came from after its state had been saved. */
export async function resetArrived({ qmp, guest }: Vm, signal: AbortSignal): Promise<void> {
  const before = guest.guest.resets;
  const done = qmp.waitForEvent('RESET', { signal });
  await qmp.execute('system_reset', { signal });
  if (guest.guest.resets === before) await done;
}
