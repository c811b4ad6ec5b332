// SPDX-License-Identifier: Apache-2.0
/** What the relay remembers of a VMM, and what it would tell another server. */

import t from 'tap';
import type { BackEnd } from '../../src/relay/back-end.js';
import { ConfigLog } from '../../src/relay/config-log.js';
import { ConfigShadow } from '../../src/relay/config-shadow.js';
import { DmaMaps } from '../../src/relay/dma-maps.js';
import { resetBitsOf } from '../../src/relay/identity.js';
import { InterruptLog } from '../../src/relay/interrupt-log.js';
import { ReplayLog } from '../../src/relay/replay-log.js';
import { filterVersion, versionDifferences } from '../../src/relay/version-filter.js';
import type { Fd } from '../../src/transport/index.js';
import {
  Command,
  DmaUnmapFlag,
  decodeDmaMap,
  decodeVersion,
  encodeHeader,
  IrqSetFlag,
  PciIrq,
} from '../../src/wire/index.js';
import { openFds } from '../support/closes.js';
import { eventfd, memfd } from '../support/memory.js';

const { DATA_NONE, DATA_BOOL, DATA_EVENTFD, ACTION_MASK, ACTION_UNMASK, ACTION_TRIGGER } = IrqSetFlag;
const NO_DATA = new Uint8Array(0);
const ASSIGN = DATA_EVENTFD | ACTION_TRIGGER;

const fds = openFds;

t.test('interrupts: the last word on each vector, in as few messages as there may be', async (t) => {
  const before = fds();
  const log = new InterruptLog();
  const set = (flags: number, index: number, start: number, count: number, withFds = 0, data = NO_DATA) =>
    log.set({ flags, index, start, count }, data, Array.from({ length: withFds }, eventfd));
  const told = (maxFds: number) =>
    [...log.messages(maxFds)].map(({ request, fds }) => ({ ...request, fds: fds.length }));

  set(ASSIGN, PciIrq.MSIX, 0, 5, 5);
  set(ASSIGN, PciIrq.MSIX, 2, 1); // none on purpose: QEMU's vector with fd -1
  set(ASSIGN, PciIrq.MSIX, 8, 1, 1);
  set(ASSIGN, PciIrq.INTX, 0, 1, 1);
  set(DATA_NONE | ACTION_MASK, PciIrq.INTX, 0, 1);
  t.same(told(16), [
    { flags: ASSIGN, index: PciIrq.MSIX, start: 0, count: 2, fds: 2 },
    { flags: ASSIGN, index: PciIrq.MSIX, start: 2, count: 1, fds: 0 },
    { flags: ASSIGN, index: PciIrq.MSIX, start: 3, count: 2, fds: 2 },
    { flags: ASSIGN, index: PciIrq.MSIX, start: 8, count: 1, fds: 1 },
    { flags: ASSIGN, index: PciIrq.INTX, start: 0, count: 1, fds: 1 },
    { flags: DATA_NONE | ACTION_MASK, index: PciIrq.INTX, start: 0, count: 1, fds: 0 },
  ]);
  t.equal(told(1).length, 8, 'with one fd a message');

  set(DATA_BOOL | ACTION_UNMASK, PciIrq.INTX, 0, 1, 0, Uint8Array.of(1));
  set(DATA_NONE | ACTION_TRIGGER, PciIrq.MSIX, 0, 0);
  set(DATA_NONE | ACTION_TRIGGER, PciIrq.INTX, 0, 1); // a loopback says nothing lasting
  t.same(told(16), [{ flags: ASSIGN, index: PciIrq.INTX, start: 0, count: 1, fds: 1 }]);
  log.close();
  t.equal(fds(), before, 'no eventfd is left');
});

t.test('config space: what was written since the reset, the command register last', async (t) => {
  const log = new ConfigLog();
  log.write(0x04, Uint8Array.of(0x06, 0x05, 0xff, 0xff)); // with the status register, which does not last
  log.write(0x10, Uint8Array.of(0, 0xc0, 0xbf, 0xfe));
  log.write(0x3c, Uint8Array.of(0x0b));
  log.write(0x42, Uint8Array.of(0x01, 0x80));
  log.write(0x10, Uint8Array.of(0, 0xd0));
  t.same(
    [...log.writes()].map(({ offset, data }) => [offset, ...data]),
    [
      [0x10, 0, 0xd0, 0xbf, 0xfe],
      [0x3c, 0x0b],
      [0x42, 0x01, 0x80],
      [0x04, 0x06, 0x05],
    ],
  );
  const config = new Uint8Array(256);
  config[0x34] = 0x40;
  config.set([0x11, 0x50], 0x40);
  config.set([0x10, 0x00], 0x50);
  log.resetBits = resetBitsOf(config);
  log.write(0x58, Uint8Array.of(0, 0x00));
  t.equal([...log.writes()].length, 5);
  log.write(0x58, Uint8Array.of(0, 0x80));
  t.same([...log.writes()], [], 'a function level reset is a reset');
});

t.test('guest memory: pieces of several ranges, by their own fds', async (t) => {
  const before = fds();
  const maps = new DmaMaps();
  const [low, high] = [memfd(8192), memfd(4096)];
  maps.add({ flags: 3, offset: 4096, address: 0x1000, size: 4096 }, low);
  maps.add({ flags: 3, offset: 0, address: 0x2000, size: 4096 }, high);
  maps.add({ flags: 1, offset: 0, address: 0x8000, size: 4096 }, undefined);
  const bytes = Uint8Array.from({ length: 3000 }, (_, i) => i % 251);
  maps.write(0x1c00, bytes);
  const back = new Uint8Array(3000);
  maps.read(0x1c00, back);
  t.same(back, bytes);
  t.throws(() => maps.read(0x2c00, back), /not mapped/);
  t.throws(() => maps.read(0x8000, back), /not mapped with an fd/, 'memory that only messages reach');
  t.same(maps.entries({ first: 0, most: 100 }), [
    { address: 0x1000, size: 4096, flags: 3 },
    { address: 0x2000, size: 4096, flags: 3 },
  ]);
  maps.remove({ flags: 0, address: 0x1000, size: 4096 });
  t.equal(maps.size, 2);
  maps.remove({ flags: DmaUnmapFlag.ALL, address: 0, size: 0 });
  t.equal(maps.size, 0);
  t.equal(fds(), before, 'no fd is left');
});

t.test('VERSION: what cannot be passed on is taken out, everything else stays', async (t) => {
  const payload = (json: unknown) =>
    Buffer.concat([Uint8Array.of(0, 0, 1, 0), Buffer.from(`${JSON.stringify(json)}\0`)]);
  const filtered = filterVersion(
    payload({
      capabilities: {
        twin_socket: { supported: true },
        max_data_xfer_size: 2 ** 24,
        max_msg_fds: 8,
        // Fewer than any process may have: what is not said is the specification's default, which may be too many.
        max_dma_maps: 100,
        other: 'x',
      },
    }),
  );
  t.same(JSON.parse(Buffer.from(filtered.subarray(4, -1)).toString()), {
    capabilities: { max_data_xfer_size: 2 ** 20, max_msg_fds: 8, max_dma_maps: 100, other: 'x' },
  });
  t.same(filtered.subarray(0, 4), Uint8Array.of(0, 0, 1, 0));
  for (const same of [Uint8Array.of(0, 0, 1, 0), Buffer.from('\0\0\0\0nonsense\0')])
    t.equal(filterVersion(same), same);
  const version = decodeVersion(new DataView(filtered.buffer), 0, filtered.length);
  t.same(versionDifferences(version, version), []);
  const { capabilities } = version;
  t.match(versionDifferences(version, { ...version, capabilities: { ...capabilities, maxMsgFds: 1 } }), [
    /max_msg_fds: 8 here, 1 there/,
  ]);
});

t.test('config space of a stopped device', async (t) => {
  const shadow = new ConfigShadow(Uint8Array.from({ length: 256 }, (_, i) => i));
  const request = (command: number, region: number, offset: number, count: number, data: number[] = []) => {
    const bytes = new Uint8Array(32 + data.length);
    const view = new DataView(bytes.buffer);
    encodeHeader(view, 0, 7, command, bytes.length, 0);
    view.setUint32(16, offset, true);
    view.setUint32(24, region, true);
    view.setUint32(28, count, true);
    bytes.set(data, 32);
    return { bytes, view, length: bytes.length };
  };
  t.same(shadow.access(request(Command.REGION_READ, 7, 0x10, 2))?.subarray(16), Buffer.of(0x10, 0x11));
  t.equal(shadow.access(request(Command.REGION_WRITE, 7, 0x10, 2, [9, 8]))?.length, 16);
  t.same(shadow.access(request(Command.REGION_READ, 7, 0x10, 2))?.subarray(16), Buffer.of(9, 8));
  t.equal(shadow.access(request(Command.REGION_READ, 0, 0x10, 2)), undefined, 'another region');
  t.equal(shadow.access(request(Command.REGION_READ, 7, 0xff, 2)), undefined, 'behind its end');
});

t.test('memory is replayed some ranges at a time, as it was when that began', async (t) => {
  const before = fds();
  const log = new ReplayLog();
  const COUNT = 1000;
  for (let i = 0; i < COUNT; i++)
    log.dma.add(
      { address: i * 8192, size: 4096, offset: 0, flags: 3 },
      i % 2 === 0 ? memfd(4096) : undefined,
    );
  const addresses: number[] = [];
  const waiting: (() => void)[] = [];
  const back = {
    version: { capabilities: { maxMsgFds: 1 } },
    request: (
      _command: number,
      [payload]: [Uint8Array],
      _taken: unknown,
      { fds: sent = [] }: { fds?: readonly Fd[] },
    ) => {
      for (const fd of sent) if (!Number.isInteger(fd.number)) throw new Error('it was closed');
      addresses.push(decodeDmaMap(new DataView(payload.buffer), 0, payload.length).address);
      return new Promise<void>((resolve) => waiting.push(resolve));
    },
  } as unknown as BackEnd;
  const done = log.replay(back);
  t.ok(addresses.length < COUNT / 2, `${addresses.length} before the first answer`);
  // Meanwhile the VMM unmaps some, then everything, and maps something else.
  log.dma.remove({ flags: 0, address: 900 * 8192, size: 4096 });
  log.dma.remove({ flags: DmaUnmapFlag.ALL, address: 0, size: 0 });
  log.dma.add({ address: 0, size: 8192, offset: 0, flags: 3 }, memfd(8192));
  let settled = false;
  const settles = (): boolean => (settled = true);
  done.then(settles, settles);
  while (!settled) {
    for (const resolve of waiting.splice(0)) resolve();
    await new Promise((resolve) => setImmediate(resolve));
  }
  await done;
  t.same(
    addresses,
    Array.from({ length: COUNT }, (_, i) => i * 8192),
  );
  t.equal(fds(), before + 1, 'that of the new range');
  log.close();
  t.equal(fds(), before);
});
