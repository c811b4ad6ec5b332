// SPDX-License-Identifier: Apache-2.0
/** The config space: what a guest can write, BAR sizing, capabilities, loading; device models. */

import t from 'tap';
import {
  type Bar,
  expressCapability,
  msixCapability,
  PciCapability,
  PciCommand,
  PciConfigSpace,
  PciRegister,
  PciStatus,
  powerManagementCapability,
} from '../../src/device/index.js';
import { ConfigAccess } from '../../src/runtime/config-access.js';
import { Errno } from '../../src/wire/index.js';
import { hex, refusal, sameBytes } from '../support/hex.js';

const IDENTITY = {
  vendorId: 0x1b36,
  deviceId: 0x0010,
  subsystemVendorId: 0x1af4,
  subsystemId: 0x1100,
  revision: 2,
  classCode: 0x010802,
  intx: true,
};
const BARS: Bar[] = [
  { index: 0, size: 0x4000, kind: 'memory64' },
  { index: 2, size: 0x1000, kind: 'memory32' },
  { index: 3, size: 0x20, kind: 'io' },
];
const MSIX = { vectors: 64, tableBar: 2, tableOffset: 0, pbaBar: 2, pbaOffset: 0x800 };

const config = (bars: readonly Bar[] = BARS): PciConfigSpace =>
  new PciConfigSpace(IDENTITY, bars, [
    powerManagementCapability(),
    msixCapability(MSIX),
    expressCapability(),
  ]);

/** The accesses of a guest. */
const guest = (space: PciConfigSpace) => new ConfigAccess(space);

function read(space: PciConfigSpace, offset: number, length: number): string {
  const bytes = new Uint8Array(length);
  guest(space).read(offset, bytes);
  return Buffer.from(bytes).toString('hex');
}

t.test('identity', async (t) => {
  const space = config();
  t.equal(read(space, 0, 4), '361b1000');
  t.equal(read(space, 8, 4), '02020801');
  t.equal(read(space, 0x2c, 4), 'f41a0011');
  t.equal(read(space, PciRegister.INTERRUPT_PIN, 1), '01');
  t.equal(read(space, PciRegister.STATUS, 2), '1000');
  space.setInterruptStatus(true);
  t.equal(space.bytes[PciRegister.STATUS], PciStatus.CAPABILITIES_LIST | PciStatus.INTERRUPT);
  space.setInterruptStatus(false);
  t.equal(space.bytes[PciRegister.STATUS], PciStatus.CAPABILITIES_LIST);
});

t.test('BARs tell their size', async (t) => {
  const sizes: [Bar, string][] = [
    [{ index: 0, size: 0x4000, kind: 'memory64' }, '04c0ffff ffffffff'],
    [{ index: 0, size: 0x1000, kind: 'memory32' }, '00f0ffff 00000000'],
    [{ index: 0, size: 0x20, kind: 'io' }, 'e1ffffff 00000000'],
    [{ index: 0, size: 2 ** 31, kind: 'memory64' }, '04000080 ffffffff'],
    [{ index: 0, size: 2 ** 32, kind: 'memory64' }, '04000000 ffffffff'],
    [{ index: 0, size: 2 ** 40, kind: 'memory64' }, '04000000 00ffffff'],
  ];
  for (const [bar, expected] of sizes) {
    const space = config([bar]);
    guest(space).write(PciRegister.BAR0, hex('ffffffff'));
    guest(space).write(PciRegister.BAR0 + 4, hex('ffffffff'));
    t.equal(read(space, PciRegister.BAR0, 8), expected.replace(' ', ''), `${bar.kind} of ${bar.size}`);
  }
  for (const size of [0, 8, 24, 0x1001, 3 * 2 ** 32])
    t.throws(() => config([{ index: 0, size, kind: 'memory64' }]));
});

t.test('a guest writes what it may and nothing else', async (t) => {
  const space = config();
  const before = space.bytes.slice();
  const allowed = new Set<number>();
  const allow = (from: number, bytes: number): void => {
    for (let i = 0; i < bytes; i++) allowed.add(from + i);
  };
  allow(PciRegister.COMMAND, 2);
  allow(PciRegister.CACHE_LINE_SIZE, 1);
  allow(PciRegister.INTERRUPT_LINE, 1);
  allow(PciRegister.BAR0, 16);
  allow(space.findCapability(PciCapability.POWER_MANAGEMENT) + 4, 1);
  allow(space.findCapability(PciCapability.MSIX) + 3, 1);
  allow(space.findCapability(PciCapability.EXPRESS) + 8, 2);
  for (const value of [0xff, 0x00, 0xa5]) guest(space).write(0, new Uint8Array(256).fill(value));
  guest(space).write(0, new Uint8Array(256).fill(0xff));
  for (let i = 0; i < 256; i++) {
    if (!allowed.has(i) && space.bytes[i] !== before[i]) t.fail(`byte 0x${i.toString(16)} was written`);
  }
  t.equal(space.command, 0x547);
  t.equal(space.bytes[space.findCapability(PciCapability.MSIX) + 3]! & 0xc0, 0xc0);
  space.reset();
  t.ok(sameBytes(space.bytes, before));
});

t.test('capabilities', async (t) => {
  const space = config();
  const found = [PciCapability.POWER_MANAGEMENT, PciCapability.MSIX, PciCapability.EXPRESS].map((id) =>
    space.findCapability(id),
  );
  t.strictSame(found, [0x40, 0x48, 0x54]);
  t.equal(space.findCapability(PciCapability.MSI), 0);
  t.equal(read(space, 0x48, 12), '11543f000200000002080000');
  space.bytes[0x49] = 0x48;
  t.equal(space.findCapability(PciCapability.MSI), 0, 'a chain that is a ring ends');
  const huge = { bytes: new Uint8Array(200), writable: new Uint8Array(200) };
  t.throws(() => new PciConfigSpace(IDENTITY, [], [huge]), RangeError);
  const none = new PciConfigSpace({ ...IDENTITY, intx: false }, [], []);
  t.equal(none.findCapability(PciCapability.MSIX), 0);
  t.equal(read(none, PciRegister.STATUS, 2), '0000');
  t.equal(read(none, PciRegister.INTERRUPT_PIN, 1), '00');
});

t.test('loading', async (t) => {
  const source = config();
  guest(source).write(PciRegister.COMMAND, Uint8Array.of(PciCommand.MEMORY | PciCommand.BUS_MASTER, 0));
  guest(source).write(PciRegister.BAR0, hex('0000c0fe'));
  guest(source).write(PciRegister.INTERRUPT_LINE, hex('0b'));
  source.setInterruptStatus(true);
  const target = config();
  target.load(source.bytes);
  t.equal(target.command, 6);
  t.equal(read(target, PciRegister.BAR0, 4), '0400c0fe');
  t.equal(target.bytes[PciRegister.STATUS], PciStatus.CAPABILITIES_LIST, "status is the device's own");
  const ones = config();
  guest(ones).write(0, new Uint8Array(256).fill(0xff));
  const zeros = config();
  guest(zeros).write(0, new Uint8Array(256));
  for (let i = 0; i < 256; i++) {
    const volatile = i === PciRegister.STATUS || i === PciRegister.STATUS + 1;
    const guestOwns = (ones.bytes[i]! ^ zeros.bytes[i]!) === 0xff;
    const other = target.bytes.slice();
    other[i]! ^= 0xff;
    const fresh = config();
    const before = fresh.bytes.slice();
    const refused = refusal(() => fresh.load(other)) === Errno.EINVAL;
    if (refused !== !(volatile || guestOwns)) t.fail(`byte 0x${i.toString(16)}: refused is ${refused}`);
    if (refused && !sameBytes(fresh.bytes, before))
      t.fail(`refused for 0x${i.toString(16)} and changed all the same`);
  }
  t.equal(
    refusal(() => target.load(new Uint8Array(255))),
    Errno.EINVAL,
  );
  t.equal(
    refusal(() => target.load(new Uint8Array(4096))),
    Errno.EINVAL,
  );
});
