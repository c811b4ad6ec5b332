// SPDX-License-Identifier: Apache-2.0
/**
 * Back to the source: whatever went wrong, in whatever phase, the source's devices and VM run again, and the
 * destination surely does not.
 *
 *     destination QEMU quits → destination devices are reset (and release the image)
 *       → source devices run → COMMAND is put back → source VM runs
 */

import { DevstateError } from '../../errors.js';
import type { MigrationEnd } from '../../migration/index.js';
import {
  cancelMigration,
  cutMigration,
  findShownPciDevice,
  isSilenced,
  type PciView,
  type QmpClient,
  type Qtest,
  queryMigration,
  queryRunState,
  restoreCommand,
  resumeVm,
  stopVm,
} from '../../qemu/index.js';
import { Errno, MigrationState } from '../../wire/index.js';
import type { DeviceSocket } from '../device-socket.js';
import type { Rollback } from '../phased.js';
import { delay, within } from '../waiting.js';
import { quit } from './destination-vm.js';
import { type ChangedSettings, clearNote } from './note.js';
import { type Parties, runsAtSource, type Vm } from './parties.js';
import type { Revocable } from './phases.js';
import { putBackAt } from './qemu-settings.js';

/** How long the source's QEMU may take to end its migration, ms. */
const QEMU_TIMEOUT_MS = 30_000;
/** How long it may take to answer before its migration is cut, ms. */
const ANSWER_TIMEOUT_MS = 2000;
/** How long the destination's QEMU may take to quit while the guest waits, ms. */
const QUIT_TIMEOUT_MS = 10_000;
/** How long a destination's device server may take to release the device, ms. */
const RESET_TIMEOUT_MS = 2000;
/**
 * How long a source's device may have to wait for what the destination is just giving back, ms. As long as its disk is
 * slow: giving up does not bring the VM back any sooner, it leaves it standing.
 */
const GIVE_BACK_MS = 60_000;
/** How a migration of QEMU's ends that does not move the VM: there is nothing more to cancel. */
const UNDONE: readonly string[] = ['failed', 'cancelled'];
/** How often it asks, ms. */
const ASK_AGAIN_MS = 10;

/** Collects what could not be undone, and continues. */
class Attempts {
  readonly problems: string[] = [];

  async try(what: string, work: () => Promise<unknown>): Promise<boolean> {
    try {
      await work();
      return true;
    } catch (error) {
      this.problems.push(`${what}: ${error instanceof Error ? error.message : error}`);
      return false;
    }
  }
}

/** What was changed at the source of a VM. */
export type SourceChanges =
  /** Nothing of the QEMU. Device states may be on their way. */
  | { readonly tag: 'none' }
  | { readonly tag: 'configured'; readonly settings: ChangedSettings }
  /** QEMU was asked to migrate. A note of an older manager does not say what settings were changed. */
  | { readonly tag: 'migrating'; readonly settings: ChangedSettings | undefined }
  /** The devices are, or are just being, stopped. */
  | {
      readonly tag: 'stopped';
      readonly settings: ChangedSettings | undefined;
      /** QEMU's views of the devices before INTx was silenced, by id; of those only where it was, or may have been. */
      readonly silenced: ReadonlyMap<string, PciView>;
    };

const lost = (...problems: readonly string[]): Rollback => ({ left: '', problems, remarks: [] });

/** Undoes a migration that failed, from the state that it had reached. */
export function rollback(state: Revocable): Promise<Rollback> {
  state.report({ phase: 'rollback' });
  switch (state.tag) {
    case 'checked':
    case 'sending':
    case 'rehearsed':
      return goBack(state, { tag: 'none' });
    case 'configured':
      return goBack(state, { tag: 'configured', settings: state.settings.current });
    case 'migrating':
    case 'at-switchover':
      return goBack(state, { tag: 'migrating', settings: state.settings.current });
    case 'stopping':
    case 'stopped':
    case 'landing':
    case 'source-spent':
    case 'resetting':
    case 'landed':
    case 'committing':
      return goBack(state, {
        tag: 'stopped',
        settings: state.settings.current,
        silenced: state.silenced,
      });
    case 'in-doubt': {
      const what = 'the destination QEMU was asked to run the VM and may run it: make sure that it does not';
      return Promise.resolve(lost(what));
    }
  }
}

async function goBack(parties: Parties, changes: SourceChanges): Promise<Rollback> {
  const { source, destination, devices } = parties;
  if (destination.guest.guest.resumes > 0) {
    // It may have written to its disks, or have sent to others.
    const stopped = stopVm(destination.qmp, { signal: AbortSignal.timeout(QEMU_TIMEOUT_MS) });
    const how = await stopped.then(() => 'was stopped again').catch(() => 'could not be stopped');
    for (const where of ['source', 'destination'] as const)
      await putBackAt(where, parties[where].qmp, settingsOf(changes)).catch(() => {});
    return lost(`the VM has run at the destination, and ${how} there; the VM at the source stands`);
  }
  const attempts = new Attempts();
  // What the destination has is worth nothing only as long as there is a source to go back to.
  await attempts.try('the source QEMU is lost, and the destination was left as it is', () =>
    requireAlive(source.qmp),
  );
  if (attempts.problems.length > 0)
    return source.guest.guest.ended === undefined ? lost(...attempts.problems) : goBackEnded(parties);
  const remarks = await discardDestination(parties);
  const hasEnded = source.guest.guest.ended !== undefined;
  const resumable = runsAtSource(parties) && !hasEnded;
  const restored = await restoreSource({
    ...source,
    devices,
    changes,
    resumable,
    isUndone: isUndone(source),
  });
  const { problems } = restored;
  // One that does not stay when its guest has ended takes its time to go.
  if (problems.length > 0 && hasEnded && !(await isAlive(source.qmp))) return goBackEnded(parties);
  const left = problems.length > 0 ? '' : await whatIsLeft(source, 'at the source');
  return { left, problems, remarks: [...remarks, ...restored.remarks] };
}

/** Whether QEMU's migration has ended by itself, without moving the VM. */
export function isUndone({ watch }: Pick<Vm, 'watch'>): boolean {
  return watch.history.some((status) => UNDONE.includes(status));
}

function settingsOf(changes: SourceChanges): ChangedSettings | undefined {
  return changes.tag === 'none' ? undefined : changes.settings;
}

/** The guest has ended and its QEMU with it: there is nothing to go back to, and nothing that is to continue. */
async function goBackEnded(parties: Parties): Promise<Rollback> {
  const remarks = await discardDestination(parties);
  for (const { source } of parties.devices) {
    // Its server gives what it held for the next VMM, as after any VMM that has left.
    const release = async (): Promise<void> => {
      await source.device.setState(MigrationState.RUNNING);
      await source.device.stopLogging();
      await clearNote(source.device);
    };
    await within(RESET_TIMEOUT_MS, release()).catch(() => {});
  }
  return { left: 'its QEMU has ended', problems: [], remarks };
}

/** Ends the destination, which runs nothing and is not to. @returns what remains to be done */
async function discardDestination({ destination, devices }: Parties): Promise<string[]> {
  const remarks: string[] = [];
  await quit(destination.qmp, QUIT_TIMEOUT_MS).catch((error: unknown) => {
    // It waits for a `cont` that was never sent, and its devices for an image that the source takes back.
    remarks.push(
      `the destination QEMU does not quit (${error instanceof Error ? error.message : error}): kill it, it must not run`,
    );
  });
  // A server that is gone holds nothing; of one that does not answer the image's lock tells whether it does.
  await Promise.allSettled(
    devices.map((device) => within(RESET_TIMEOUT_MS, device.destination.device.reset())),
  );
  return remarks;
}

/** How the VM is where it came from, as a sentence's end. */
export async function whatIsLeft({ qmp }: Pick<Vm, 'qmp'>, where: string): Promise<string> {
  const signal = AbortSignal.timeout(QEMU_TIMEOUT_MS);
  const status = await queryRunState(qmp, { signal }).then(
    (state) => state.status,
    () => undefined,
  );
  if (status === 'running') return `the VM runs on ${where}`;
  return status === undefined ? 'its QEMU has ended' : `the VM stays ${where}, ${status}`;
}

export interface SourceToRestore {
  readonly qmp: QmpClient;
  readonly qtest: Qtest;
  readonly devices: readonly { readonly id: string; readonly source: DeviceSocket }[];
  readonly changes: SourceChanges;
  /** Whether the VM is to run if QEMU's migration has completed: then it does not run again by itself. */
  readonly resumable: boolean;
  /** QEMU's migration has ended by itself: there is none to cancel, unless it is somebody else's. */
  readonly isUndone: boolean;
}

/** Lets the source's devices and VM run again, from wherever a migration left them. */
export async function restoreSource(
  source: SourceToRestore,
): Promise<Pick<Rollback, 'problems' | 'remarks'>> {
  const { qmp, qtest, devices, changes } = source;
  const silenced = changes.tag === 'stopped' ? changes.silenced : new Map<string, PciView>();
  const attempts = new Attempts();
  for (const { id, source } of devices)
    await attempts.try(`device ${id} does not run again`, () => runAgain(source));
  // From here on its VM may run: QEMU resumes it when its migration fails.
  await attempts.try('the source QEMU does not answer', () => free(qmp));
  for (const { id } of devices) {
    const view = silenced.get(id);
    if (view === undefined) continue;
    await attempts.try(`device ${id}: COMMAND was not put back`, () => putBackCommand(qmp, qtest, id, view));
  }
  // A VM without its devices must not run: the guest would see its disk fail.
  if (attempts.problems.length > 0) return { problems: attempts.problems, remarks: [] };
  await attempts.try('the source VM does not run again', () => restoreVm(source));
  // The notes are for the next try.
  if (attempts.problems.length > 0) return { problems: attempts.problems, remarks: [] };
  for (const { id, source } of devices)
    await attempts.try(`device ${id}: its dirty log was not stopped`, () => source.device.stopLogging());
  try {
    await putBackAt('source', qmp, settingsOf(changes));
  } catch (error) {
    const what = error instanceof Error ? error.message : String(error);
    return { problems: attempts.problems, remarks: [`${what}; devstate recover tries it again`] };
  }
  for (const { id, source } of devices)
    await attempts.try(`device ${id}: its note was not cleared`, () => clearNote(source.device));
  return { problems: attempts.problems, remarks: [] };
}

async function isAlive(qmp: QmpClient): Promise<boolean> {
  return requireAlive(qmp).then(
    () => true,
    () => false,
  );
}

/** @throws when QEMU is gone. While it waits for a destination that does not answer it lives, and can say only that. */
async function requireAlive(qmp: QmpClient): Promise<void> {
  await qmp.execute('query-yank', { outOfBand: true, signal: AbortSignal.timeout(QEMU_TIMEOUT_MS) });
}

/** Frees QEMU from waiting for a destination that does not answer. */
async function free(qmp: QmpClient): Promise<void> {
  const soon = AbortSignal.timeout(ANSWER_TIMEOUT_MS);
  try {
    await queryRunState(qmp, { signal: soon });
  } catch (error) {
    if (!soon.aborted) throw error;
    await cutMigration(qmp, { signal: AbortSignal.timeout(QEMU_TIMEOUT_MS) });
  }
}

/** The destination may be about to give the image back: its server has to notice first that its VMM has ended. */
export async function runAgain({
  device,
}: {
  readonly device: Pick<MigrationEnd, 'setState'>;
}): Promise<void> {
  const deadline = performance.now() + GIVE_BACK_MS;
  for (;;) {
    try {
      return await device.setState(MigrationState.RUNNING);
    } catch (error) {
      const isBusy = error instanceof DevstateError && error.errno === Errno.EBUSY;
      if (!isBusy || performance.now() >= deadline) throw error;
    }
    await delay(ASK_AGAIN_MS);
  }
}

/** Undoes that INTx was silenced; not when the device is gone, or was reset since. */
async function putBackCommand(qmp: QmpClient, qtest: Qtest, id: string, view: PciView): Promise<void> {
  const signal = AbortSignal.timeout(QEMU_TIMEOUT_MS);
  const location = await findShownPciDevice(qmp, id, { signal });
  if (location === undefined) return;
  if (await within(QEMU_TIMEOUT_MS, isSilenced(qtest, location, view)))
    await within(QEMU_TIMEOUT_MS, restoreCommand(qtest, location, view));
}

/**
 * A VM that our migration has stopped continues. QEMU sees to it by itself unless the migration has completed; what others
 * have done to the VM meanwhile it leaves as it is, and so do we.
 */
async function restoreVm({ qmp, changes, resumable, isUndone }: SourceToRestore): Promise<void> {
  const signal = AbortSignal.timeout(QEMU_TIMEOUT_MS);
  const wasAsked = changes.tag === 'migrating' || changes.tag === 'stopped';
  if (wasAsked && !isUndone) await cancelMigration(qmp, { signal });
  let { status } = await queryRunState(qmp, { signal });
  // A migration that has failed says so before the VM continues.
  while (status === 'finish-migrate') {
    await delay(ASK_AGAIN_MS);
    status = (await queryRunState(qmp, { signal })).status;
  }
  const { status: migration } = await queryMigration(qmp, { signal });
  // `prelaunch`: reset since. Any other state is not one that a migration leaves behind.
  const isMoved = status === 'postmigrate' || (status === 'prelaunch' && migration === 'completed');
  if (resumable && isMoved) await resumeVm(qmp, { signal });
}
