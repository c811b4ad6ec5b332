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
 *     VM reset at the destination      ends; the VM runs on        ends; the VM runs on    ends; back to the source
 *     vfio-user device added           ends; the VM runs on        -                       ends; back to the source (added there)
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
 *     which vfio-user devices there are  listed again when QEMU has begun to migrate, and adds none any more; at the
 *                                    destination when it has all
 *     QEMU's migration status of before   others may have migrated the VM, or tried to, since the check: what counts begins with
 *                                    the answer to our own `migrate`
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
import type { Vm } from './parties.js';

/** A moment: what comes later is seen by the difference. */
export interface Stand {
  readonly resets: number;
  readonly resumes: number;
}

/** How far an operation has come, as far as it matters to what happens to its VM meanwhile. */
export type Moment =
  /** QEMU was not asked to migrate. */
  | { readonly tag: 'idle' }
  /** It was; the VM runs. */
  | { readonly tag: 'migrating' }
  /** The VM is the source's, whose QEMU has it stopped for us. */
  | { readonly tag: 'standing'; readonly stand: Stand }
  /** QEMU sends the rest, or has. */
  | {
      readonly tag: 'landing';
      readonly stand: Stand;
      /** The destination has all that there is: the source's QEMU may end. */
      readonly sourceSpent: boolean;
      /** The VM was reset at the destination by this operation: what happens to it there now is its own affair. */
      readonly resetThere: boolean;
    }
  /** Nothing is watched any more. */
  | { readonly tag: 'over' };

/** As much of an operation as is needed here. */
export interface Watched {
  readonly source: Vm;
  readonly destination?: Vm | undefined;
  readonly devices: readonly { readonly id: string }[];
  readonly moment: Moment;
}

/** What has happened so far. */
export interface Facts {
  readonly guest: Guest;
  /** How often the VM's CPUs were started at the destination. */
  readonly resumesThere: number;
  /** How often it was reset there, which takes from its devices what they have loaded. */
  readonly resetsThere: number;
  /** Statuses of QEMU's migration at the source. */
  readonly history: readonly string[];
  /** The devices that are moved. */
  readonly ids: readonly string[];
  readonly moment: Moment;
}

/** Why an operation cannot continue. Pure. */
export function obstacle({
  guest,
  resumesThere,
  resetsThere,
  history,
  ids,
  moment,
}: Facts): DevstateError | undefined {
  if (moment.tag === 'over') return undefined;
  if (resumesThere > 0) {
    const message = 'another client of QEMU has run the VM at the destination, before its devices were there';
    return new DevstateError('DEVSTATE_E_VM_CHANGED', message);
  }
  if (resetsThere > 0 && !(moment.tag === 'landing' && moment.resetThere)) {
    const message =
      'another client of QEMU has reset the VM at the destination (system_reset), before it ran there';
    return new DevstateError('DEVSTATE_E_VM_CHANGED', message);
  }
  if (guest.ended !== undefined && !(moment.tag === 'landing' && moment.sourceSpent))
    return new DevstateError('DEVSTATE_E_VM_ENDED', guest.ended);
  const removed = ids.filter((id) => guest.removed.has(id));
  if (removed.length > 0) {
    const message = `device ${removed.join(', ')} was removed from the VM (device_del)`;
    return new DevstateError('DEVSTATE_E_VM_CHANGED', message);
  }
  // Others may have migrated the VM before us.
  if (moment.tag === 'idle') return undefined;
  const status = history.at(-1);
  if (status === 'cancelling' || status === 'cancelled') {
    const message = "another client of QEMU has cancelled QEMU's migration (migrate_cancel)";
    return new DevstateError('DEVSTATE_E_QEMU_MIGRATION', message);
  }
  // In the other phases somebody waits for it, and says more.
  if (status === 'failed' && moment.tag === 'standing') {
    const message = "QEMU's migration failed; see what the destination's QEMU said on its stderr";
    return new DevstateError('DEVSTATE_E_QEMU_MIGRATION', message);
  }
  if (moment.tag === 'migrating') return undefined;
  // Before it has completed QEMU refuses `cont`, and resumes the VM itself when its migration fails.
  if (guest.resumes > moment.stand.resumes && status === 'completed') {
    const message = 'another client of QEMU has resumed the VM (cont)';
    return new DevstateError('DEVSTATE_E_VM_CHANGED', message);
  }
  return undefined;
}

/**
 * Ends an operation as soon as its VM cannot be moved any more.
 * @param now how far the operation has come when it is looked at
 * @returns ends the watch
 */
export function watchVm(now: () => Watched, abort: (reason: DevstateError) => void): () => void {
  const { source, destination } = now();
  const look = (): void => {
    const reason = whyNot(now());
    if (reason !== undefined) abort(reason);
  };
  const listen = (call: (() => void) | undefined): void => {
    source.guest.onChange = call;
    source.watch.onStatus = call;
    if (destination !== undefined) destination.guest.onChange = call;
  };
  listen(look);
  look();
  return () => listen(undefined);
}

/** What of all that has happened explains a failure best: what a device server or a socket says came of it. */
export function whyNot({ source, destination, devices, moment }: Watched): DevstateError | undefined {
  return obstacle({
    guest: source.guest.guest,
    resumesThere: destination?.guest.guest.resumes ?? 0,
    resetsThere: destination?.guest.guest.resets ?? 0,
    history: source.watch.history,
    ids: devices.map(({ id }) => id),
    moment,
  });
}

/** The moment from which on nothing may change unnoticed: everything is read after it. */
export function standOf({ source }: Pick<Watched, 'source'>): Stand {
  const { resets, resumes } = source.guest.guest;
  return { resets, resumes };
}

/** Whether the VM was reset since. QEMU has been asked before, or just now. */
export function wasResetSince({ source }: Pick<Watched, 'source'>, stand: Stand): boolean {
  return source.guest.guest.resets > stand.resets;
}

/**
 * Looks once more, right before QEMU sends the rest. The answer comes after every event from before it.
 * @throws when the VM cannot be moved any more
 */
export async function requireStanding(watched: Watched, signal: AbortSignal): Promise<void> {
  const { source } = watched;
  const [{ status }, migration] = await Promise.all([
    queryRunState(source.qmp, { signal }),
    queryMigration(source.qmp, { signal }),
  ]);
  throwObstacle(watched);
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
export async function requireStopped(watched: Watched, signal: AbortSignal): Promise<void> {
  const [status] = await Promise.all([
    statusOf(watched.source.qmp, signal),
    // What has happened there is known when it has answered.
    watched.destination?.guest.look({ signal }),
  ]);
  throwObstacle(watched);
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

function throwObstacle(watched: Watched): void {
  const reason = whyNot(watched);
  if (reason !== undefined) throw reason;
}

/** Resets a VM that has arrived and does not run yet, as it was reset where it came from after its state had been saved. */
export async function resetArrived({ qmp, guest }: Vm, signal: AbortSignal): Promise<void> {
  const before = guest.guest.resets;
  const done = qmp.waitForEvent('RESET', { signal });
  await qmp.execute('system_reset', { signal });
  if (guest.guest.resets === before) await done;
}
