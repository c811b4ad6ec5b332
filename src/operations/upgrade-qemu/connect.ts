// SPDX-License-Identifier: Apache-2.0
/**
 * Phases *start* and *connect*: the devices' servers wait for another VMM, the new QEMU comes up and connects to them,
 * the VM stops.
 */

import {
  applySettings,
  destinationSettings,
  execArguments,
  planSettings,
  replaceSettings,
  startExec,
  startTransfer,
  transferArguments,
} from '../../qemu/index.js';
import { changeSource } from '../migrate/qemu-settings.js';
import { forEachDevice } from '../migrate/run.js';
import { requireNewQemu } from './identity.js';
import { connectQemu, startQemu } from './new-qemu.js';
import type { UpgradeRun } from './run.js';

/** Beyond the operation's own time, so that a server never gives up first, ms. */
const MARGIN_MS = 10_000;
/** Longest that a server may be asked to wait, ms. */
const MAX_WAIT_MS = 600_000;

/** Nothing has changed for the VM yet. */
export async function start(run: UpgradeRun): Promise<void> {
  run.phase = 'start';
  run.report({ phase: 'start' });
  const { options, scratch, signal } = run;
  const timeoutMs = Math.min(options.timeoutMs + MARGIN_MS, MAX_WAIT_MS);
  await forEachDevice(run, ({ source: { device } }) => device.setNextVmm({ action: 'await', timeoutMs }));
  const command = [...options.command];
  if (options.mode === 'cpr-transfer') {
    command.push(...transferArguments(scratch));
    await startQemu(command, options.log, scratch.cpr, signal, (process) => {
      run.process = process;
    });
  } else command.push(...execArguments(scratch.state));
  await changeSource(run, replaceSettings(options.mode, command));
}

/** Ends when QEMU waits, VM stopped, at `pre-switchover`; the new process can be asked by then. */
export async function connect(run: UpgradeRun): Promise<void> {
  run.phase = 'connect';
  run.report({ phase: 'connect' });
  const { options, source, scratch, signal } = run;
  const stopped = source.watch.waitFor('pre-switchover', { signal });
  stopped.catch(() => {});
  if (options.mode === 'cpr-exec') {
    await startExec(source.qmp, scratch.state, { signal });
    run.started = true;
    return stopped;
  }
  await startTransfer(source.qmp, scratch, { signal });
  run.started = true;
  await stopped;
}

/** The new process, which makes its devices while the old one's VM still runs. */
export async function connectDestination(run: UpgradeRun): Promise<void> {
  if (run.options.mode === 'cpr-exec') return;
  const destination = await connectQemu(run.qmpPath, run.process, run.signal);
  run.destination = destination;
  const { qmp } = destination;
  const { signal } = run;
  await requireNewQemu(run, destination, signal);
  const settings = destinationSettings();
  const planned = await planSettings(qmp, settings, { signal });
  // No note has them: they are put back before the VM runs there, and a QEMU in which it does not run is ended.
  if (run.settings !== undefined) run.settings = { ...run.settings, destination: planned };
  await applySettings(qmp, settings, planned, { signal });
}
