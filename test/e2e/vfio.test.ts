// SPDX-License-Identifier: Apache-2.0
/** Kernel VFIO, on a real kernel: one guest of each kind, in which the programs of `guest/` run one after the other. */
import t, { Test, type TestOpts } from 'tap';
import { VfioGuest } from './harness/vfio-guest.js';

t.setTimeout(1_200_000);

t.test('containers and groups', async (t) => {
  const guest = await VfioGuest.start(t, { qemu: true });
  if (guest === undefined) return;
  await guest.run(t, 'vfio-bed');

  await t.test('what fails in the guest fails here', async (t) => {
    t.strictSame(await guest.shell('printf "no end of line"; exit 3'), {
      code: 3,
      lines: ['no end of line'],
    });
    const hung = await guest.shell('echo begun; sleep 1000', { timeoutMs: 1000 });
    t.equal(hung.code, 137);
    t.equal(hung.lines[0], 'begun');
    const failuresOf = async (how: string): Promise<number> => {
      const probe: Test = new Test({ name: how } as TestOpts);
      probe.resume();
      await guest.run(probe, 'vfio-bed-fails', [how]);
      return probe.lists.fail.length;
    };
    t.equal(await failuresOf('not at all'), 0);
    for (const how of ['check', 'crash', 'exit']) t.equal(await failuresOf(how), 1, how);
  });

  await guest.run(t, 'vfio-transfer');
  await guest.run(t, 'vfio-holder');
  await guest.run(t, 'qemu-vfio', ['groups']);
});

t.test('iommufd and character devices', async (t) => {
  const guest = await VfioGuest.start(t, { kernel: 'iommufd', qemu: true });
  if (guest === undefined) return;
  await guest.run(t, 'vfio-bed', ['iommufd']);
  await guest.run(t, 'vfio-transfer', ['iommufd']);
  await guest.run(t, 'kernel-migration');
  await guest.run(t, 'qemu-vfio', ['iommufd']);
});
