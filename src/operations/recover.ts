// SPDX-License-Identifier: Apache-2.0
/**
 * Puts a source back that a manager left in the middle of a migration, or of a replacement of QEMU: killed, or cut off.
 * The notes that it left with the device servers say what has to be undone, or, after cpr-exec, finished.
 */

import { DevstateError } from '../errors.js';
import {
  connectedSockets,
  endReplace,
  isSameQemu,
  listVfioUserDevices,
  QmpClient,
  Qtest,
  queryMigration,
  queryRunState,
} from '../qemu/index.js';
import { WitnessedVmm } from '../wire/index.js';
import { openDeviceSocket } from './device-socket.js';
import { proveClaims, takeCensus, unknownWithout } from './identity/index.js';
import { connectIfThere, quit } from './migrate/destination-vm.js';
import { returnToFirst } from './migrate/next-vmm.js';
import { type ChangedSettings, readNote } from './migrate/note.js';
import { putBackAt } from './migrate/qemu-settings.js';
import { restoreSource, type SourceChanges } from './migrate/rollback.js';
import { replayIfSilenced } from './migrate/view.js';
import {
  finishExec,
  hasExecuted,
  type LeftDevice,
  requireUnclaimed,
  untilExecuted,
} from './upgrade-qemu/finish.js';

export interface RecoverOptions {
  readonly sourceQmp: string;
  /** The destination's QMP, if it is still there: it is made to quit, or, should the VM run there, nothing is done. */
  readonly destQmp?: string;
  /** All that migrated with the VM. */
  readonly devices: readonly { readonly id: string; readonly source: string }[];
  /** vfio-user devices that did not migrate with the VM: by id, or by QOM path for one without. */
  readonly without?: readonly string[];
  /** Go back although the VM may have run at a destination that cannot be asked: what it did there is lost. */
  readonly giveUpDestination?: boolean;
  /** Ids of devices whose servers cannot prove that they are this VM's, and need not. */
  readonly unproven?: readonly string[];
}

export interface RecoverResult {
  readonly status: 'recovered';
  readonly running: boolean;
  readonly devices: readonly { readonly id: string; readonly noted: boolean }[];
}

/** Run states of a destination that has not run the VM: in any other it may have written to its disks, whatever it does now. */
const NOT_RUN_YET: readonly string[] = ['inmigrate', 'paused', 'prelaunch'];
/** How long the destination's QEMU may take to quit, ms. */
const QUIT_TIMEOUT_MS = 30_000;
/** How long it may take to prove that everything belongs together, ms. */
const PROOF_TIMEOUT_MS = 30_000;

/**
 * @throws DEVSTATE_E_USAGE, DEVSTATE_E_CONNECT, DEVSTATE_E_QMP_CONNECT before anything is changed;
 * DEVSTATE_E_INCOMPATIBLE when the VM runs at the destination or has gone there; DEVSTATE_E_ROLLBACK when something
 * cannot be put back
 */
export async function recover(options: RecoverOptions): Promise<RecoverResult> {
  requireDevices(options);
  const close: (() => void)[] = [];
  try {
    const qmp = await QmpClient.connect(options.sourceQmp);
    close.push(() => qmp.close());
    const qtest = await Qtest.attach(qmp);
    close.push(() => qtest.close());
    const found: LeftDevice[] = [];
    for (const { id, source: path } of options.devices) {
      const source = await openDeviceSocket(path);
      close.push(() => source.device.close());
      const { device } = source;
      const vmms = (await device.canFollow()) ? await device.nextVmm() : undefined;
      found.push({ id, source, note: await readNote(device), vmms });
    }
    for (const one of found) requireOwnNote(one, options);
    await requireProven({ qmp, qtest }, found, options);
    await untilExecuted(qmp, found);
    if (await hasExecuted(qmp, found)) {
      await finishExec({ qmp, qtest }, found);
      return await resultOf(qmp, found);
    }
    const settings = found.map(({ note }) => note?.settings).find((one) => one !== undefined);
    const destination = await connectDestination(options, qmp, found, settings);
    close.push(() => destination?.close());
    if (destination === undefined) requireNotRun(found, options);
    await requireHere(qmp, found);
    await requireUnclaimed(found, options.destQmp !== undefined);
    if (destination !== undefined) await quit(destination, QUIT_TIMEOUT_MS);
    const signal = AbortSignal.timeout(QUIT_TIMEOUT_MS);
    for (const { id, source, note } of found) {
      await returnToFirst(source.device);
      if (note?.muted === true && note.view !== undefined)
        await replayIfSilenced({ qmp, qtest }, { id, view: note.view }, signal);
    }

    // Without a view QEMU's migration has not completed, and a VM that it stopped runs again when it is cancelled.
    const resumable = found.some(({ note }) => note?.view !== undefined && note.running);
    const changes = changesIn(found, settings);
    const restored = await restoreSource({
      qmp,
      qtest,
      devices: found,
      changes,
      resumable,
      isUndone: false,
    });
    const problems = [...restored.problems, ...restored.remarks];
    if (problems.length > 0) {
      throw new DevstateError(
        'DEVSTATE_E_ROLLBACK',
        `the source could not be put back: ${problems.join('; ')}`,
      );
    }
    // A note of an older manager does not say in which mode QEMU was.
    if (found.some(({ note }) => note !== undefined && note.settings === undefined)) await endReplace(qmp);
    return await resultOf(qmp, found);
  } finally {
    for (const end of close.reverse()) end();
  }
}

/** What the notes say of the state that was reached; what they do not say may have been done. */
function changesIn(found: readonly LeftDevice[], settings: ChangedSettings | undefined): SourceChanges {
  const silenced = new Map(
    found.flatMap(({ id, note }) => (note?.view === undefined ? [] : [[id, note.view] as const])),
  );
  return silenced.size === 0 ? { tag: 'migrating', settings } : { tag: 'stopped', settings, silenced };
}

async function resultOf(qmp: QmpClient, found: readonly LeftDevice[]): Promise<RecoverResult> {
  const { running } = await queryRunState(qmp);
  return {
    status: 'recovered',
    running,
    devices: found.map(({ id, note }) => ({ id, noted: note !== undefined })),
  };
}

function requireDevices({ devices }: RecoverOptions): void {
  if (devices.length === 0) {
    const message = 'no device to recover: name each that migrated with the VM, --device ID,source=PATH';
    throw new DevstateError('DEVSTATE_E_USAGE', message);
  }
  if (new Set(devices.map(({ id }) => id)).size < devices.length)
    throw new DevstateError('DEVSTATE_E_USAGE', 'a device is named twice');
}

/** A VM that ran without one of its devices would see it fail. */
function requireOwnNote({ id, source, note }: LeftDevice, { devices }: RecoverOptions): void {
  if (note === undefined) return;
  if (note.id !== id) {
    const message = `the socket ${source.path} belongs to device ${note.id}, not ${id}`;
    throw new DevstateError('DEVSTATE_E_USAGE', message);
  }
  const missing = note.devices.filter((other) => !devices.some((device) => device.id === other));
  if (missing.length > 0) {
    const message = `${missing.join(', ')} migrated with ${id}: name all of them, --device ID,source=PATH`;
    throw new DevstateError('DEVSTATE_E_USAGE', message);
  }
}

/**
 * The destination is gone, or is not named, and only it could tell whether it has run the VM.
 * @throws DEVSTATE_E_INCOMPATIBLE when it may have
 */
function requireNotRun(found: readonly LeftDevice[], { giveUpDestination = false }: RecoverOptions): void {
  if (giveUpDestination || !found.some(({ note }) => note?.mayRunThere === true)) return;
  const what =
    'the VM may have run at the destination and written to its disks, and no QEMU is there to be asked';
  const way = 'name it with --dest-qmp if it is elsewhere';
  const message = `${what}: ${way}. To go back all the same, to the VM as it was when it left, on disks as they are now: --give-up-destination`;
  throw new DevstateError('DEVSTATE_E_INCOMPATIBLE', message);
}

/** The last note is cleared when the VM runs at the destination, the first is written before QEMU's migration completes. */
async function requireHere(qmp: QmpClient, found: readonly LeftDevice[]): Promise<void> {
  if (found.some(({ note }) => note !== undefined)) return;
  const [{ status }, migration] = [await queryRunState(qmp), await queryMigration(qmp)];
  // A reset makes it `prelaunch`.
  const isMoved = status === 'postmigrate' || (status === 'prelaunch' && migration.status === 'completed');
  if (!isMoved) return;
  const message = 'the VM has been migrated away, and nothing says that it was to come back: quit this QEMU';
  throw new DevstateError('DEVSTATE_E_INCOMPATIBLE', message);
}

/**
 * That the servers are those of the source's devices, and that those are all.
 * @throws DEVSTATE_E_INCOMPATIBLE
 */
async function requireProven(
  vm: { readonly qmp: QmpClient; readonly qtest: Qtest },
  found: readonly LeftDevice[],
  { without = [], unproven = [] }: RecoverOptions,
): Promise<void> {
  const signal = AbortSignal.timeout(PROOF_TIMEOUT_MS);
  const named = {
    ids: found.map(({ id }) => id),
    without,
    usage: (id: string) => `--device ${id},source=PATH`,
  };
  const census = await takeCensus(vm.qmp, 'source', named, signal);
  const reasons = [...census.reasons, ...unknownWithout(without, census)];
  const claims = found
    .filter(({ id }) => !unproven.includes(id))
    .map(({ id, source: { path, device } }) => ({
      id,
      socket: { path, role: `the source of device ${id}`, device },
    }));
  // A replacement of QEMU may have been broken off before or after the devices had changed hands.
  const vmms = [WitnessedVmm.PRESENT, WitnessedVmm.OTHER];
  const source = { ...vm, name: 'the source QEMU', devices: census.present, isFresh: false, vmms };
  if (reasons.length === 0) reasons.push(...(await proveClaims(source, claims, [], signal)));
  if (reasons.length === 0) return;
  const message = `nothing was recovered, nothing was changed: ${reasons.join('; ')}`;
  throw new DevstateError('DEVSTATE_E_INCOMPATIBLE', message);
}

/**
 * That a QEMU which is to be ended is one that a VM was migrated to, or was to be.
 * @throws DEVSTATE_E_INCOMPATIBLE
 */
async function requireDestination(
  source: QmpClient,
  destination: QmpClient,
  found: readonly LeftDevice[],
): Promise<void> {
  const signal = AbortSignal.timeout(PROOF_TIMEOUT_MS);
  const refuse = (why: string): never => {
    const message = `${destination.path} is not the destination's QEMU: ${why}; nothing was changed. Name the QEMU that the VM was to arrive in`;
    throw new DevstateError('DEVSTATE_E_INCOMPATIBLE', message);
  };
  if (await isSameQemu(source, destination, { signal }))
    refuse(`it is the source's, which is reached by ${source.path} too`);
  const known = found.find(({ note }) => note?.destination !== undefined)?.note?.destination ?? {};
  const sockets = await connectedSockets(destination, await listVfioUserDevices(destination, { signal }), {
    signal,
  });
  for (const [id, socket] of Object.entries(known)) {
    if (sockets[id] === socket) continue;
    const has =
      sockets[id] === undefined ? 'it has no such device' : `here it is connected to ${sockets[id]}`;
    refuse(`the VM was to arrive where device ${id} is connected to ${socket}, and ${has}`);
  }
  const { status } = await queryRunState(destination, { signal });
  if (status === 'inmigrate') return;
  const migration = await queryMigration(destination, { signal });
  if (migration.status === 'none') refuse(`no VM has been migrated to it (it is ${status})`);
}

/**
 * A destination that is there and does not run the VM.
 * @throws when it does, or that cannot be told; if it does, the migration has succeeded but for the settings, which are
 * put back at both ends
 */
async function connectDestination(
  { destQmp }: RecoverOptions,
  source: QmpClient,
  found: readonly LeftDevice[],
  settings: ChangedSettings | undefined,
): Promise<QmpClient | undefined> {
  if (destQmp === undefined) return undefined;
  const qmp = await connectIfThere(destQmp, AbortSignal.timeout(QUIT_TIMEOUT_MS));
  if (qmp === undefined) return undefined; // no QEMU answers: it cannot run anything
  try {
    await requireDestination(source, qmp, found);
    const { status } = await queryRunState(qmp);
    if (NOT_RUN_YET.includes(status)) return qmp;
    await putBackAt('destination', qmp, settings);
    await putBackAt('source', source, settings);
  } catch (error) {
    qmp.close();
    throw error;
  }
  qmp.close();
  const message =
    'the VM runs at the destination, or has run there: the migration had succeeded, quit the source instead';
  throw new DevstateError('DEVSTATE_E_INCOMPATIBLE', message);
}
