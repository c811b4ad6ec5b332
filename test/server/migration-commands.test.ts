// SPDX-License-Identifier: Apache-2.0
/** VERSION, features and migration data over a real socket: what they answer, and each way in which they are refused. */

import t from 'tap';
import { closeAll } from '../../src/transport/index.js';
import {
  Command,
  decodeVersion,
  defaultCapabilities,
  Errno,
  encodeVersion,
  Feature,
  FeatureFlag,
  HeaderFlag,
  MigrationState,
} from '../../src/wire/index.js';
import { hex, viewOf } from '../support/hex.js';
import { eventfd, memfd } from '../support/memory.js';
import { u32 } from '../support/payloads.js';
import { Register } from '../support/scratch-device.js';
import { outcome, serveScratch } from '../support/served.js';

const { GET, SET, PROBE } = FeatureFlag;
const { STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY } = MigrationState;
t.test('VERSION', async (t) => {
  const served = serveScratch(t);
  const proposals: [number, number, number | undefined][] = [
    [0, 0, 0],
    [0, 1, 1],
    [0, 2, 2],
    [0, 9, 2],
    [1, 0, undefined],
  ];
  for (const [major, minor, expected] of proposals) {
    const client = await served.raw();
    const payload = encodeVersion({ major, minor, capabilities: { ...defaultCapabilities, maxDmaMaps: 10 } });
    const reply = await client.call(Command.VERSION, payload);
    if (expected === undefined) t.equal(reply.error, Errno.EINVAL, `${major}.${minor}`);
    else {
      const version = decodeVersion(viewOf(reply.payload), 0, reply.payload.length);
      t.equal(version.minor, expected, `${major}.${minor}`);
      t.equal(version.capabilities.maxDmaMaps, 10);
      t.equal(version.capabilities.maxMsgFds, 16);
      t.equal(version.capabilities.writeMultiple, false, 'a subset of what was proposed');
      t.equal(version.capabilities.twinSocket, false);
      t.equal(version.capabilities.migrationPageSize, undefined);
      t.equal((await client.call(Command.VERSION, payload)).error, Errno.EINVAL, 'once');
    }
    client.close();
  }

  const wrong: [string, Uint8Array][] = [
    ['nothing', new Uint8Array(0)],
    ['no JSON', hex('0000 0200 7b00')],
    ['wrong types', Buffer.from('\0\0\x02\0{"capabilities":{"max_msg_fds":"x"}}\0', 'latin1')],
  ];
  const client = await served.raw();
  t.equal(
    (await client.call(Command.DEVICE_GET_INFO, u32(16, 0, 0, 0))).error,
    Errno.EINVAL,
    'VERSION comes first',
  );
  for (const [what, payload] of wrong)
    t.equal((await client.call(Command.VERSION, payload)).error, Errno.EINVAL, what);
  const fd = memfd(1);
  const good = encodeVersion({ major: 0, minor: 2, capabilities: defaultCapabilities });
  t.equal((await client.call(Command.VERSION, good, { fds: [fd] })).error, Errno.EINVAL, 'with an fd');
  fd.close();
  t.equal((await client.call(Command.VERSION, good)).error, 0, 'and may try again');
});

t.test('DEVICE_FEATURE', async (t) => {
  const served = serveScratch(t);
  const vmm = await served.vmm();
  const manager = await served.manager();
  const feature = (
    client: typeof vmm,
    flags: number,
    data: Uint8Array = new Uint8Array(0),
    argsz = 4096,
  ): Promise<number | string> =>
    outcome(client.request(Command.DEVICE_FEATURE, [u32(argsz, flags), data], () => {}));
  const { EINVAL, ENOTTY, E2BIG } = Errno;
  for (const client of [vmm, manager.client]) {
    t.equal(await feature(client, Feature.MIGRATION | GET), 0);
    t.equal(await feature(client, Feature.MIGRATION | SET), ENOTTY, 'cannot be set');
    t.equal(await feature(client, Feature.MIGRATION), EINVAL, 'no operation');
    t.equal(await feature(client, Feature.MIGRATION | GET | SET), EINVAL, 'two');
    t.equal(await feature(client, Feature.MIGRATION | GET | 0x80000), EINVAL, 'unknown flags');
    t.equal(await feature(client, Feature.MIGRATION | GET, new Uint8Array(0), 15), EINVAL, 'argsz too small');
    t.equal(await feature(client, Feature.MIGRATION | GET, new Uint8Array(0), 7), EINVAL);
    t.equal(await feature(client, 0 | GET), ENOTTY, 'no such feature');
    t.equal(await feature(client, 0xffff | GET), ENOTTY);
    t.equal(await feature(client, Feature.MIGRATION | PROBE), 0);
    t.equal(await feature(client, Feature.MIGRATION | PROBE | GET), 0);
    t.equal(await feature(client, Feature.MIGRATION | PROBE | GET | SET), ENOTTY, 'all that are named');
    t.equal(await feature(client, Feature.MIG_DEVICE_STATE | PROBE | GET | SET), 0);
    t.equal(await feature(client, Feature.DMA_LOGGING_REPORT | PROBE | SET), ENOTTY);
    t.equal(await feature(client, Feature.MIG_DEVICE_STATE | SET, new Uint8Array(7)), EINVAL, 'no state');
    t.equal(await feature(client, Feature.MIG_DEVICE_STATE | SET, u32(0, 0)), EINVAL, 'ERROR');
    t.equal(await feature(client, Feature.MIG_DEVICE_STATE | SET, u32(8, 0)), EINVAL);
    t.equal(
      await feature(client, Feature.DMA_LOGGING_START | SET, u32(4096, 0, 1, 0)),
      EINVAL,
      'a range is missing',
    );
    t.equal(await feature(client, Feature.DMA_LOGGING_START | SET, u32(4096, 0, 99999, 0)), E2BIG);
    t.equal(await feature(client, Feature.DMA_LOGGING_START | SET, u32(4097, 0, 0, 0)), EINVAL, 'page size');
    t.equal(
      await feature(client, Feature.DMA_LOGGING_REPORT | GET, u32(0, 0, 4096, 0, 0, 0)),
      EINVAL,
      'page size 0',
    );
    t.equal(
      await feature(client, Feature.DMA_LOGGING_REPORT | GET, u32(0, 0, 0, 0x10000, 4096, 0)),
      E2BIG,
      'too long',
    );
    t.equal(
      await feature(client, Feature.DMA_LOGGING_REPORT | GET, u32(0, 0, 4096, 0, 4096, 0)),
      EINVAL,
      'off',
    );
    t.equal(
      await feature(client, Feature.DMA_LOGGING_START | SET | PROBE, u32(0)),
      0,
      'a probe does nothing',
    );
    t.equal(
      await feature(client, Feature.DMA_LOGGING_REPORT | GET, u32(0, 0, 4096, 0, 4096, 0)),
      EINVAL,
      'still off',
    );
  }
  for (const index of [Feature.DEVSTATE_DESCRIPTION, Feature.DEVSTATE_NOTE, Feature.DEVSTATE_DMA_MAPS]) {
    t.equal(await feature(vmm, index | GET), ENOTTY, 'not for a VMM');
    t.equal(await feature(manager.client, index | GET), 0);
  }
  t.equal(await feature(manager.client, Feature.DEVSTATE_NOTE | SET, new Uint8Array(65537)), E2BIG);
  await manager.setNote(hex('010203'));
  t.strictSame(await (await served.manager()).note(), hex('010203'), 'left for the next manager');
  t.strictSame(await manager.description(), {
    model: { uri: 'devstate.org/scratch', parameters: { size: 4096, flavour: 'plain' } },
    producer: { name: 'scratch', version: '1.0' },
    formats: [
      { uuid: served.scratch.state.uuid, name: 'org.devstate.test.scratch', version: { major: 1, minor: 0 } },
    ],
    pci: { vendorId: 0x1b36, deviceId: 0xff },
  });
  await manager.client.request(
    Command.DEVICE_FEATURE,
    [u32(16, Feature.MIG_DEVICE_STATE | SET), u32(RUNNING, 77)],
    (frame) =>
      t.strictSame(
        frame.bytes.slice(16, frame.length),
        u32(16, Feature.MIG_DEVICE_STATE | SET, RUNNING, 77),
        'repeated',
      ),
  );
  await vmm.request(Command.DEVICE_FEATURE, [u32(99, Feature.MIGRATION | PROBE)], (frame) =>
    t.strictSame(frame.bytes.slice(16, frame.length), u32(99, Feature.MIGRATION | PROBE)),
  );
});

t.test('migration data', async (t) => {
  const served = serveScratch(t);
  const manager = await served.manager();
  const data = (
    command: number,
    argsz: number,
    size: number,
    bytes = new Uint8Array(0),
  ): Promise<number | string> =>
    outcome(manager.client.request(command, [u32(argsz, size), bytes], () => {}));
  const { MIG_DATA_READ, MIG_DATA_WRITE } = Command;
  t.equal(await data(MIG_DATA_READ, 16, 8), Errno.EINVAL, 'RUNNING');
  t.equal(await data(MIG_DATA_WRITE, 16, 8, new Uint8Array(8)), Errno.EINVAL);
  for (const state of [PRE_COPY, STOP_COPY] as const) {
    await manager.setState(state);
    t.equal(await data(MIG_DATA_READ, 16, 8), 0);
    t.equal(await data(MIG_DATA_READ, 15, 8), Errno.EINVAL, 'argsz too small');
    t.equal(await data(MIG_DATA_READ, 0xffffffff, 2 ** 20 + 1), Errno.EINVAL, 'more than a transfer');
    t.equal(await data(MIG_DATA_READ, 8, 0), 0, 'nothing');
    t.equal(await data(MIG_DATA_WRITE, 16, 8, new Uint8Array(8)), Errno.EINVAL, 'the wrong way');
  }
  await manager.setState(STOP);
  t.equal(await data(MIG_DATA_READ, 16, 8), Errno.EINVAL);
  await manager.setState(RESUMING);
  t.equal(await data(MIG_DATA_READ, 16, 8), Errno.EINVAL);
  t.equal(await data(MIG_DATA_WRITE, 16, 8, new Uint8Array(7)), Errno.EINVAL, 'less than it says');
  t.equal(await data(MIG_DATA_WRITE, 16, 8, new Uint8Array(9)), Errno.EINVAL, 'more');
  t.equal(await data(MIG_DATA_WRITE, 15, 8, new Uint8Array(8)), Errno.EINVAL, 'argsz');
  t.equal(await data(MIG_DATA_WRITE, 8, 0), 0, 'nothing');
  t.equal(await data(MIG_DATA_WRITE, 56, 48, new Uint8Array(48)), Errno.EINVAL, 'garbage');
  await manager.reset();
  t.equal(await manager.state(), RUNNING);
});

t.test('commands for others', async (t) => {
  const served = serveScratch(t);
  const vmm = await served.vmm();
  const manager = await served.manager();
  const send = (client: typeof vmm, command: number): Promise<number | string> =>
    outcome(client.request(command, [new Uint8Array(64)], () => {}));
  for (const command of [0, Command.DMA_READ, Command.DMA_WRITE, Command.DIRTY_PAGES, 19, 255, 65535]) {
    t.equal(await send(vmm, command), Errno.EINVAL, `${command} from a VMM`);
  }
  const guest = [
    Command.DMA_MAP,
    Command.DMA_UNMAP,
    Command.DEVICE_SET_IRQS,
    Command.REGION_READ,
    Command.REGION_WRITE,
    Command.REGION_WRITE_MULTI,
  ];
  for (const command of guest)
    t.equal(await send(manager.client, command), Errno.EINVAL, `${command} from a manager`);
  const raw = await served.raw(served.migrationPath);
  await raw.version();
  const reply = await raw.call(Command.DEVICE_GET_INFO, u32(16, 0, 0, 0), { flags: 2 });
  t.equal(reply.error, Errno.EINVAL, 'neither command nor reply');
  t.equal(reply.flags, HeaderFlag.TYPE_REPLY | HeaderFlag.ERROR);
  t.equal(reply.payload.length, 0, 'an error reply is a header alone');
});

t.test('while stopped, what the VMM may do is what the specification lets it', async (t) => {
  const served = serveScratch(t);
  const vmm = await served.vmm();
  const manager = await served.manager();
  const fd = memfd(0x1000);
  const line = eventfd();
  t.teardown(() => closeAll([fd, line]));
  for (const state of [STOP, STOP_COPY, RESUMING] as const) {
    await manager.setState(state);
    await vmm.regionWrite(0, Register.KEPT, Uint8Array.of(state));
    await vmm.regionRead(0, Register.KEPT, new Uint8Array(1));
    await vmm.regionRead(7, 0, new Uint8Array(4));
    await vmm.dmaMap({ flags: 3, offset: 0, address: 0, size: 0x1000 }, fd);
    await vmm.dmaUnmap({ flags: 0, address: 0, size: 0x1000 });
    await vmm.assignEventfds(2, [line]);
    await vmm.deviceInfo();
    t.equal(await manager.state(), state);
  }
  await vmm.reset();
  t.equal(await manager.state(), RUNNING, 'a reset makes it run');
});
