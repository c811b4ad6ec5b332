// SPDX-License-Identifier: Apache-2.0
/** Groups and what stands in the way of them, from a tree as sysfs has it; how much memory a process may lock. */

import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import t, { type Test } from 'tap';
import { devicesOfGroup, listVfio, memoryLock, requireMemoryLock } from '../../src/vfio/index.js';

interface TreeDevice {
  readonly driver?: string;
  readonly files?: Record<string, string>;
}

/** A machine with these groups. */
function machine(t: Test, groups: Record<string, Record<string, TreeDevice>>, dev: string[] = []): string {
  const root = t.testdir();
  const put = (path: string, content: string): void => {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), content);
  };
  for (const path of dev) put(`dev/${path}`, '');
  for (const [group, devices] of Object.entries(groups)) {
    for (const [name, { driver, files = {} }] of Object.entries(devices)) {
      const path = `sys/kernel/iommu_groups/${group}/devices/${name}`;
      mkdirSync(join(root, path), { recursive: true });
      for (const [file, content] of Object.entries(files)) put(`${path}/${file}`, content);
      if (driver !== undefined) symlinkSync(`../../../bus/pci/drivers/${driver}`, join(root, path, 'driver'));
    }
  }
  return root;
}

const pci = { vendor: '0x1234\n', device: '0x11e8\n', class: '0x00ff00\n' };

t.test('a machine without an IOMMU', async (t) => {
  t.same(listVfio(t.testdir()), { container: false, iommufd: false, groups: [] });
});

t.test('groups', async (t) => {
  const root = machine(
    t,
    {
      10: {
        '0000:03:00.0': { driver: 'vfio-pci', files: pci },
        '0000:03:00.1': { driver: 'snd_hda_intel', files: pci },
      },
      2: { '0000:00:03.0': { driver: 'vfio-pci', files: { ...pci, 'vfio-dev/vfio7/dev': '' } } },
      3: { '0000:00:04.0': { driver: 'nvme', files: pci } },
      4: {
        '0000:00:1c.0': { driver: 'pcieport', files: pci },
        '0000:01:00.0': { driver: 'mlx5_vfio_pci', files: pci },
      },
      5: { '0000:00:05.0': { driver: 'vfio-pci', files: pci } },
      6: { '83b8f4f2-509f-382f-3c1e-e6bfe0fa1001': { driver: 'vfio_mtty' } },
    },
    ['vfio/vfio', 'vfio/2', 'vfio/4', 'vfio/6', 'vfio/10'],
  );
  const { groups, container, iommufd } = listVfio(root);
  t.same({ container, iommufd }, { container: true, iommufd: false });
  t.same(
    groups.map(({ id, viable, reasons }) => [id, viable, reasons]),
    [
      ['2', true, []],
      ['3', false, ['no device of it is bound to vfio-pci (0000:00:04.0: nvme)']],
      ['4', true, []],
      ['5', true, ['/dev/vfio/5 does not exist']],
      ['6', true, []],
      ['10', false, ['0000:03:00.1 is bound to the host driver snd_hda_intel']],
    ],
  );
  t.same(groups[0]?.devices, [
    {
      name: '0000:00:03.0',
      id: '1234:11e8',
      class: '0x00ff00',
      driver: 'vfio-pci',
      cdev: 'vfio7',
      inTheWay: false,
    },
  ]);
  t.same(devicesOfGroup('4', root), ['0000:01:00.0'], 'a bridge is not opened');
  t.same(devicesOfGroup('10', root), ['0000:03:00.0']);
  t.same(devicesOfGroup('99', root), []);
});

t.test('a group without an IOMMU', async (t) => {
  const root = machine(t, { 0: { '0000:00:03.0': { driver: 'vfio-pci', files: pci } } }, ['vfio/noiommu-0']);
  writeFileSync(join(root, 'sys/kernel/iommu_groups/0/name'), 'vfio-noiommu\n');
  t.match(listVfio(root).groups, [{ id: 'noiommu-0', viable: true, reasons: [] }]);
  t.same(devicesOfGroup('noiommu-0', root), ['0000:00:03.0']);
});

t.test('memory that may be locked', async (t) => {
  const status = (capabilities: string): string =>
    `Name:\tx\nVmLck:\t     256 kB\nCapEff:\t${capabilities}\n`;
  const limits = (soft: string): string =>
    `Limit                     Soft Limit           Hard Limit           Units     \nMax locked memory         ${soft}              8388608              bytes     \n`;
  t.same(memoryLock(status('0000000000000000'), limits('65536')), { limit: 65536, locked: 262144 });
  t.equal(memoryLock(status('0000000000004000'), limits('65536')).limit, Number.POSITIVE_INFINITY);
  t.equal(memoryLock(status('0000000000000000'), limits('unlimited')).limit, Number.POSITIVE_INFINITY);
  const own = memoryLock();
  t.ok(own.limit > 0 && own.locked >= 0, 'of this process');

  requireMemoryLock(4096, { limit: 8192, locked: 4096 });
  t.throws(() => requireMemoryLock(4097, { limit: 8192, locked: 4096 }), {
    code: 'DEVSTATE_E_VFIO_MEMLOCK',
    message: /4097 bytes locked for DMA besides the 4096 .* allows 8192: raise it to 8193/,
  });
});
