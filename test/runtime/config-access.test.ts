// SPDX-License-Identifier: Apache-2.0
/** A guest's accesses to a config space: bounds, function level reset, one beside the device's. */

import t from 'tap';
import { expressCapability, PciCapability, PciConfigSpace, PciRegister } from '../../src/device/index.js';
import { ConfigAccess } from '../../src/runtime/config-access.js';
import { Errno } from '../../src/wire/index.js';
import { hex, refusal, sameBytes } from '../support/hex.js';

const IDENTITY = { vendorId: 0x1b36, deviceId: 0x0010, classCode: 0x010802 };

const config = (): PciConfigSpace => new PciConfigSpace(IDENTITY, [], [expressCapability()]);

t.test('accesses outside', async (t) => {
  const guest = new ConfigAccess(config());
  t.equal(
    refusal(() => guest.read(256, new Uint8Array(1))),
    Errno.EINVAL,
  );
  t.equal(
    refusal(() => guest.read(253, new Uint8Array(4))),
    Errno.EINVAL,
  );
  t.equal(
    refusal(() => guest.write(255, new Uint8Array(2))),
    Errno.EINVAL,
  );
  t.equal(
    refusal(() => guest.read(255, new Uint8Array(1))),
    0,
  );
});

t.test('function level reset is a request, not a value', async (t) => {
  const space = config();
  const guest = new ConfigAccess(space);
  const control = space.findCapability(PciCapability.EXPRESS) + 8;
  guest.write(control, hex('ff7f'));
  t.equal(guest.takeFunctionLevelReset(), false);
  guest.write(control, hex('1080'));
  t.equal(guest.takeFunctionLevelReset(), true);
  t.ok(sameBytes(space.bytes.subarray(control, control + 2), hex('1000')));
  t.equal(guest.takeFunctionLevelReset(), false);
  t.equal(
    new ConfigAccess(new PciConfigSpace(IDENTITY, [])).takeFunctionLevelReset(),
    false,
    'without PCI Express',
  );
});

t.test('one as after a reset, beside that of the device', async (t) => {
  const space = config();
  const before = space.bytes.slice();
  const own = new ConfigAccess(space);
  own.write(PciRegister.INTERRUPT_LINE, hex('0b'));
  const fresh = ConfigAccess.fresh(space);
  const bytes = new Uint8Array(256);
  fresh.read(0, bytes);
  t.ok(sameBytes(bytes, before));
  fresh.write(PciRegister.INTERRUPT_LINE, hex('0c'));
  fresh.read(0, bytes);
  t.equal(bytes[PciRegister.INTERRUPT_LINE], 0x0c);
  t.equal(space.bytes[PciRegister.INTERRUPT_LINE], 0x0b, 'the other stays as it is');
  fresh.reset();
  fresh.read(0, bytes);
  t.ok(sameBytes(bytes, before));
  t.equal(space.bytes[PciRegister.INTERRUPT_LINE], 0x0b);
});
