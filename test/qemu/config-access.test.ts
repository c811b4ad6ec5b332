// SPDX-License-Identifier: Apache-2.0
/** The way to configuration space, as it is found in QEMUs of several machines. */
import t from 'tap';
import { findConfigAccess, findPciDevice, proveConfigAccess, Qtest } from '../../src/qemu/index.js';
import { configRead, configValues } from '../../src/qemu/pci-commands.js';
import { QemuProcess } from '../e2e/harness/qemu-process.js';
import { requireQemu } from '../e2e/harness/require-qemu.js';

const PORTS = { kind: 'ports', address: 0xcf8, data: 0xcfc };
const cases = [
  { machine: 'pc', expected: PORTS },
  { machine: 'q35', expected: PORTS },
  { machine: 'microvm,pcie=on', expected: { kind: 'ecam', base: 0xe0000000, size: 0x10000000 } },
];

for (const { machine, expected } of cases) {
  t.test(machine, async (t) => {
    const qemu = await requireQemu(t);
    if (qemu === undefined) return;
    const extra = ['-device', 'nvme,id=disk0,serial=1,addr=05.0'];
    const vm = await QemuProcess.start(qemu, { machine, paused: true, extra });
    t.teardown(() => vm.kill());
    t.same(await findConfigAccess(vm.qmp, 'disk0'), expected);
    const device = await findPciDevice(vm.qmp, 'disk0');
    const qtest = await Qtest.attach(vm.qmp);
    t.teardown(() => qtest.close());
    const reads = configRead(device, 0, 'l');
    t.same(configValues(reads, await qtest.run(reads)), [0x00101b36], 'vendor and device id');
    await proveConfigAccess(qtest, device);
    if (expected.kind !== 'ecam') return;
    const other = proveConfigAccess(qtest, { ...device, slot: 6 });
    await t.rejects(other, {
      code: 'DEVSTATE_E_PCI_CONFIG_ACCESS',
      exitCode: 3,
      message: /the ECAM at 0xe0000000/,
    });
  });
}

t.test('a machine without a way', async (t) => {
  const qemu = await requireQemu(t);
  if (qemu === undefined) return;
  const vm = await QemuProcess.start(qemu, { machine: 'microvm', paused: true });
  t.teardown(() => vm.kill());
  await t.rejects(findConfigAccess(vm.qmp, 'disk0'), {
    code: 'DEVSTATE_E_PCI_CONFIG_ACCESS',
    exitCode: 3,
    message: /machine "microvm" has no known way/,
  });
});
