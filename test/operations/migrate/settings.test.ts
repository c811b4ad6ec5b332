// SPDX-License-Identifier: Apache-2.0
/** The bound for QEMU's part of the pause, which the manager changes as it measures, and others may change too. */
import t from 'tap';
import {
  changeDowntime,
  noteSettings,
  putBackAt,
  type SettingsOwner,
  type SettingsRecord,
} from '../../../src/operations/migrate/qemu-settings.js';
import { applySettings, GuestWatch, queryParameter, sourceSettings } from '../../../src/qemu/index.js';
import { QemuProcess } from '../../e2e/harness/qemu-process.js';
import { requireQemu } from '../../e2e/harness/require-qemu.js';

t.test('what somebody else has set meanwhile is not overwritten', async (t) => {
  const qemu = await requireQemu(t);
  if (qemu === undefined) return;
  const vm = await QemuProcess.start(qemu, { paused: true, memoryMiB: 64 });
  t.teardown(() => vm.kill());
  const { qmp } = vm;
  const guest = await GuestWatch.begin(qmp);
  t.teardown(() => guest.close());
  const { signal } = new AbortController();
  const owner: SettingsOwner = { source: { qmp, guest }, devices: [], signal };
  const changeSource = async (): Promise<SettingsOwner & { readonly settings: SettingsRecord }> => {
    const wanted = sourceSettings({ downtimeMs: 300 });
    const settings = await noteSettings(owner, wanted);
    await applySettings(qmp, wanted, settings.current.source);
    return { ...owner, settings };
  };
  const limit = (): Promise<unknown> => queryParameter(qmp, 'downtime-limit');
  const set = (ms: number): Promise<unknown> =>
    qmp.execute('migrate-set-parameters', { arguments: { 'downtime-limit': ms } });
  await set(500);
  const run = await changeSource();
  t.equal(await limit(), 300);
  await changeDowntime(run, 300, 200);
  t.equal(await limit(), 200);
  await putBackAt('source', qmp, run.settings.current);
  t.equal(await limit(), 500, 'as it was');

  const again = await changeSource();
  await changeDowntime(again, 300, 200);
  await set(777);
  await changeDowntime(again, 200, 100);
  t.equal(await limit(), 777, 'while it migrates');
  await putBackAt('source', qmp, again.settings.current);
  t.equal(await limit(), 777, 'and afterwards');
});
