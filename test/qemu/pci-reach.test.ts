// SPDX-License-Identifier: Apache-2.0
/** Devices behind bridges that no one has numbered, or not all of them, are reached in QEMUs of several machines. */
import t, { type Test } from 'tap';
import { findConfigAccess, Qtest, withLocation } from '../../src/qemu/index.js';
import { configRead, configValues, configWrite, type PciLocation } from '../../src/qemu/pci-commands.js';
import type { GuestArchitecture } from '../../tools/qemu/provision.js';
import { QemuProcess } from '../e2e/harness/qemu-process.js';
import { requireForeign, requireQemu } from '../e2e/harness/require-qemu.js';

const PORT = 'pcie-root-port,id=rp,chassis=1,addr=06.0';
const SWITCH = ['x3130-upstream,id=up,bus=rp', 'xio3130-downstream,id=down,bus=up,chassis=2'];

interface Case {
  readonly name: string;
  readonly architecture: GuestArchitecture;
  readonly machine: string;
  /** Before the device, in this order. */
  readonly bridges: readonly string[];
  readonly place: string;
  /** What the guest has numbered: slot on bus 0, and the three numbers. */
  readonly numbered?: readonly [slot: number, numbers: number];
}

const cases: readonly Case[] = [
  {
    name: 'an ECAM of 16 buses',
    architecture: 'arm64',
    machine: 'virt,highmem=off',
    bridges: [PORT, ...SWITCH],
    place: 'bus=down,addr=00.0',
  },
  {
    name: 'an ECAM of 16 buses, below a second root bus',
    architecture: 'arm64',
    machine: 'virt,highmem=off',
    bridges: ['pxb-pcie,id=root8,bus_nr=8', 'pcie-root-port,id=rp,chassis=1,bus=root8'],
    place: 'bus=rp,addr=00.0',
  },
  {
    name: 'a root bus that has the highest number',
    architecture: 'x86_64',
    machine: 'q35',
    bridges: [PORT, 'pxb-pcie,id=root255,bus_nr=255'],
    place: 'bus=rp,addr=00.0',
  },
  {
    name: 'a switch that was added to a port with one bus',
    architecture: 'x86_64',
    machine: 'q35',
    bridges: [PORT, ...SWITCH],
    place: 'bus=down,addr=00.0',
    numbered: [6, 0x010100],
  },
  {
    name: 'another port that has all numbers but two',
    architecture: 'arm64',
    machine: 'virt,highmem=off',
    bridges: [PORT, 'pcie-root-port,id=other,chassis=3,addr=07.0'],
    place: 'bus=rp,addr=00.0',
    numbered: [7, 0x0f0200],
  },
  {
    name: 'a port that has all the numbers',
    architecture: 'arm64',
    machine: 'virt,highmem=off',
    bridges: [PORT, ...SWITCH],
    place: 'bus=down,addr=00.0',
    numbered: [6, 0x0f0100],
  },
];

async function start(t: Test, { architecture, machine, bridges, place, numbered }: Case) {
  const qemu =
    architecture === 'arm64' ? (await requireForeign(t, architecture))?.qemu : await requireQemu(t);
  if (qemu === undefined) return undefined;
  const devices = [...bridges, `nvme,id=disk0,serial=1,${place}`].flatMap((device) => ['-device', device]);
  const cpu = architecture === 'arm64' ? ['-cpu', 'cortex-a57'] : [];
  const vm = await QemuProcess.start(qemu, { machine, paused: true, extra: [...cpu, ...devices] });
  t.teardown(() => vm.kill());
  const qtest = await Qtest.attach(vm.qmp);
  t.teardown(() => qtest.close());
  const ends = { qmp: vm.qmp, qtest };
  if (numbered !== undefined) {
    const [slot, numbers] = numbered;
    const config = await findConfigAccess(vm.qmp, 'disk0');
    await qtest.run(configWrite({ bus: 0, slot, function: 0, config }, 0x18, 'l', numbers));
  }
  return ends;
}

for (const one of cases)
  t.test(one.name, async (t) => {
    const ends = await start(t, one);
    if (ends === undefined) return;
    const before = await ends.qmp.execute('query-pci');
    const identity = async (location: PciLocation): Promise<number[]> => {
      const reads = configRead(location, 0, 'l');
      return configValues(reads, await ends.qtest.run(reads));
    };
    t.same(await withLocation(ends, 'disk0', true, identity), [0x00101b36], 'vendor and device id');
    t.same(await ends.qmp.execute('query-pci'), before, 'the numbers are as they were');
  });

t.test('a machine that has no number left', async (t) => {
  const bridges = [PORT, 'pcie-root-port,id=other,chassis=3,addr=07.0'];
  const numbered = [7, 0x0f0100] as const;
  const place = 'bus=rp,addr=00.0';
  const ends = await start(t, {
    name: '',
    architecture: 'arm64',
    machine: 'virt,highmem=off',
    bridges,
    place,
    numbered,
  });
  if (ends === undefined) return;
  await t.rejects(
    withLocation(ends, 'disk0', true, async () => {}),
    { code: 'DEVSTATE_E_PCI_DEVICE', message: /of the machine's 16 none is left.*use a machine with more/ },
  );
});
