// SPDX-License-Identifier: Apache-2.0
/** The state of real devices of the kernel: saved, looked at, loaded into another; and everything that must be refused. */
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { basename } from 'node:path';
import type { Command } from 'commander';
import { checkCommand } from '../../../src/cli/check.js';
import { loadCommand } from '../../../src/cli/load.js';
import { saveCommand } from '../../../src/cli/save.js';
import { findFormat } from '../../../src/formats/index.js';
import {
  checkDevices,
  inspectFile,
  load,
  save,
  unwrapFile,
  withInput,
  withOutput,
  withRereadable,
  wrapFile,
} from '../../../src/operations/index.js';
import { Cdev } from '../../../src/vfio/index.js';
import { openKernelMigration } from '../../../src/vfio/migration/index.js';
import { Feature, FeatureFlag, MigrationFlag, MigrationState } from '../../../src/wire/index.js';
import { openFds } from '../../support/closes.js';
import {
  drainPort,
  fillPort,
  type Mtty,
  makeMtty,
  readRegister,
  Uart,
  withMtty,
  writeRegister,
} from './mtty.js';
import { check, finish, remark } from './report.js';

const MTTY = findFormat('org.kernel.vfio.mtty')!;
/** Magic, version, number of ports, flags: what mtty saves before it stops. */
const HEADER_LENGTH = 24;
const PORT_LENGTH = 36;

const a = makeMtty('00000000-0000-4000-8000-00000000000a', 2);
const b = makeMtty('00000000-0000-4000-8000-00000000000b', 2);
const single = makeMtty('00000000-0000-4000-8000-00000000000c', 1);
const afterwards = 'run';

/** As `devstate wrap` does. */
async function wrapBytes(bytes: Uint8Array, output: string): Promise<void> {
  writeFileSync(`${output}.raw`, bytes);
  const options = {
    format: MTTY.uuid,
    version: { major: 1, minor: 0 },
    model: MTTY.models[0]!,
    parameters: { type: 'mtty-2' },
  };
  await withInput(`${output}.raw`, (from) => withOutput(output, (to) => wrapFile(from, to, options)));
}

/** The device takes accesses, and is in RUNNING. */
function assertUsable(device: Mtty): void {
  withMtty(device, (cdev) => {
    const state = cdev.feature(Feature.MIG_DEVICE_STATE, FeatureFlag.GET, new Uint8Array(8));
    assert.equal(state[0], MigrationState.RUNNING);
    writeRegister(cdev, 0, Uart.SCR, 0x77);
    assert.equal(readRegister(cdev, 0, Uart.SCR), 0x77);
  });
}

const filled = { registers: [0x50, 0x0b, 0x1b], text: 'hello' };
const filledToo = { registers: [0x51, 0x0b, 0x1b], text: 'world' };

function fill(device: Mtty): void {
  withMtty(device, (cdev) => {
    fillPort(cdev, 0, 'hello');
    fillPort(cdev, 1, 'world');
  });
}

await check('what mtty demands: an iommufd to be bound to, and no address space', () => {
  const cdev = Cdev.open(a.path);
  assert.throws(() => cdev.hasFeature(Feature.MIGRATION, FeatureFlag.GET) || assert.fail('no feature'));
  cdev.close();
  withMtty(a, (device) => {
    const flags = device.feature(Feature.MIGRATION, FeatureFlag.GET, new Uint8Array(8));
    assert.equal(flags[0], MigrationFlag.STOP_COPY | MigrationFlag.P2P | MigrationFlag.PRE_COPY);
  });
});

await check('saved with pre-copy, loaded into another, read back through its registers', async () => {
  fill(a);
  const saved = await save({ vfioDevice: a.path, output: 'a.state', precopy: true, afterwards });
  assert.equal(saved.precopyBytes, HEADER_LENGTH);
  remark(`saved ${saved.bytes} bytes, stopped for ${saved.stoppedMs.toFixed(2)} ms`);
  await load({ vfioDevice: b.path, input: 'a.state', afterwards });
  withMtty(b, (device) => {
    assert.deepEqual(drainPort(device, 0), filled);
    assert.deepEqual(drainPort(device, 1), filledToo);
  });
  // The source continues with what it has.
  withMtty(a, (device) => assert.deepEqual(drainPort(device, 0), filled));
});

await check('inspect shows the header and the ports', async () => {
  const { inspection } = await withRereadable('a.state', (input) => inspectFile(input));
  assert.ok(inspection.kind === 'envelope');
  assert.equal(inspection.format?.name, 'org.kernel.vfio.mtty');
  assert.equal(inspection.model, 'kernel.org/vfio/mtty');
  assert.deepEqual(inspection.parameters, { type: 'mtty-2' });
  const { kind, sections } = inspection.opaque?.content ?? assert.fail('its content is not known');
  assert.equal(kind, 'mtty');
  assert.deepEqual(
    sections.map(({ name }) => name),
    ['header', 'port 0', 'port 1'],
  );
  assert.deepEqual(sections[0]?.fields, { major: 1, minor: 0, ports: 2, flags: 0 });
  assert.equal(sections[2]?.fields.fifoCount, 'world'.length);
});

await check('by group and name, stopped only, and back', async () => {
  fill(a);
  const saved = await save({ vfioDevice: a.inGroup, output: 'group.state', afterwards });
  assert.equal(saved.precopyBytes, 0);
  withMtty(a, (device) => drainPort(device, 0));
  await load({ vfioDevice: b.inGroup, input: 'group.state', afterwards });
  await save({ vfioDevice: b.path, output: 'back.state', precopy: true, afterwards });
  await load({ vfioDevice: a.path, input: 'back.state', afterwards });
  withMtty(a, (device) => assert.deepEqual(drainPort(device, 0), filled));
});

await check('the stream is the driver’s, byte for byte', async () => {
  await withInput('a.state', (from) => withOutput('a.raw', (to) => unwrapFile(from, to)));
  const raw = readFileSync('a.raw');
  assert.equal(raw.length, HEADER_LENGTH + 2 * PORT_LENGTH);
  assert.equal(raw.readBigUInt64LE(), 0x7e9d09898c3e2c4en);
});

await check(
  'refused before the device is touched: cut, damaged, foreign, of another kind of device',
  async () => {
    fill(b);
    const whole = readFileSync('a.state');
    writeFileSync('cut.state', whole.subarray(0, whole.length - 40));
    await assert.rejects(load({ vfioDevice: b.path, input: 'cut.state', afterwards }), {
      code: 'DEVSTATE_E_ENVELOPE_TRUNCATED',
    });
    const damaged = Buffer.from(whole);
    damaged[whole.indexOf('hello')]! ^= 1;
    writeFileSync('damaged.state', damaged);
    await assert.rejects(load({ vfioDevice: b.path, input: 'damaged.state', afterwards }), {
      code: 'DEVSTATE_E_ENVELOPE_PAYLOAD',
    });
    await assert.rejects(load({ vfioDevice: b.path, input: 'a.raw', afterwards }), {
      code: 'DEVSTATE_E_ENVELOPE_MAGIC',
    });
    await save({ vfioDevice: single.path, output: 'single.state', precopy: true, afterwards });
    await assert.rejects(load({ vfioDevice: b.path, input: 'single.state', afterwards }), {
      code: 'DEVSTATE_E_INCOMPATIBLE',
      message: /type is "mtty-1" at the source, "mtty-2" at the destination/,
    });
    withMtty(b, (device) => assert.deepEqual(drainPort(device, 0), filled));
  },
);

await check(
  'refused by the driver: a stream that is cut, one that is not its own; usable after its reset',
  async () => {
    const raw = readFileSync('a.raw');
    await wrapBytes(raw.subarray(0, raw.length - 1), 'cut-inside.state');
    await assert.rejects(load({ vfioDevice: b.path, input: 'cut-inside.state', afterwards }), {
      code: 'DEVSTATE_E_REFUSED',
      message: /does not take this state: it is incomplete.*EINVAL/,
    });
    assertUsable(b);
    const foreign = Buffer.from(raw);
    foreign[0]! ^= 1;
    await wrapBytes(foreign, 'foreign.state');
    await assert.rejects(load({ vfioDevice: b.path, input: 'foreign.state', afterwards }), {
      code: 'DEVSTATE_E_REFUSED',
      message: /does not take this state.*EFAULT/,
    });
    assertUsable(b);
    await wrapBytes(Buffer.concat([raw, raw]), 'long.state');
    await assert.rejects(load({ vfioDevice: b.path, input: 'long.state', afterwards }), {
      code: 'DEVSTATE_E_REFUSED',
      message: /ENOMEM/,
    });
    assertUsable(b);
    await load({ vfioDevice: b.path, input: 'a.state', afterwards });
    withMtty(b, (device) => assert.deepEqual(drainPort(device, 1), filledToo));
  },
);

await check('a stream that ends while it is being loaded: the device is reset, and usable', async () => {
  execFileSync('mkfifo', ['stream']);
  const whole = readFileSync('a.state');
  // Behind the first of the driver's chunks.
  const written = once(spawn('sh', ['-c', `head -c ${whole.length - 100} a.state > stream`]), 'exit');
  await assert.rejects(load({ vfioDevice: b.path, input: 'stream', afterwards }), {
    code: 'DEVSTATE_E_ENVELOPE_TRUNCATED',
  });
  await written;
  assertUsable(b);
});

await check(
  'refused: a device that is open elsewhere, one whose driver cannot, one that is not there',
  async () => {
    const held = await openKernelMigration(a.path);
    await assert.rejects(save({ vfioDevice: a.path, output: 'none.state', afterwards }), {
      code: 'DEVSTATE_E_VFIO_BUSY',
    });
    held.close();
    const edu = '/sys/bus/pci/devices/0000:00:03.0';
    const group = basename(readlinkSync(`${edu}/iommu_group`));
    await assert.rejects(save({ vfioDevice: `${group}:0000:00:03.0`, output: 'none.state', afterwards }), {
      code: 'DEVSTATE_E_NOT_MIGRATABLE',
      message: /vfio-pci/,
    });
    await assert.rejects(save({ vfioDevice: '/dev/vfio/devices/vfio99', output: 'none.state', afterwards }), {
      code: 'DEVSTATE_E_VFIO_GROUP',
    });
    assert.ok(!existsSync('none.state'));
  },
);

await check('cancelled: the device runs on, nothing is written', async () => {
  await assert.rejects(
    save({
      vfioDevice: a.path,
      output: 'none.state',
      precopy: true,
      afterwards,
      signal: AbortSignal.abort(),
    }),
    { code: 'DEVSTATE_E_CANCELLED' },
  );
  assert.ok(!existsSync('none.state'));
  assertUsable(a);
});

await check('what somebody left who went away while saving, or loading, is no obstacle', async () => {
  for (const state of [MigrationState.STOP_COPY, MigrationState.PRE_COPY, MigrationState.RESUMING]) {
    const device = await openKernelMigration(a.path);
    await device.setState(state);
    device.close();
    await save({ vfioDevice: a.path, output: 'a2.state', precopy: true, afterwards });
    assertUsable(a);
  }
});

await check('the states of the uAPI, the dirty log, and what a session is for', async () => {
  const device = await openKernelMigration(a.path);
  assert.equal(await device.dataSize(), HEADER_LENGTH + 2 * PORT_LENGTH);
  await assert.rejects(device.readData(new Uint8Array(8)), {
    code: 'DEVSTATE_E_REFUSED',
    message: /RUNNING/,
  });
  await device.setState(MigrationState.PRE_COPY);
  assert.deepEqual(await device.precopyInfo(), { initial: HEADER_LENGTH, dirty: 0 });
  assert.equal(await device.readData(new Uint8Array(1024)), HEADER_LENGTH);
  assert.deepEqual(await device.precopyInfo(), { initial: 0, dirty: 0 });
  assert.equal(await device.readData(new Uint8Array(1024)), 0);
  await device.setState(MigrationState.STOP_COPY);
  await assert.rejects(device.precopyInfo(), { code: 'DEVSTATE_E_VFIO' });
  assert.equal(await device.readData(new Uint8Array(10)), 10);
  // Not the rest: a device that goes back from STOP_COPY has to give all of it again.
  await assert.rejects(device.setState(MigrationState.PRE_COPY), {
    code: 'DEVSTATE_E_REFUSED',
    message: /does not go from STOP_COPY to PRE_COPY \(EINVAL\); it is STOP_COPY now/,
  });
  assert.equal(await device.readData(new Uint8Array(1024)), 2 * PORT_LENGTH - 10);
  await device.setState(MigrationState.RUNNING);
  const page = await device.startLogging({ pageSize: 4096, ranges: [{ iova: 0, length: 1 << 20 }] });
  assert.equal(page, 4096);
  const bitmap = await device.reportLogging({ iova: 0, length: 1 << 20, pageSize: 4096 });
  assert.deepEqual(bitmap, new Uint8Array(32));
  await device.stopLogging();
  device.close();
});

await check('check: whether one could go on in the other', async () => {
  const fits = await checkDevices({ source: a.path, dest: b.inGroup });
  assert.equal(fits.compatible, true, fits.reasons.join('; '));
  assert.equal(fits.negotiation.taken, 'org.kernel.vfio.mtty 1.0');
  assert.equal(fits.source.interface, 'raw');
  const other = await checkDevices({ source: a.path, dest: single.path });
  assert.deepEqual(other.reasons, ['parameter type is "mtty-2" at the source, "mtty-1" at the destination']);
});

await check('nothing is left open', async () => {
  const count = (): number => openFds();
  const before = count();
  for (let i = 0; i < 5; i++) {
    await save({ vfioDevice: a.inGroup, output: 'a2.state', precopy: true, afterwards });
    await load({ vfioDevice: b.path, input: 'a2.state', afterwards });
    await assert.rejects(load({ vfioDevice: b.path, input: 'foreign.state', afterwards }));
  }
  assert.equal(count(), before);
});

await check('the command line', async () => {
  fill(a);
  // In this process: under TCG another one takes many seconds to begin.
  const run = (command: Command, ...args: string[]) => command.parseAsync(args, { from: 'user' });
  await run(saveCommand(), '--vfio-device', a.path, '--precopy', '-o', 'cli.state');
  await run(loadCommand(), '--vfio-device', b.inGroup, 'cli.state');
  withMtty(b, (device) => assert.deepEqual(drainPort(device, 1), filledToo));
  await run(checkCommand(), '--source', a.path, '--dest', b.inGroup);
  assert.equal(process.exitCode, undefined, 'compatible');
});

finish();
