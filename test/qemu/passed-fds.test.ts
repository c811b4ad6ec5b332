// SPDX-License-Identifier: Apache-2.0
/** Descriptors that a real QEMU is given over QMP, and what it does with them. */
import { readdirSync, readlinkSync, statSync, writeSync } from 'node:fs';
import t from 'tap';
import {
  addFd,
  addIommufd,
  addVfioPci,
  dropFd,
  executeWithFd,
  fdSetPath,
  giveFd,
  queryFdSets,
  removeFd,
} from '../../src/qemu/index.js';
import { closeAll, StreamSocket, socketPair } from '../../src/transport/index.js';
import { QemuProcess } from '../e2e/harness/qemu-process.js';
import { requireQemu } from '../e2e/harness/require-qemu.js';
import { memfd } from '../support/memory.js';
import { until } from '../support/served.js';
import { inodeOf } from './cpr/peers.js';

t.test('a QEMU', async (t) => {
  const qemu = await requireQemu(t);
  if (qemu === undefined) return;
  const vm = await QemuProcess.start(qemu, {
    memoryMiB: 64,
    extra: ['-device', 'pcie-root-port,id=root-port,chassis=1'],
  });
  t.teardown(() => vm.kill());
  const { qmp } = vm;
  /** Of the QEMU: its loader is the process that was started. */
  const folder = `/proc/${vm.process.pid}/fd`;
  const linkOf = (number: string): string => {
    try {
      return readlinkSync(`${folder}/${number}`);
    } catch {
      return 'closed since it was listed';
    }
  };
  // Memory files alone, as all are that are handed over here: QEMU opens and closes other things at times of its own.
  const openThere = () => readdirSync(folder).filter((number) => linkOf(number).startsWith('/memfd:')).length;
  const fileThere = (number: number) => {
    const { dev, ino } = statSync(`${folder}/${number}`);
    return `${dev}:${ino}`;
  };
  const memory = memfd(1 << 20);
  writeSync(memory.number, Buffer.alloc(512, 0xab), 0, 512, 4096);
  t.teardown(() => memory.close());

  await t.test('many at once, each where it belongs', async (t) => {
    const before = openThere();
    const fds = Array.from({ length: 40 }, (_, index) => memfd(4096 * (index + 1)));
    const added = await Promise.all(fds.map((fd, index) => addFd(qmp, fd, { opaque: `file ${index}` })));
    t.same(
      added.map(({ number }) => fileThere(number)),
      fds.map(inodeOf),
    );
    const sets = await queryFdSets(qmp);
    t.same(
      sets.flatMap(({ fds }) => fds.map(({ opaque }) => opaque)).sort(),
      fds.map((_, index) => `file ${index}`).sort(),
    );
    const first = added[0]!;
    const again = await addFd(qmp, memory, { set: first.set });
    t.equal(again.set, first.set);
    await removeFd(qmp, { set: first.set, number: again.number });
    await Promise.all(fds.map((fd, index) => giveFd(qmp, `name${index}`, fd)));
    await Promise.all(fds.map((_, index) => dropFd(qmp, `name${index}`)));
    for (const { set } of added) await removeFd(qmp, { set });
    t.same(await queryFdSets(qmp), []);
    t.equal(openThere(), before, 'none is left in QEMU');
    closeAll(fds);
  });

  await t.test('as memory, as a disk', async (t) => {
    const { set, number } = await addFd(qmp, memory);
    const backend = { 'qom-type': 'memory-backend-file', id: 'lent', size: 1 << 20, share: true };
    await qmp.execute('object-add', { arguments: { ...backend, 'mem-path': `/proc/self/fd/${number}` } });
    const disk = { driver: 'raw', 'node-name': 'disk', file: { driver: 'file', filename: fdSetPath(set) } };
    await qmp.execute('blockdev-add', { arguments: disk });
    const read = { 'command-line': 'qemu-io disk "read -P 0xab 4096 512"' };
    t.match(await qmp.execute('human-monitor-command', { arguments: read }), '');
    await qmp.execute('blockdev-del', { arguments: { 'node-name': 'disk' } });
    await qmp.execute('object-del', { arguments: { id: 'lent' } });
    await removeFd(qmp, { set });
  });

  await t.test('as a connected socket', async (t) => {
    const [mine, theirs] = socketPair();
    const addr = { type: 'fd', data: { str: 'wire' } };
    const chardev = { id: 'wire', backend: { type: 'socket', data: { addr, server: false } } };
    await executeWithFd(qmp, 'chardev-add', chardev, { name: 'wire', fd: theirs });
    theirs.close();
    let said = '';
    const socket = new StreamSocket(
      mine,
      { data: (bytes) => (said += Buffer.from(bytes)), ended: () => {}, lost: () => {} },
      { maxQueuedBytes: 4096 },
    );
    await qmp.execute('object-add', {
      arguments: { 'qom-type': 'qtest', id: 'qtest', chardev: 'wire', log: '/dev/null' },
    });
    socket.send(Buffer.from('inw 0xcfc\n'));
    await until(() => said.includes('\n'));
    t.match(said, /^OK 0x[0-9a-f]+\n$/);
    socket.close();
  });

  await t.test('refused, nothing is left of it', async (t) => {
    let before = openThere();
    const refused = { code: 'DEVSTATE_E_QMP_COMMAND' };
    await t.rejects(giveFd(qmp, '1st', memory), refused, 'a name that begins with a digit');
    await t.rejects(qmp.execute('getfd', { arguments: { fdname: 'x' } }), { message: /SCM_RIGHTS/ });
    const object = { 'qom-type': 'nothing', id: 'x', fd: 'x' };
    await t.rejects(executeWithFd(qmp, 'object-add', object, { name: 'x', fd: memory }), refused);
    await t.rejects(dropFd(qmp, 'x'), { message: /not found/ });
    await t.rejects(addFd(qmp, memory, { set: -7 }), refused);
    // QEMU finds out that this is no iommufd when a device is to use it.
    t.equal(openThere(), before);
    await addIommufd(qmp, { id: 'iommufd0', fd: memory });
    before = openThere();
    const device = { id: 'nic', fd: memory, iommufd: 'iommufd0', properties: { bus: 'root-port' } };
    await t.rejects(addVfioPci(qmp, device), { ...refused, message: /^QEMU refused device_add: / });
    t.equal(openThere(), before);
  });
});
