// SPDX-License-Identifier: Apache-2.0
/** Kernel VFIO, on a real kernel: one guest of each kind, in which the programs of `guest/` run one after the other. */
import t from 'tap';
import { VfioGuest } from './harness/vfio-guest.js';

t.setTimeout(1_200_000);

t.test('containers and groups', async (t) => {
  const guest = await VfioGuest.start(t, { qemu: true });
  if (guest === undefined) return;
  await guest.run(t, 'vfio-bed');
  await guest.run(t, 'vfio-transfer');
  await guest.run(t, 'qemu-vfio', ['groups']);
});

t.test('iommufd and character devices', async (t) => {
  const guest = await VfioGuest.start(t, { kernel: 'iommufd', qemu: true });
  if (guest === undefined) return;
  await guest.run(t, 'vfio-bed', ['iommufd']);
  await guest.run(t, 'kernel-migration');
  await guest.run(t, 'qemu-vfio', ['iommufd']);
});
