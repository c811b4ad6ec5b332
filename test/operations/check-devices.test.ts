// SPDX-License-Identifier: Apache-2.0
/** Two servers asked whether the state of the one could continue in the other: everything they say, and nothing changed. */

import { join } from 'node:path';
import t from 'tap';
import { checkDevices } from '../../src/operations/index.js';
import { DeviceRuntime } from '../../src/runtime/index.js';
import { MigrationState } from '../../src/wire/index.js';
import { manyFormats, SECOND_UUID } from '../runtime/many-formats.js';
import { PlainServed } from '../support/plain-served.js';
import { resources, Served, serveScratch, socketFolder, until } from '../support/served.js';
import { ALDER, BIRCH, type NvmeServer, STANDARD, serveNvme } from './nvme-servers.js';

const check = (source: Served, dest: Served, options: { format?: string; allowLossy?: boolean } = {}) =>
  checkDevices({ source: source.migrationPath, dest: dest.migrationPath, ...options });

t.test('two vendors of one model', async (t) => {
  const [alder, birch] = [serveNvme(t, { vendor: 'alder' }), serveNvme(t, { vendor: 'birch' })];
  const result = await check(alder, birch);
  const describe = ({ device }: NvmeServer): unknown => ({
    protocol: 'v2',
    p2p: true,
    model: 'devstate.org/nvme',
    parameters: { ...device.model.parameters },
    producer: { ...device.producer },
    interface: 'formats',
    formats: device.formats.map((format) => ({
      uuid: format.uuid,
      name: format.name,
      version: '1.0',
      save: true,
      load: true,
      fidelity: 'complete',
      features: result.source.formats[0]?.features,
      estimate: format.estimate(),
    })),
  });
  t.strictSame(
    { ...result, negotiation: undefined },
    {
      compatible: true,
      reasons: [],
      remarks: [],
      source: describe(alder),
      dest: describe(birch),
      negotiation: undefined,
      expected: null,
      notExpected: 'no VMM is connected to the source',
    },
  );
  const { candidates, ...taken } = result.negotiation;
  t.strictSame(taken, {
    taken: `${STANDARD} 1.0`,
    reason: 'both ends have it, and it holds everything',
    losses: [],
    features: [],
  });
  const more = 'it needs more conversions than the one taken';
  t.strictSame(
    candidates.map(({ name, taken, reason }) => [name, taken, reason]),
    [
      [`${STANDARD} 1.0`, true, 'both ends have it, and it holds everything'],
      [`${ALDER} 1.0 → ${STANDARD} 1.0`, false, more],
      [`${STANDARD} 1.0 → ${BIRCH} 1.0`, false, more],
      [`${ALDER} 1.0 → ${STANDARD} 1.0 → ${BIRCH} 1.0`, false, more],
    ],
    'every other way, and why not',
  );
  t.equal((await check(alder, serveNvme(t, { vendor: 'alder' }))).negotiation.taken, `${ALDER} 1.0`);

  const asked = await check(alder, birch, { format: BIRCH });
  t.match(asked, { compatible: true, negotiation: { taken: `${STANDARD} 1.0 → ${BIRCH} 1.0` } });
  const unknown = await check(alder, birch, { format: 'org.example.none' });
  t.equal(unknown.compatible, false);
  t.match(unknown.reasons, [/no format can be used: .*org\.example\.none was asked for/]);
  t.match(unknown.negotiation, {
    taken: null,
    reason: 'no format of the source can be used at the destination',
  });
  t.equal(unknown.negotiation.candidates.length, 4);
});

t.test('every parameter that differs, at once', async (t) => {
  const source = serveNvme(t, { parameters: { queues: 8, mdts: 5, serial: 'ONE 1' }, size: 2 ** 21 });
  const dest = serveNvme(t, { vendor: 'birch', parameters: { queues: 4, mdts: 7, serial: 'TWO' } });
  const { compatible, reasons, negotiation } = await check(source, dest);
  t.equal(compatible, false);
  t.strictSame(reasons.slice(0, -1), [
    'parameter mdts is 5 at the source, 7 at the destination',
    'parameter msix_vectors is 9 at the source, 5 at the destination',
    `parameter namespace_size is ${2 ** 21} at the source, ${2 ** 20} at the destination`,
    'parameter queues is 8 at the source, 4 at the destination',
    'parameter serial is "ONE 1" at the source, "TWO" at the destination',
  ]);
  for (const fix of ['queues=8', 'msix_vectors=9', 'mdts=5', "'serial=ONE 1'"])
    t.ok(reasons.at(-1)?.includes(`--param ${fix}`), fix);
  t.equal(negotiation.taken, `${STANDARD} 1.0`, 'the formats would do');
  t.strictSame((await check(source, serveScratch(t))).reasons.slice(0, 1), [
    'model is devstate.org/nvme at the source, devstate.org/scratch at the destination',
  ]);
});

t.test('what a device does not hold all of its state in', async (t) => {
  const formats = ['org.devstate.test.second'];
  const [source, dest] = [0, 1].map(
    () => new Served(t, new DeviceRuntime(manyFormats(), { name: 'many', formats })),
  ) as [Served, Served];
  const { compatible, reasons, source: said } = await check(source, dest);
  t.equal(compatible, false);
  t.match(reasons, [/it loses what org\.devstate\.test\.second does not hold/]);
  t.match(said.formats, [{ uuid: SECOND_UUID, fidelity: 'partial' }]);
  t.match(await check(source, dest, { allowLossy: true }), {
    compatible: true,
    reasons: [],
    negotiation: { losses: ['what org.devstate.test.second does not hold'] },
  });
});

t.test('other kinds of peers', async (t) => {
  const nvme = serveNvme(t);
  const values = serveNvme(t, { formats: ['values'] });
  const result = await check(values, nvme);
  t.match(result, {
    compatible: true,
    source: { interface: 'values', formats: [{ name: STANDARD, estimate: null }] },
    dest: { interface: 'formats' },
    negotiation: { taken: `${STANDARD} 1.0` },
  });
  // The sockets of VMMs are those of any vfio-user server.
  const other = serveNvme(t);
  const opaque = await checkDevices({ source: nvme.path, dest: other.path });
  t.match(opaque, {
    compatible: true,
    reasons: [],
    source: { model: null, parameters: {}, producer: null, interface: 'opaque', formats: [] },
    negotiation: { taken: null, reason: /passed on as it is/, candidates: [] },
  });
  const half = await checkDevices({ source: nvme.migrationPath, dest: other.path });
  t.match(half, {
    compatible: false,
    reasons: [/the destination does not say which formats it has/],
    negotiation: { taken: null, reason: 'only one of the two ends says which formats it has' },
  });
});

t.test('nothing is changed', async (t) => {
  const [source, dest] = [serveScratch(t), serveScratch(t)];
  const manager = await source.manager();
  await manager.setState(MigrationState.STOP_COPY);
  source.scratch.takeCalls();
  dest.scratch.takeCalls();
  for (let i = 0; i < 3; i++) t.equal((await check(source, dest)).compatible, true);
  t.strictSame([source.scratch.takeCalls(), dest.scratch.takeCalls()], [[], []]);
  t.equal(await manager.state(), MigrationState.STOP_COPY, 'not even what somebody else has begun');
  t.ok((await manager.readData(new Uint8Array(100))) > 0);
});

t.test('peers that are not there, or cannot migrate', async (t) => {
  const scratch = serveScratch(t);
  const nowhere = join(socketFolder(t), 'nowhere');
  const plain = new Served(t, new PlainServed([]));
  const path = scratch.migrationPath;
  await until(() => true);
  const before = resources().fds;
  const cases: [string, string, string, string][] = [
    [nowhere, path, 'DEVSTATE_E_CONNECT', nowhere],
    [path, nowhere, 'DEVSTATE_E_CONNECT', nowhere],
    [plain.migrationPath, path, 'DEVSTATE_E_NOT_MIGRATABLE', plain.migrationPath],
    [path, plain.migrationPath, 'DEVSTATE_E_NOT_MIGRATABLE', plain.migrationPath],
  ];
  for (const [source, dest, code, names] of cases) {
    await t.rejects(checkDevices({ source, dest }), { code }, `${code}`);
    const said = await checkDevices({ source, dest }).catch((error: Error) => error.message);
    t.ok(String(said).includes(names), 'and says which');
  }
  await until(() => resources().fds <= before);
  t.pass('every connection is closed');
});
