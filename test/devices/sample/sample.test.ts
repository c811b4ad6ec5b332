// SPDX-License-Identifier: Apache-2.0
/** The device of libvfio-user's sample server, as a VMM uses it. */

import t, { type Test } from 'tap';
import { dirtyRanges } from '../../../src/migration/index.js';
import { native, Protection } from '../../../src/native/index.js';
import { Errno, IrqInfoFlag, MigrationState, PciIrq, RegionInfoFlag } from '../../../src/wire/index.js';
import { sameBytes } from '../../support/hex.js';
import { outcome, until } from '../../support/served.js';
import { now, PAGE, PATTERN, Vmm } from './bench.js';

const { STOP, RUNNING, PRE_COPY, PRE_COPY_P2P } = MigrationState;

t.test('what it is', async (t) => {
  const { client } = await Vmm.start(t);
  t.match(await client.deviceInfo(), { flags: 3, regions: 9, irqs: 5 });
  const config = new Uint8Array(64);
  await client.regionRead(7, 0, config);
  const view = new DataView(config.buffer);
  const ids = [0x00, 0x02, 0x2c, 0x2e].map((at) => view.getUint16(at, true));
  t.same(ids, [0xdead, 0xbeef, 0xcafe, 0xbabe]);
  t.equal(config[0x3d], 1, 'INTA');

  const { READ, WRITE, MMAP, CAPS } = RegionInfoFlag;
  t.match(await client.regionInfo(0), { size: 8, flags: READ | WRITE });
  const bar1 = await client.regionInfo(1);
  const sparseAreas = [
    { offset: 0, size: PAGE },
    { offset: 2 * PAGE, size: PAGE },
  ];
  t.match(bar1, { size: 3 * PAGE, flags: READ | WRITE | MMAP | CAPS, offset: 0, sparseAreas });
  for (const region of [2, 3, 4, 5, 6, 8]) t.equal((await client.regionInfo(region)).size, 0);
  t.same(await client.irqInfo(PciIrq.INTX), { flags: IrqInfoFlag.EVENTFD, index: 0, count: 1, argsz: 16 });
  for (const index of [PciIrq.MSI, PciIrq.MSIX]) t.equal((await client.irqInfo(index)).count, 0);
  bar1.fd?.close();
});

t.test('BAR 1 is one memory, by messages and mapped', async (t) => {
  const vmm = await Vmm.start(t);
  const { fd, offset } = await vmm.client.regionInfo(1);
  if (fd === undefined) throw new Error('BAR 1 came without an fd');
  const mapping = native.map(fd.number, offset, 3 * PAGE, Protection.readWrite);
  t.equal(native.truncate(fd.number, PAGE), -Errno.EPERM, 'a VMM cannot take it away');
  fd.close();
  if (typeof mapping === 'number') throw new Error('BAR 1 cannot be mapped');
  t.teardown(() => mapping.unmap());
  const window = new Uint8Array(mapping.window(0, 3 * PAGE) as ArrayBuffer);

  const content = Uint8Array.from({ length: 3 * PAGE }, (_, i) => (i * 7) & 0xff);
  await vmm.client.regionWrite(1, 0, content);
  t.ok(sameBytes(window, content));
  window.fill(0xee, 10, 20);
  content.fill(0xee, 10, 20);
  t.ok(sameBytes(await vmm.bar1(), content));
  const part = new Uint8Array(5);
  await vmm.client.regionRead(1, 8, part);
  t.same([...part], [56, 63, 0xee, 0xee, 0xee], 'read from where it was asked for');

  await vmm.client.reset();
  t.ok((await vmm.bar1()).every((byte) => byte === 0));
  t.ok(
    window.every((byte) => byte === 0),
    'the mapping stays the memory',
  );
});

t.test('BAR 0', async (t) => {
  const vmm = await Vmm.start(t);
  const elapsed = await vmm.sinceAlarm();
  t.ok(Math.abs(elapsed - now()) <= 1, 'since 1970, as nothing was written');
  for (const [offset, length] of [
    [0, 4],
    [4, 4],
    [1, 7],
  ] as const) {
    t.equal(await outcome(vmm.client.regionRead(0, offset, new Uint8Array(length))), Errno.EINVAL);
    t.equal(await outcome(vmm.client.regionWrite(0, offset, new Uint8Array(length))), Errno.EINVAL);
  }
  await vmm.setAlarm(now() + 1000);
  t.match(await vmm.sinceAlarm(), /^-(1000|999)$/);
  await vmm.client.regionWrite(0, 0, Uint8Array.of(0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f));
  t.ok((await vmm.sinceAlarm()) < -(2 ** 62), 'the end of time');
  await vmm.client.reset();
  t.ok((await vmm.sinceAlarm()) > 10 ** 9);
});

/** An interrupt, then guest memory directly and by messages. */
async function alarmRings(t: Test): Promise<void> {
  const vmm = await Vmm.start(t);
  const report = async (): Promise<number[]> => {
    const bitmap = await vmm.migration.reportLogging({ iova: 0, length: 4 * PAGE, pageSize: PAGE });
    return [...dirtyRanges(bitmap, 0, 4 * PAGE, PAGE)].flatMap(({ iova, length }) => [iova, length]);
  };
  await vmm.migration.startLogging({ pageSize: PAGE, ranges: [] });
  const started = Date.now();
  await vmm.alarm(now() + 1);
  t.ok(Date.now() - started >= 990, 'not before its time');
  t.equal(vmm.interrupts(), 1);
  t.same(
    await report(),
    [PAGE, PAGE],
    'the second page was written without the VMM knowing, the first was not',
  );
  t.same(
    vmm.messages,
    ['write', 'read'].flatMap((kind) => [0, 1024, 2048, 3072].map((at) => [kind, at, 1024])),
    'in the sizes that the VMM takes',
  );
  for (const page of [0, 1]) t.ok(sameBytes(vmm.page(page), PATTERN), `page ${page}`);
  for (const page of [2, 3]) t.ok(vmm.page(page).every((byte) => byte === 0));

  // An edge: a second alarm is signalled although no one has unmasked INTx. A second that has been rings at once.
  await vmm.alarm(now() - 5);
  t.equal(vmm.interrupts(), 1);
}

/** Without memory and without a listener. */
async function alarmUnheard(t: Test): Promise<void> {
  const vmm = await Vmm.start(t, 1);
  await vmm.disableInterrupt();
  await vmm.alarm(now() + 1);
  await until(() => vmm.log.length === 2);
  t.match(vmm.log, [/not .* directly: the VMM has not mapped as much/, /0x0 was written .* by messages/]);
  t.equal(vmm.interrupts(), 0);
  await vmm.client.assignEventfds(PciIrq.INTX, [vmm.intx]);
  t.equal(vmm.interrupts(), 1, 'not lost');
}

/** Taken back, or gone with a reset, or with its VMM. */
async function alarmGone(t: Test): Promise<void> {
  const [written, reset, left] = [await Vmm.start(t), await Vmm.start(t), await Vmm.start(t)];
  for (const vmm of [written, reset, left]) await vmm.setAlarm(now() + 1);
  await written.setAlarm(0);
  await reset.client.reset();
  await left.client.regionWrite(1, 0, Uint8Array.of(1, 2, 3));
  left.client.close();
  const next = await left.served.vmm();
  const bytes = new Uint8Array(3);
  await next.regionRead(1, 0, bytes);
  t.same([...bytes], [0, 0, 0], 'the next VMM finds a fresh device');

  const later = await Vmm.start(t);
  await later.alarm(now() + 2);
  for (const vmm of [written, reset, left]) t.same([vmm.log, vmm.interrupts()], [[], 0]);
}

/** Stopped, nothing happens; what is due comes when it runs again. */
async function alarmWhileStopped(t: Test): Promise<void> {
  const vmm = await Vmm.start(t);
  const other = await Vmm.start(t);
  const { migration } = vmm;
  await vmm.setAlarm(now() + 1);
  await migration.setState(PRE_COPY);
  await migration.setState(PRE_COPY_P2P);
  await other.alarm(now() + 2);
  t.equal(vmm.interrupts(), 0);
  t.same(vmm.log, []);
  const exercised = vmm.exercised();
  await migration.setState(STOP);
  await migration.setState(RUNNING);
  await exercised;
  t.equal(vmm.interrupts(), 1);

  await migration.setState(STOP);
  const again = vmm.alarm(now() + 1);
  await migration.setState(RUNNING);
  await again;
  t.equal(vmm.interrupts(), 1, 'an alarm that was set while it was stopped');
}

// They wait for the clock, so they wait together.
t.test('the alarm', (t) => Promise.all([alarmRings(t), alarmUnheard(t), alarmGone(t), alarmWhileStopped(t)]));
