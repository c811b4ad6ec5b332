// SPDX-License-Identifier: Apache-2.0
/** The relay of a CPR channel, between ends that behave in every way; test/e2e/cpr.test.ts has real QEMUs at them. */
import { openSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import t from 'tap';
import { describeDescriptor, relayCprChannel } from '../../../src/qemu/index.js';
import { Fd, Listener, socketPair } from '../../../src/transport/index.js';
import { cprState, DEVICES, ENTRIES } from '../../formats/qemu-cpr/states.js';
import { eventfd, memfd } from '../../support/memory.js';
import { socketFolder } from '../../support/served.js';
import { attempt, inodeOf, openFds, type Sent, sending, withFds } from './peers.js';

const memory = () => memfd(4096);
const one = [{ name: 'mem', id: 0 }];

t.test('byte for byte, descriptor for descriptor', async (t) => {
  await withFds(memory, 600, async (fds) => {
    const before = openFds();
    const entries = fds.map((_, index) => ({ name: 'ram', id: index }));
    let load = (): void => {};
    const loading = new Promise<void>((resolve) => (load = resolve));
    const { report, destination } = await attempt(
      t,
      async (source) => {
        await source.send(sending(entries, fds, []));
        // The source must not hear of it before the destination has loaded.
        await new Promise((resolve) => setTimeout(resolve, 100));
        t.equal(source.isReleased, false);
        load();
      },
      { destination: { loading }, requirements: ['ram', 'ram:599'] },
    );
    t.match(report, { forwarded: true, error: null, version: 1, reasons: [], unknown: null });
    t.equal(report.descriptors.length, 600);
    t.match(report.descriptors[7], {
      name: 'ram',
      id: 7,
      descriptor: { kind: 'memfd', name: 'test memory', size: 4096, seals: [] },
    });
    t.ok(Buffer.concat(destination.bytes).equals(cprState(entries, [])));
    t.ok(Buffer.from(report.stream).equals(cprState(entries, [])));
    t.same(destination.files, fds.map(inodeOf));
    t.equal(openFds(), before, 'no descriptor is left');
  });
});

t.test('refused: the source is released, the destination receives nothing', async (t) => {
  await withFds(memory, 2, async (fds) => {
    const [first, second] = fds as [Fd, Fd];
    const whole = sending(one, [first], []);
    const bytes = cprState(one, []);
    const cases: [
      name: string,
      send: readonly Sent[],
      code: string,
      message: RegExp,
      requirements?: string[],
    ][] = [
      [
        'a requirement',
        whole,
        'DEVSTATE_E_CPR_REFUSED',
        /refused: mem:1 is not there; vga is not there$/,
        ['mem:1', 'mem', 'mem:0', 'vga'],
      ],
      ['garbage', [{ bytes: Buffer.from('GET / HTTP/1.1\r\n\r\n') }], 'DEVSTATE_E_CONTENT_DAMAGED', /QCPR/],
      ['nothing', [], 'DEVSTATE_E_CONTENT_TRUNCATED', /the stream stops/],
      ['a list that is cut', whole.slice(0, 2), 'DEVSTATE_E_CONTENT_TRUNCATED', /the stream stops/],
      ['no descriptor', [{ bytes }], 'DEVSTATE_E_CONTENT_DAMAGED', /0 descriptors came where one/],
      ['two', whole.with(1, { bytes: Buffer.from(' '), fds }), 'DEVSTATE_E_CONTENT_DAMAGED', /2 descriptors/],
      [
        'one too early',
        [{ bytes, fds: [second] }],
        'DEVSTATE_E_CONTENT_DAMAGED',
        /1 descriptors came where none/,
      ],
      [
        'another version',
        [{ bytes: Buffer.from('QCPR\0\0\0\x02') }],
        'DEVSTATE_E_CONTENT_UNSUPPORTED',
        /version 2/,
      ],
      [
        'a container that is memory',
        sending([{ name: 'vfio_container_for_group', id: 3 }], [first]),
        'DEVSTATE_E_CPR_REFUSED',
        /is no vfio-container but memfd; .*without vfio_group/,
      ],
    ];
    for (const [name, send, code, message, requirements = []] of cases) {
      await t.test(name, async (t) => {
        const before = openFds();
        const { report, destination } = await attempt(t, (source) => source.send(send), { requirements });
        t.match(report, { forwarded: false, error: { code, message } });
        t.equal(destination.connections, 1, 'the destination is not left waiting');
        t.same([destination.bytes, destination.files], [[], []]);
        t.equal(openFds(), before, 'no descriptor is left');
      });
    }
  });
});

t.test('not known, passed on', async (t) => {
  await withFds(memory, 2, async (fds) => {
    const sent = [
      { bytes: Buffer.from('QCPR\0\0\0\x02something ') },
      { bytes: Buffer.from('new'), fds },
      { bytes: Buffer.from(' at last') },
    ];
    const { report, destination } = await attempt(t, (source) => source.send(sent), { passUnknown: true });
    t.match(report, {
      forwarded: true,
      version: 2,
      descriptors: [],
      unknown: { offset: 4, reason: /version 2/ },
    });
    t.same(
      report.unknown?.descriptors.map(({ kind }) => kind),
      ['memfd', 'memfd'],
    );
    t.equal(Buffer.concat(destination.bytes).toString('latin1', 8), 'something new at last');
    t.same(destination.files, fds.map(inodeOf));
    const refused = await attempt(t, (source) => source.send(sent), {
      passUnknown: true,
      requirements: ['mem'],
    });
    t.match(refused.report.error, { code: 'DEVSTATE_E_CPR_REFUSED', message: /mem is not there/ });
  });
});

t.test('ends that leave', async (t) => {
  await withFds(memory, 300, async (fds) => {
    const before = openFds();
    const entries = fds.map((_, index) => ({ name: 'x'.repeat(1000), id: index }));
    const absent = await attempt(t, (source) => source.send(sending(entries, fds)), { destination: null });
    t.match(absent.report, { forwarded: false, error: { code: 'DEVSTATE_E_CONNECT', exitCode: 5 } });
    t.equal(absent.report.descriptors.length, 300, 'what was to be forwarded is shown');
    const dying = await attempt(t, (source) => source.send(sending(entries, fds)), {
      destination: { dies: true },
    });
    t.match(dying.report, { forwarded: false, error: { code: 'DEVSTATE_E_CPR_CHANNEL' } });
    const gone = await attempt(t, async (source) => {
      await source.send(sending(entries, fds).slice(0, 99), { end: false });
      source.socket.close();
      // It does not notice any more.
      Object.assign(source, { released: Promise.resolve() });
    });
    t.match(gone.report.error, { code: /TRUNCATED|CONNECTION_CLOSED/ });
    t.equal(openFds(), before);
  });
});

t.test('time, and cancelling', async (t) => {
  await withFds(memory, 1, async (fds) => {
    const before = openFds();
    const silent = await attempt(t, async () => {}, { timeoutMs: 50 });
    t.match(silent.report.error, { code: 'DEVSTATE_E_TIMEOUT', exitCode: 4 });
    const never = new Promise<void>(() => {});
    const slow = await attempt(t, (source) => source.send(sending(one, fds)), {
      timeoutMs: 200,
      destination: { loading: never },
    });
    t.match(slow.report, { forwarded: false, error: { code: 'DEVSTATE_E_TIMEOUT' } });
    const cancel = new AbortController();
    const cancelled = await attempt(
      t,
      async (source) => {
        await source.send(sending(one, fds), { end: false });
        await source.accepted();
        cancel.abort();
      },
      { signal: cancel.signal },
    );
    t.match(cancelled.report.error, { code: 'DEVSTATE_E_CANCELLED', exitCode: 4 });
    t.equal(cancelled.destination.files.length, 0);

    const listenPath = join(socketFolder(t), 'listen');
    const options = { listenPath, forwardPath: '/nowhere', timeoutMs: 1000 };
    const waiting = new AbortController();
    const relay = relayCprChannel({ ...options, signal: waiting.signal, onListening: () => waiting.abort() });
    await t.rejects(relay, { code: 'DEVSTATE_E_CANCELLED' });
    await t.rejects(relayCprChannel({ ...options, signal: waiting.signal }), {
      code: 'DEVSTATE_E_CANCELLED',
    });
    const taken = Listener.listen(listenPath, (fd) => fd.close());
    await t.rejects(relayCprChannel(options), { code: 'DEVSTATE_E_ADDRESS_IN_USE' });
    taken.close();
    t.equal(openFds(), before);
  });
});

t.test('a list with VFIO devices is checked', async (t) => {
  // No VFIO here: what is there instead is distinguished.
  await withFds(eventfd, ENTRIES.length, async (fds) => {
    const { report } = await attempt(t, (source) => source.send(sending(ENTRIES, fds, DEVICES)));
    t.same(report.vfioDevices, DEVICES);
    t.same(report.reasons, [
      'vfio_container_for_group, id 12, is no vfio-container but eventfd',
      'vfio_group, id 12, is no vfio-group but eventfd',
      'the VFIO device nic0 is no vfio-device but eventfd',
      'the VFIO device nic0 is there without an iommufd',
    ]);
    const twice = await attempt(t, (source) => source.send(sending([...one, ...one], fds)));
    t.same(twice.report.reasons, ['mem, id 0, is there twice']);
    const bare = await attempt(t, (source) => source.send(sending([], [], DEVICES)));
    t.same(bare.report.reasons[0], 'the VFIO device nic0 is there without its descriptor');
  });
});

t.test('what a descriptor is', async (t) => {
  const [left, right] = socketPair();
  const path = join(socketFolder(t), 'file');
  const open = (path: string, flags: string) => new Fd(openSync(path, flags));
  const server = createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  const listening = (server as unknown as { _handle: { fd: number } })._handle.fd;
  const cases: [Fd, object][] = [
    [memfd(12345), { kind: 'memfd', name: 'test memory', size: 12345, seals: [] }],
    [eventfd(), { kind: 'eventfd' }],
    [left, { kind: 'socket', family: 'unix', type: 'stream', listening: false }],
    [new Fd(listening), { kind: 'socket', family: 'inet', type: 'stream', listening: true }],
    [open(path, 'w+'), { kind: 'file', path, size: 0 }],
    [open('/dev/null', 'r'), { kind: 'device', path: '/dev/null' }],
  ];
  for (const [fd, kind] of cases) {
    t.same(await describeDescriptor(fd), kind);
    if (fd.number !== listening) fd.close();
    else fd.release();
  }
  right.close();
  await new Promise((resolve) => server.close(resolve));
});
