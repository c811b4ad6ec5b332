// SPDX-License-Identifier: Apache-2.0
/**
 * The migration settings of the QEMUs that take part: how they were is written down, in the notes, before the first of
 * them changes, and they are put back however the operation ends.
 */

import { DevstateError } from '../../errors.js';
import {
  alsoOurs,
  applySettings,
  downtimeLimit,
  NO_CHANGE,
  planSettings,
  putBackSettings,
  type QmpClient,
  queryParameter,
  type SettingsChange,
  type WantedSettings,
} from '../../qemu/index.js';
import type { DeviceSocket } from '../device-socket.js';
import { forEachDevice } from '../phased.js';
import { type ChangedSettings, type Noted, noted, readNote, writeNote } from './note.js';
import { type MovedDevice, runsAtSource, type Vm } from './parties.js';

/** How long a QEMU may take to have its settings put back, ms. */
const PUT_BACK_TIMEOUT_MS = 30_000;

/** What was changed of the QEMUs' migration settings, as the notes have it. */
export interface SettingsRecord {
  current: ChangedSettings;
}

/** As much of an operation as is needed here. */
export interface SettingsOwner {
  readonly source: Pick<Vm, 'qmp' | 'guest'>;
  readonly devices: readonly Pick<MovedDevice, 'id' | 'source'>[];
  readonly signal: AbortSignal;
  readonly destinationSockets?: Noted['destinationSockets'];
}

/**
 * Has notes written, at every device, of what is to change: at the source to become `wanted`, and at the destination. Before
 * anything changes; what an earlier manager has left changed is put back.
 */
export async function noteSettings(
  owner: SettingsOwner,
  wanted: WantedSettings,
  destination: SettingsChange = NO_CHANGE,
): Promise<SettingsRecord> {
  const { signal } = owner;
  const running = runsAtSource(owner);
  const { qmp } = owner.source;
  await forEachDevice(owner, ({ source }) => putBackLeft(source, qmp, signal));
  const current = { source: await planSettings(qmp, wanted, { signal }), destination };
  await writeNotes(owner, current, running);
  return { current };
}

async function writeNotes(owner: SettingsOwner, settings: ChangedSettings, running: boolean): Promise<void> {
  const devices = owner.devices.map(({ id }) => id);
  const note = { devices, running, ...noted({ ...owner, settings }) };
  await forEachDevice(owner, ({ id, source }) => writeNote(source.device, { id, ...note }));
}

/**
 * Changes the bound for QEMU's own part of the pause while it migrates. The notes say first that this value is ours too.
 * One that somebody else has given it meanwhile stays.
 */
export async function changeDowntime(
  owner: SettingsOwner & { readonly settings: SettingsRecord },
  before: number,
  downtimeMs: number,
): Promise<void> {
  const { settings, signal } = owner;
  const running = runsAtSource(owner);
  const { qmp } = owner.source;
  const now = await queryParameter(qmp, 'downtime-limit', { signal });
  if (now !== downtimeLimit(before)) return;
  const wanted = { capabilities: {}, parameters: { 'downtime-limit': downtimeLimit(downtimeMs) } };
  const was = { 'downtime-limit': downtimeLimit(before) };
  const source = alsoOurs(settings.current.source, wanted.parameters, was);
  const changed = { ...settings.current, source };
  await writeNotes(owner, changed, running);
  settings.current = changed;
  await applySettings(qmp, wanted, source, { signal });
}

/** A manager that was killed while the device still ran left the settings changed, and need not have been recovered from. */
async function putBackLeft({ device }: DeviceSocket, qmp: QmpClient, signal: AbortSignal): Promise<void> {
  const left = (await readNote(device))?.settings;
  if (left !== undefined) await putBackSettings(qmp, left.source, { signal });
}

/** @throws DEVSTATE_E_QMP_…, with what to do about it */
export async function putBackAt(
  where: keyof ChangedSettings,
  qmp: QmpClient,
  settings: ChangedSettings | undefined,
): Promise<void> {
  if (settings === undefined) return;
  try {
    await putBackSettings(qmp, settings[where], { signal: AbortSignal.timeout(PUT_BACK_TIMEOUT_MS) });
  } catch (error) {
    const { capabilities, parameters } = settings[where];
    const names = [...Object.keys(capabilities), ...Object.keys(parameters)].join(', ');
    const why = error instanceof Error ? error.message : String(error);
    const code = error instanceof DevstateError ? error.code : 'DEVSTATE_E_QMP_CLOSED';
    const message = `migration settings of the ${where} QEMU (${names}) could not be put back: ${why}`;
    throw new DevstateError(code, message, { cause: error });
  }
}
