// SPDX-License-Identifier: Apache-2.0
/**
 * What is known of a device of the kernel without a kernel that has one: its driver's format and model, its name. With one:
 * `test/e2e/guest/kernel-migration.ts`.
 */
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { KERNEL_DRIVER_FORMATS } from '../../src/formats/index.js';
import { checkDevices, deviceAddress, save } from '../../src/operations/index.js';
import { isVfioDeviceName, kernelDriver, openKernelMigration } from '../../src/vfio/migration/index.js';

t.test('which format a driver has', async (t) => {
  const root = t.testdir();
  const device = (name: string, files: Record<string, string>, links: Record<string, string>): string => {
    const folder = join(root, name);
    mkdirSync(folder);
    for (const [file, text] of Object.entries(files)) writeFileSync(join(folder, file), text);
    for (const [link, target] of Object.entries(links)) symlinkSync(target, join(folder, link));
    return folder;
  };
  const ids = { vendor: '0x15b3\n', device: '0x101e\n' };
  const drivers = {
    mlx5_vfio_pci: 'mlx5',
    hisi_acc_vfio_pci: 'hisi-acc',
    'hisi-acc-vfio-pci': 'hisi-acc',
    'xe-vfio-pci': 'xe',
    pds_vfio_pci: 'pds',
    qat_vfio_pci: 'qat',
    virtio_vfio_pci: 'virtio',
  };
  for (const [name, family] of Object.entries(drivers)) {
    const driver = kernelDriver(device(name, ids, { driver: `/sys/bus/pci/drivers/${name}` }));
    t.equal(driver.format?.name, `org.kernel.vfio.${family}`);
    t.same(driver.model, { uri: `kernel.org/vfio/${family}`, parameters: { pci: '15b3:101e' } });
    t.same(driver.pci, { vendorId: 0x15b3, deviceId: 0x101e });
  }
  const known = new Set(Object.values(drivers).map((family) => `org.kernel.vfio.${family}`));
  t.same(
    KERNEL_DRIVER_FORMATS.filter(({ name }) => !known.has(name)).map(({ name }) => name),
    ['org.kernel.vfio.mtty'],
  );

  const links = { driver: '../../bus/mdev/drivers/mtty', mdev_type: '../mdev_supported_types/mtty-2' };
  const mediated = kernelDriver(device('mediated', {}, links));
  t.same(mediated.model, { uri: 'kernel.org/vfio/mtty', parameters: { type: 'mtty-2' } });
  t.equal(mediated.pci, undefined);

  for (const name of ['vfio-pci', 'nvgrace_gpu_vfio_pci']) {
    const driver = kernelDriver(device(name, ids, { driver: `/x/${name}` }));
    t.equal(driver.name, name);
    t.equal(driver.format, undefined);
    t.equal(driver.model, undefined);
  }
  t.equal(kernelDriver(join(root, 'none')).name, '');
});

t.test('what names a VFIO device', async (t) => {
  for (const name of [
    '/dev/vfio/devices/vfio0',
    '12:0000:03:00.0',
    'noiommu-0:0000:03:00.0',
    '3:83b8f4f2-509f-382f-3c1e-e6bfe0fa1001',
  ])
    t.strictSame(deviceAddress(name), { vfioDevice: name });
  for (const name of [
    'a.mig',
    '/run/vfio/a.mig',
    '/dev/vfio/12',
    '12',
    ':x',
    '0000:03:00.0',
    '12:/x',
    './1:x',
  ])
    t.strictSame(deviceAddress(name), { migrationSocket: name }, name);
  t.equal(isVfioDeviceName('vfio0'), false);
  for (const name of ['vfio0', '/dev/vfio/12', '0000:03:00.0'])
    await t.rejects(openKernelMigration(name), { code: 'DEVSTATE_E_USAGE', message: /GROUP:NAME/ });
});

t.test('a device that is not there, and one protocol only', async (t) => {
  const output = join(t.testdir(), 'state');
  const vfioDevice = '/dev/vfio/devices/vfio4096';
  await t.rejects(save({ vfioDevice, output, afterwards: 'run' }), { code: 'DEVSTATE_E_VFIO_GROUP' });
  await t.rejects(save({ vfioDevice: '4096:0000:03:00.0', output, afterwards: 'run' }), {
    code: 'DEVSTATE_E_VFIO_GROUP',
  });
  await t.rejects(checkDevices({ source: vfioDevice, dest: 'b.mig', protocol: 'v1' }), {
    code: 'DEVSTATE_E_NOT_MIGRATABLE',
    message: /v2 only/,
  });
});
