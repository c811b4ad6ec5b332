// SPDX-License-Identifier: Apache-2.0
/** Phase *check*: everybody is there and fits together. Refuses with every reason at once, before anything changes. */

import { DevstateError } from '../../errors.js';
import {
  awaitPciDevice,
  connectedSockets,
  GuestWatch,
  MigrationWatch,
  missingCpuFeatures,
  privateFiles,
  QemuOutput,
  QmpClient,
  Qtest,
  queryMigration,
  queryRunState,
  unlikeSettings,
  whyMemoryIsLost,
} from '../../qemu/index.js';
import { MigrationFlag, MigrationState, migrationStateName } from '../../wire/index.js';
import { type DeviceSocket, openDeviceSocket } from '../device-socket.js';
import { askPeer, type FormatOptions, type Planned, planReasons, planState } from '../state-plan.js';
import { requireConfigAccess, whyNoConfigAccess } from './config-access.js';
import { identifyQemus, proveMigration } from './identity.js';
import { PageCopier } from './page-copy.js';
import type { MovedDevice, Vm } from './parties.js';
import type { State } from './phases.js';
import type { DevicePair, MigrateOptions, MigrateProgress } from './types.js';
import { requireUri, whyNotListen } from './uri.js';

/** Migration states of QEMU in which another one may begin. */
const IDLE = ['none', 'completed', 'failed', 'cancelled'];

/** Closes what was opened so far when the check fails. */
type Cleanup = (() => void)[];

/**
 * Connects to all who take part and checks them.
 * @throws DEVSTATE_E_USAGE, DEVSTATE_E_CONNECT, DEVSTATE_E_QMP_CONNECT, DEVSTATE_E_INCOMPATIBLE
 */
export async function check(
  options: MigrateOptions,
  signal: AbortSignal,
  report: (progress: MigrateProgress) => void,
): Promise<State<'checked'>> {
  report({ phase: 'check' });
  requireDistinct(options);
  const cleanup: Cleanup = [];
  try {
    const sourceQmp = await openQmp(options.sourceQmp, signal, cleanup);
    const destinationQmp = await openQmp(options.destQmp, signal, cleanup);
    const qemus = { source: { qmp: sourceQmp }, destination: { qmp: destinationQmp } };
    const { censuses, reasons, remarks } = await identifyQemus(qemus, options, signal);
    const devices: MovedDevice[] = [];
    const misfits: string[] = [];
    for (const pair of options.devices) {
      const { device, planned } = await openPair(pair, options, cleanup);
      devices.push(device);
      misfits.push(...planReasons(planned).map((reason) => `device ${device.id}: ${reason}`));
    }
    const runState = await queryRunState(sourceQmp, { signal });
    reasons.push(...(await checkSourceVm(runState.status, devices)));
    await checkQemus(sourceQmp, destinationQmp, signal, reasons);
    for (const why of [unlikeSettings, whyMemoryIsLost, missingCpuFeatures])
      reasons.push(...(await why(sourceQmp, destinationQmp, { signal })));
    const unusable = await whyNotListen(options.uri, destinationQmp);
    if (unusable !== undefined) reasons.push(unusable);
    for (const device of devices) misfits.push(...(await checkDevice(device, sourceQmp, signal)));
    if (reasons.length > 0) {
      const noAccess = await whyNoConfigAccess(sourceQmp, destinationQmp, devices, signal);
      refuse([...reasons, ...noAccess, ...misfits]);
    }
    const source = await attach(sourceQmp, signal, cleanup);
    const destination = await attach(destinationQmp, signal, cleanup);
    await requireConfigAccess(source, destination, devices, signal);
    // First what was mixed up: it may be why the rest does not fit.
    const unproven = await proveMigration({ source, destination }, devices, censuses, options, signal);
    refuse([...unproven, ...misfits]);
    return {
      tag: 'checked',
      options,
      signal,
      source,
      destination,
      devices,
      warnings: [...remarks, ...p2pWarnings(devices)],
      report,
      destinationSockets: await connectedSockets(destinationQmp, censuses.destination.present, { signal }),
    };
  } catch (error) {
    for (const close of cleanup.reverse()) close();
    throw error;
  }
}

/** @throws DEVSTATE_E_INCOMPATIBLE unless there is no reason to refuse */
function refuse(reasons: readonly string[]): void {
  if (reasons.length === 0) return;
  const message = `the migration was refused before it began: ${reasons.join('; ')}`;
  throw new DevstateError('DEVSTATE_E_INCOMPATIBLE', message);
}

function requireDistinct(options: MigrateOptions): void {
  const usage = (message: string): never => {
    throw new DevstateError('DEVSTATE_E_USAGE', message);
  };
  requireUri(options.uri);
  if (options.sourceQmp === options.destQmp)
    usage(`source and destination QMP are the same socket, ${options.destQmp}`);
  if (options.devices.length === 0)
    usage('no device to migrate: name each with --device ID,source=PATH,dest=PATH');
  const { without = [], unproven = [], imageUnchecked = [], devices } = options;
  const isNamed = (name: string): boolean => devices.some(({ id }) => id === name);
  const left = without.find(isNamed);
  if (left !== undefined) usage(`device ${left} is named to be migrated and to be left behind (--without)`);
  for (const [option, names] of Object.entries({ unproven, 'image-unchecked': imageUnchecked })) {
    const unknown = names.find((name) => !isNamed(name));
    if (unknown !== undefined) usage(`--${option} ${unknown}: no device of this name is to be migrated`);
  }
  const ids = new Set<string>();
  const sockets = new Set<string>();
  for (const { id, source, dest } of options.devices) {
    if (source === dest) usage(`device ${id}: source and destination are the same socket, ${source}`);
    if (ids.has(id)) usage(`device ${id} is named twice`);
    ids.add(id);
    for (const path of [source, dest]) {
      if (sockets.has(path)) usage(`socket ${path} is named for two devices`);
      sockets.add(path);
    }
  }
}

async function openQmp(path: string, signal: AbortSignal, cleanup: Cleanup): Promise<QmpClient> {
  const qmp = await QmpClient.connect(path, { signal });
  cleanup.push(() => qmp.close());
  return qmp;
}

async function attach(qmp: QmpClient, signal: AbortSignal, cleanup: Cleanup): Promise<Vm> {
  const qtest = await Qtest.attach(qmp, { signal });
  cleanup.push(() => qtest.close());
  const watch = new MigrationWatch(qmp);
  cleanup.push(() => watch.close());
  const guest = await GuestWatch.begin(qmp, { signal });
  cleanup.push(() => guest.close());
  const output = await QemuOutput.watch(qmp.pid);
  cleanup.push(() => output?.close());
  return { qmp, qtest, watch, guest, output };
}

async function openPair(
  { id, source, dest }: DevicePair,
  options: FormatOptions,
  cleanup: Cleanup,
): Promise<{ device: MovedDevice; planned: Planned }> {
  const open = async (path: string): Promise<DeviceSocket> => {
    const socket = await openDeviceSocket(path);
    cleanup.push(() => socket.device.close());
    return socket;
  };
  const sockets = { source: await open(source), destination: await open(dest) };
  const planned = planState(
    await askPeer(sockets.source.device),
    await askPeer(sockets.destination.device),
    options,
  );
  const { plan } = planned;
  const copier = new PageCopier(sockets.source.device, sockets.destination.device);
  cleanup.push(() => copier.close());
  const device = {
    id,
    ...sockets,
    description: plan.source.description,
    plan,
    copier,
  };
  return { device, planned };
}

/**
 * A VM that was paused and came back from a migration that failed after QEMU's part of it is `postmigrate` too, which
 * QEMU refuses to migrate. The devices tell the two apart: they were released, and stay stopped, only when the VM has
 * arrived elsewhere.
 */
async function checkSourceVm(status: string, devices: readonly MovedDevice[]): Promise<string[]> {
  if (status === 'running' || status === 'paused' || status === 'suspended') return [];
  if (status !== 'postmigrate') return [`the source VM is ${status}`];
  const states = await Promise.all(devices.map(({ source }) => source.device.state()));
  if (states.some((state) => state !== MigrationState.RUNNING))
    return ['the source VM has been migrated away already: quit it'];
  return [
    'the source VM was paused when a migration failed, and QEMU migrates it only after it has run: resume it with cont',
  ];
}

/** Devices that write to each other need to be quiet before the first of them stops. */
function p2pWarnings(devices: readonly MovedDevice[]): string[] {
  if (devices.length < 2) return [];
  const without = devices.filter(({ source }) => (source.flags & MigrationFlag.P2P) === 0);
  return without.map(
    ({ id }) =>
      `device ${id} has no P2P state: what it wrote to another device while they stopped may be lost`,
  );
}

async function checkQemus(
  source: QmpClient,
  destination: QmpClient,
  signal: AbortSignal,
  reasons: string[],
): Promise<void> {
  const migration = await queryMigration(source, { signal });
  if (!IDLE.includes(migration.status))
    reasons.push(`the source VM is migrating already (${migration.status})`);
  for (const why of migration.blocked)
    reasons.push(
      `the source QEMU (${source.path}) cannot be migrated: ${why}; remove from the VM what it names`,
    );
  const destinationState = await queryRunState(destination, { signal });
  if (destinationState.status !== 'inmigrate') {
    reasons.push(
      `the destination QEMU is ${destinationState.status}, not waiting: start it with -S -incoming defer`,
    );
  }
  for (const [where, qmp] of [
    ['source', source],
    ['destination', destination],
  ] as const) {
    if (!qmp.isAtLeast(10, 1))
      reasons.push(`the ${where} QEMU is older than 10.1, the first with vfio-user-pci`);
    for (const id of await privateFiles(qmp, { signal })) {
      const why = 'guest and device would each have a copy of it; start it with share=on';
      reasons.push(`the ${where} QEMU has the memory ${id} with share=off: ${why}`);
    }
  }
}

async function checkDevice(device: MovedDevice, qmp: QmpClient, signal: AbortSignal): Promise<string[]> {
  const reasons: string[] = [];
  const about = (reason: string): number => reasons.push(`device ${device.id}: ${reason}`);
  const found = await awaitPciDevice(qmp, device.id, { signal }).catch((error: unknown) => {
    about(error instanceof Error ? error.message : String(error));
    return undefined;
  });
  const states = await Promise.all([device.source.device.state(), device.destination.device.state()]);
  if (states[0] !== MigrationState.RUNNING) {
    about(
      `its source is ${migrationStateName(states[0])}; if a migration was broken off, run devstate recover`,
    );
  }
  if (states[1] !== MigrationState.RUNNING) about(`its destination is ${migrationStateName(states[1])}`);

  const told = device.description?.pci;
  if (found !== undefined && told !== undefined) {
    const { vendorId, deviceId } = told;
    if (found.vendorId !== vendorId || found.deviceId !== deviceId) {
      about('the source socket belongs to another device than the one QEMU has under this id');
    }
  }
  if ((await device.source.device.dmaMaps()).length === 0) about('no VMM is connected to its source server');
  if ((await device.destination.device.dmaMaps()).length === 0)
    about('no VMM is connected to its destination server');
  return reasons;
}
