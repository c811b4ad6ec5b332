// SPDX-License-Identifier: Apache-2.0
/** Phase *check*: everybody is there and can do it. Refuses with every reason at once, before anything changes. */

import { resolve } from 'node:path';
import { DevstateError } from '../../errors.js';
import {
  awaitPciDevice,
  GuestWatch,
  MigrationWatch,
  proveConfigAccess,
  QmpClient,
  Qtest,
  queryMigration,
  queryRunState,
  replaceObstacles,
} from '../../qemu/index.js';
import { MigrationState, migrationStateName, type NextVmmStatus } from '../../wire/index.js';
import { openDeviceSocket } from '../device-socket.js';
import { proveClaims, takeCensus } from '../identity/index.js';
import { connectIfThere } from '../migrate/destination-vm.js';
import { delay, unlessAborted } from '../waiting.js';
import { commandObstacles, qmpSockets } from './command-line.js';
import { claimsOf, namedIn } from './identity.js';
import { Scratch, type UpgradeDevice } from './parties.js';
import type { State } from './phases.js';
import type { KeptDevice, UpgradeQemuOptions, UpgradeQemuProgress } from './types.js';

/** Migration states of QEMU in which another one may begin. */
const IDLE = ['none', 'completed', 'failed', 'cancelled'];

/** By CPR both QEMUs wait for one eventfd, and a level that the wrong one has seen is never signalled again. */
const NO_INTX =
  'it interrupts by INTx, or its guest has no driver for it; QEMU loses such interrupts by CPR. Use a driver with MSI or MSI-X, or migrate the VM';

/** How long a driver may take to set up a device that it has reset, and how often it is asked meanwhile, ms. */
const SETTLE_MS = 3000;
const ASK_AGAIN_MS = 20;

/** Closes what was opened so far when the check fails. */
type Cleanup = (() => void)[];

/**
 * Connects to all who take part and checks them.
 * @throws DEVSTATE_E_USAGE, DEVSTATE_E_CONNECT, DEVSTATE_E_QMP_CONNECT, DEVSTATE_E_INCOMPATIBLE
 */
export async function check(
  options: UpgradeQemuOptions,
  signal: AbortSignal,
  report: (progress: UpgradeQemuProgress) => void,
): Promise<State<'checked'>> {
  report({ phase: 'check' });
  const qmpPath = requireUsable(options);
  const cleanup: Cleanup = [];
  try {
    const qmp = await QmpClient.connect(options.sourceQmp, { signal });
    cleanup.push(() => qmp.close());
    const devices: UpgradeDevice[] = [];
    const reasons: string[] = [];
    for (const device of options.devices) devices.push(await openDevice(device, cleanup, reasons));
    const runState = await queryRunState(qmp, { signal });
    if (runState.status !== 'running' && runState.status !== 'paused')
      reasons.push(
        runState.status === 'suspended'
          ? 'the guest sleeps (S3): wake it with system_wakeup first'
          : `the VM is ${runState.status}`,
      );
    const migration = await queryMigration(qmp, { signal });
    if (!IDLE.includes(migration.status)) reasons.push(`the VM is migrating already (${migration.status})`);
    if (options.mode === 'cpr-transfer' && (await isTaken(qmpPath, signal)))
      reasons.push(
        `the new QEMU is to be asked at ${qmpPath}, where another process listens already: give it another -qmp`,
      );
    reasons.push(...(await replaceObstacles(qmp, options.mode, { signal })));
    const { present, reasons: unnamed } = await takeCensus(qmp, 'old', namedIn(options), signal);
    reasons.push(...unnamed);
    for (const device of devices) reasons.push(...(await checkDevice(device, qmp, signal)));
    refuse(reasons);
    const qtest = await Qtest.attach(qmp, { signal });
    cleanup.push(() => qtest.close());
    for (const { id } of devices) {
      const device = await awaitPciDevice(qmp, id, { signal });
      await unlessAborted(proveConfigAccess(qtest, device), signal);
    }
    const old = { name: 'the old QEMU', qmp, qtest, devices: present, isFresh: false };
    refuse(await proveClaims(old, claimsOf(devices, options), [], signal));
    const watch = new MigrationWatch(qmp);
    const guest = await GuestWatch.begin(qmp, { signal });
    return {
      tag: 'checked',
      options,
      qmpPath,
      signal,
      source: { qmp, qtest, watch, guest },
      devices,
      replaced: options.mode === 'cpr-exec' ? 'exec' : 'transfer',
      warnings: [],
      report,
      scratch: new Scratch(),
    };
  } catch (error) {
    for (const close of cleanup.reverse()) close();
    throw error;
  }
}

/** Whether a process listens at a path. A new QEMU that is given it would take it from that one. */
async function isTaken(path: string, signal: AbortSignal): Promise<boolean> {
  try {
    const qmp = await connectIfThere(path, signal);
    qmp?.close();
    return qmp !== undefined;
  } catch {
    // One that answers nothing, such as a QEMU with another client.
    signal.throwIfAborted();
    return true;
  }
}

/** @throws DEVSTATE_E_INCOMPATIBLE unless there is no reason to refuse */
function refuse(reasons: readonly string[]): void {
  if (reasons.length === 0) return;
  const message = `the upgrade was refused before it began: ${reasons.join('; ')}`;
  throw new DevstateError('DEVSTATE_E_INCOMPATIBLE', message);
}

/** @returns the new QEMU's QMP socket */
function requireUsable({ mode, command, devices, sourceQmp, qmp }: UpgradeQemuOptions): string {
  const usage = (message: string): never => {
    throw new DevstateError('DEVSTATE_E_USAGE', message);
  };
  if (command.length === 0) usage("the new QEMU's command line is missing; give it after --");
  const [obstacle] = commandObstacles(command);
  if (obstacle !== undefined) usage(obstacle);
  if (devices.length === 0)
    usage('no device to keep: name each vfio-user device of the VM with --device ID,server=PATH');
  for (const field of ['id', 'server'] as const) {
    const values = devices.map((device) => device[field]);
    const twice = values.find((value, index) => values.indexOf(value) < index);
    if (twice !== undefined) usage(`${twice} is named for two devices`);
  }
  const sockets = qmpSockets(command);
  const source = resolve(sourceQmp);
  if (mode === 'cpr-exec') {
    const path = qmp === undefined ? source : resolve(qmp);
    if (qmp === undefined && !sockets.includes(source))
      usage(
        `the new QEMU's command line has no -qmp unix:${source},…; if it is asked elsewhere, say --qmp PATH`,
      );
    return path;
  }
  const path = qmp === undefined ? sockets[0] : resolve(qmp);
  if (path === undefined)
    return usage("the new QEMU's command line has no -qmp unix:PATH; say where it is asked with --qmp PATH");
  if (path === source || sockets.includes(source))
    usage(
      `the new QEMU would take the old one's QMP socket, ${source}: both run for a while, give it another`,
    );
  return path;
}

async function openDevice(
  { id, server }: KeptDevice,
  cleanup: Cleanup,
  reasons: string[],
): Promise<UpgradeDevice> {
  const socket = await openDeviceSocket(server);
  cleanup.push(() => socket.device.close());
  if (!(await socket.device.canFollow())) {
    const what = `device ${id}: its server (${server}) takes one VMM at a time, so a new QEMU could not connect`;
    throw new DevstateError('DEVSTATE_E_INCOMPATIBLE', `${what}; put a devstate relay before it`);
  }
  const before = await settledStatus(socket.device);
  if (before.phase !== 'none')
    reasons.push(
      `device ${id}: another upgrade is under way (${before.phase}); if it was broken off, run devstate recover`,
    );
  else if (!before.first) reasons.push(`device ${id}: no VMM is connected to its server`);
  else if (before.intx) reasons.push(`device ${id}: ${NO_INTX}`);
  return { id, source: socket, destination: socket, before };
}

/** A driver that resets its device has it without message signalled interrupts for a moment. */
async function settledStatus(device: UpgradeDevice['source']['device']): Promise<NextVmmStatus> {
  const deadline = performance.now() + SETTLE_MS;
  for (;;) {
    const status = await device.nextVmm();
    if (!status.intx || performance.now() > deadline) return status;
    await delay(ASK_AGAIN_MS);
  }
}

async function checkDevice(
  { id, source: { device } }: UpgradeDevice,
  qmp: QmpClient,
  signal: AbortSignal,
): Promise<string[]> {
  const reasons: string[] = [];
  const about = (reason: string): number => reasons.push(`device ${id}: ${reason}`);
  const state = await device.state();
  if (state !== MigrationState.RUNNING)
    about(`it is ${migrationStateName(state)}; if a migration was broken off, run devstate recover`);
  try {
    const found = await awaitPciDevice(qmp, id, { signal });
    const description = await device.description();
    const isOther =
      description !== undefined &&
      (found.vendorId !== description.pci.vendorId || found.deviceId !== description.pci.deviceId);
    if (isOther) about('the socket belongs to another device than the one QEMU has under this id');
  } catch (error) {
    if (!(error instanceof DevstateError) || error.code !== 'DEVSTATE_E_PCI_DEVICE') throw error;
    about(error.message);
  }
  return reasons;
}
