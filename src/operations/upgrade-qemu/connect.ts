// SPDX-License-Identifier: Apache-2.0
/**
 * Phases *start* and *connect*: the devices' servers wait for another VMM, the new QEMU comes up and connects to them,
 * the VM stops.
 */

import {
  applySettings,
  execArguments,
  replaceSettings,
  startExec,
  startTransfer,
  transferArguments,
} from '../../qemu/index.js';
import { DetachedProcess } from '../detached-process.js';
import { requireSameDevices } from '../identity/index.js';
import { noteSettings } from '../migrate/qemu-settings.js';
import { saidBy } from '../migrate/reasons.js';
import { beginning, forEachDevice, type Reach } from '../phased.js';
import { namedIn } from './identity.js';
import { untilListening } from './new-qemu.js';
import type { Revocable, State, Transfer, Way } from './phases.js';

/** Beyond the operation's own time, so that a server never gives up first, ms. */
const MARGIN_MS = 10_000;
/** Longest that a server may be asked to wait, ms. */
const MAX_WAIT_MS = 600_000;

/** Nothing has changed for the VM yet. */
export async function start(
  checked: State<'checked'>,
  reach: Reach<Revocable>,
): Promise<State<'configured'>> {
  const awaiting = reach({ ...checked, tag: 'awaiting' });
  const { options, source, scratch, signal, report } = awaiting;
  report({ phase: 'start' });
  const timeoutMs = Math.min(options.timeoutMs + MARGIN_MS, MAX_WAIT_MS);
  await forEachDevice(awaiting, ({ source: { device } }) =>
    device.setNextVmm({ action: 'await', timeoutMs }),
  );
  const isExec = options.mode === 'cpr-exec';
  const more = isExec ? execArguments(scratch.state) : transferArguments(scratch);
  const command = [...options.command, ...more];
  const way: Way = isExec ? { mode: 'cpr-exec' } : await launch(awaiting, command, reach);
  const wanted = replaceSettings(options.mode, command);
  const settings = await noteSettings(awaiting, wanted);
  const configured = reach({ ...awaiting, tag: 'configured', way, settings });
  await saidBy('source', applySettings(source.qmp, wanted, settings.current.source, { signal }));
  return configured;
}

async function launch(
  awaiting: State<'awaiting'>,
  command: readonly string[],
  reach: Reach<Revocable>,
): Promise<Transfer> {
  const { options, scratch, signal } = awaiting;
  const process = new DetachedProcess(command, options.log);
  const { way } = reach({
    ...awaiting,
    tag: 'launched',
    way: { mode: 'cpr-transfer', qemu: { process, vm: undefined } },
  });
  await untilListening(process, scratch.cpr, signal);
  return way;
}

/** Ends when QEMU waits, VM stopped, at `pre-switchover`; the new process can be asked by then. */
export async function connect(
  configured: State<'configured'>,
  reach: Reach<Revocable>,
): Promise<State<'at-switchover'>> {
  const connecting = reach({ ...configured, tag: 'connecting' });
  const { options, source, scratch, signal, report } = connecting;
  report({ phase: 'connect' });
  const begun =
    options.mode === 'cpr-exec'
      ? startExec(source.qmp, scratch.state, { signal })
      : startTransfer(source.qmp, scratch, { signal });
  await beginning(begun, () => reach({ ...connecting, tag: 'migrating' }));
  source.watch.begin();
  const migrating = reach({ ...connecting, tag: 'migrating' });
  const stopped = source.watch.waitFor('pre-switchover', { signal });
  await Promise.all([stopped, requireSameDevices(source.qmp, 'old', namedIn(options), signal)]);
  return reach({ ...migrating, tag: 'at-switchover' });
}
