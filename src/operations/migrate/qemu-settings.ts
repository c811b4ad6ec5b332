// SPDX-License-Identifier: Apache-2.0
/**
 * The migration settings of the QEMUs that take part: how they were is written down, in the notes, before the first of
 * them changes, and they are put back however the operation ends.
 */

import { DevstateError } from '../../errors.js';
import {
  alsoOurs,
  applySettings,
  destinationSettings,
  downtimeLimit,
  NO_CHANGE,
  planSettings,
  putBackSettings,
  type QmpClient,
  type SettingsChange,
  sourceSettings,
  stopVm,
  type WantedSettings,
} from '../../qemu/index.js';
import { type ChangedSettings, readNote, writeNote } from './note.js';
import { saidBy } from './reasons.js';
import { forEachDevice, type Run, type RunDevice, runsAtSource, type Vm } from './run.js';

/** How long a QEMU may take to have its settings put back, ms. */
const PUT_BACK_TIMEOUT_MS = 30_000;

/** As much of an operation as is needed here. */
export interface SettingsOwner {
  readonly source: Pick<Vm, 'qmp' | 'guest'>;
  readonly devices: readonly Pick<RunDevice, 'id' | 'source'>[];
  readonly signal: AbortSignal;
  /** Undefined as long as nothing was changed. */
  settings: ChangedSettings | undefined;
}

/** Makes both QEMUs ready to migrate. @param downtimeMs QEMU's own part of the pause */
export async function prepareQemus(run: Run, downtimeMs: number): Promise<void> {
  const { options, destination, signal } = run;
  const { qmp } = destination;
  const settings = destinationSettings();
  const planned = await saidBy('destination', planSettings(qmp, settings, { signal }));
  await changeSource(run, sourceSettings({ ...options, downtimeMs }), planned);
  // While it waits, `stop` means: do not run when you have everything. As -S does, which may have been forgotten.
  await saidBy('destination', stopVm(qmp, { signal }));
  await saidBy('destination', applySettings(qmp, settings, planned, { signal }));
}

/**
 * Changes the source's settings. Notes are written first, at every device: of what changes here, and of what is to change
 * at the destination.
 */
export async function changeSource(
  run: SettingsOwner,
  wanted: WantedSettings,
  destination: SettingsChange = NO_CHANGE,
): Promise<void> {
  const { signal } = run;
  const running = runsAtSource(run);
  const { qmp } = run.source;
  await forEachDevice(run, ({ source }) => putBackLeft(source, qmp, signal));
  const settings = { source: await planSettings(qmp, wanted, { signal }), destination };
  const devices = run.devices.map(({ id }) => id);
  await forEachDevice(run, ({ id, source }) => writeNote(source.device, { id, devices, running, settings }));
  run.settings = settings;
  await saidBy('source', applySettings(qmp, wanted, settings.source, { signal }));
}

/**
 * Changes the bound for QEMU's own part of the pause while it migrates. The notes say first that this value is ours too.
 */
export async function changeDowntime(run: Run, before: number, downtimeMs: number): Promise<void> {
  const { settings, signal } = run;
  const running = runsAtSource(run);
  if (settings === undefined) return;
  const wanted = { capabilities: {}, parameters: { 'downtime-limit': downtimeLimit(downtimeMs) } };
  const source = alsoOurs(settings.source, wanted.parameters, { 'downtime-limit': downtimeLimit(before) });
  const changed = { ...settings, source };
  const devices = run.devices.map(({ id }) => id);
  await forEachDevice(run, (device) =>
    writeNote(device.source.device, { id: device.id, devices, running, settings: changed }),
  );
  run.settings = changed;
  await applySettings(run.source.qmp, wanted, source, { signal });
}

/** A manager that was killed while the device still ran left the settings changed, and need not have been recovered from. */
async function putBackLeft(
  { device }: RunDevice['source'],
  qmp: QmpClient,
  signal: AbortSignal,
): Promise<void> {
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
