// SPDX-License-Identifier: Apache-2.0
/**
 * QEMUs in this guest, with its `edu` device by the kernel's VFIO. With `groups`: what one hands to the next in a
 * cpr-transfer, through the relay of `devstate cpr`. With `iommufd`: a QEMU that opens nothing and is handed it all.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, openSync, readdirSync, readlinkSync } from 'node:fs';
import {
  addIommufd,
  addVfioPci,
  type CprReport,
  MigrationWatch,
  QmpClient,
  queryRunState,
  relayCprChannel,
  resumeVm,
  startTransfer,
  transferArguments,
} from '../../../src/qemu/index.js';
import { Fd } from '../../../src/transport/index.js';
import { check, finish } from './report.js';

const EDU = '0000:00:03.0';

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 20));
}

interface GuestQemu {
  readonly child: ChildProcess;
  /** Settles when it answers. */
  readonly qmp: Promise<QmpClient>;
}

function startQemu(name: string, more: readonly string[]): GuestQemu {
  const path = `/tmp/${name}.qmp`;
  const machine = ['-accel', 'tcg', '-m', '32', '-nodefaults', '-display', 'none', '-S'];
  const ports = ['-device', 'pcie-root-port,id=port0,chassis=1', '-qmp', `unix:${path},server=on,wait=off`];
  const child = spawn('/qemu/run', [...machine, ...ports, ...more], { stdio: 'inherit' });
  return { child, qmp: connectWhenThere(path) };
}

async function connectWhenThere(path: string): Promise<QmpClient> {
  for (;;) {
    await until(() => existsSync(path));
    const qmp = await QmpClient.connect(path, { timeoutMs: 60_000 }).catch(() => undefined);
    if (qmp !== undefined) return qmp;
  }
}

/** It is there, whether or not the firmware has found it. */
async function hasDevice(qmp: QmpClient): Promise<void> {
  const found = await qmp.execute('qom-list', { arguments: { path: '/machine/peripheral/edu0' } });
  assert.match(JSON.stringify(found), /"x-vga"|"sysfsdev"/);
}

async function byGroups(): Promise<void> {
  const group = readlinkSync(`/sys/bus/pci/devices/${EDU}/iommu_group`).split('/').at(-1);
  const sockets = { cpr: '/tmp/cpr.sock', main: '/tmp/main.sock' };
  const between = '/tmp/between.sock';
  const shared = [
    ...['-M', 'q35,aux-ram-share=on,memory-backend=mem'],
    ...['-object', 'memory-backend-memfd,id=mem,size=32M,share=on'],
    ...['-device', `vfio-pci,id=edu0,host=${EDU},bus=port0`],
  ];
  const source = startQemu('source', shared);
  const qmp = await source.qmp;
  await resumeVm(qmp);
  const events = { capabilities: [{ capability: 'events', state: true }] };
  await qmp.execute('migrate-set-capabilities', { arguments: events });
  await qmp.execute('migrate-set-parameters', { arguments: { mode: 'cpr-transfer' } });

  /** One list through the relay. The rest of the migration finds no one: the source continues in any case. */
  const handOver = async (requirements: readonly string[]): Promise<CprReport> => {
    let listening = (): void => {};
    const ready = new Promise<void>((resolve) => (listening = resolve));
    const paths = { listenPath: between, forwardPath: sockets.cpr };
    const relayed = relayCprChannel({ ...paths, requirements, timeoutMs: 60_000, onListening: listening });
    await ready;
    const watch = new MigrationWatch(qmp);
    await startTransfer(qmp, { cpr: between, main: '/tmp/nobody' });
    const report = await relayed;
    assert.equal(await watch.waitForAny(['completed', 'failed']), 'failed');
    watch.close();
    assert.equal((await queryRunState(qmp)).running, true);
    await hasDevice(qmp);
    return report;
  };
  const required = [
    ...['mem:0', `vfio_group:${group}`, `vfio_container_for_group:${group}`, `${EDU}:0`],
    ...[`${EDU}_intx-interrupt`, `${EDU}_req_notifier`],
  ];

  await check('a list without what is required is refused', async () => {
    const { forwarded, reasons } = await handOver([...required, 'vfio_group:99']);
    assert.deepEqual({ forwarded, reasons }, { forwarded: false, reasons: ['vfio_group:99 is not there'] });
  });

  await check('container, group, device and eventfds go to the next QEMU, which uses them', async () => {
    const destination = startQemu('destination', [...shared, ...transferArguments(sockets)]);
    await until(() => existsSync(sockets.cpr));
    const { error, descriptors } = await handOver(required);
    assert.equal(error, null);
    const kinds = new Map(descriptors.map(({ name, descriptor }) => [name, descriptor.kind]));
    assert.equal(kinds.get('vfio_group'), 'vfio-group');
    assert.equal(kinds.get('vfio_container_for_group'), 'vfio-container');
    assert.equal(kinds.get(EDU), 'vfio-device');
    assert.equal(kinds.get(`${EDU}_intx-interrupt`), 'eventfd');
    // Its group is open: no one can open it a second time.
    await hasDevice(await destination.qmp);
    destination.child.kill('SIGKILL');
  });
  source.child.kill('SIGKILL');
}

async function byIommufd(): Promise<void> {
  const { child, qmp: answering } = startQemu('lent', ['-M', 'q35']);
  const qmp = await answering;
  await check('a QEMU is handed an iommufd and a device', async () => {
    const [node = ''] = readdirSync('/dev/vfio/devices');
    const iommufd = new Fd(openSync('/dev/iommu', 'r+'));
    const device = new Fd(openSync(`/dev/vfio/devices/${node}`, 'r+'));
    await addIommufd(qmp, { id: 'iommufd0', fd: iommufd });
    await addVfioPci(qmp, { id: 'edu0', fd: device, iommufd: 'iommufd0', properties: { bus: 'port0' } });
    iommufd.close();
    device.close();
    await hasDevice(qmp);
    await resumeVm(qmp);
    assert.equal((await queryRunState(qmp)).running, true);
  });
  child.kill('SIGKILL');
}

await (process.argv.includes('iommufd') ? byIommufd() : byGroups());
finish();
