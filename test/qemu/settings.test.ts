// SPDX-License-Identifier: Apache-2.0
/** Migration settings against a QEMU that answers as no QEMU should, or as an old one does. */
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { LineSplitter } from '../../src/qemu/line-splitter.js';
import { QmpClient } from '../../src/qemu/qmp.js';
import {
  applySettings,
  changeSettings,
  planSettings,
  putBackSettings,
  SettingsChange,
  unlikeSettings,
} from '../../src/qemu/settings.js';

const GREETING =
  '{"QMP":{"version":{"qemu":{"major":11,"minor":1,"micro":3},"package":""},"capabilities":[]}}\n';

/** What of a QEMU the settings are made of. */
interface Model {
  readonly capabilities: Record<string, boolean>;
  readonly parameters: Record<string, unknown>;
  /** Commands that changed something. */
  readonly changes: string[];
  /** Instead of an answer. */
  refuses?: string;
}

async function connectTo(t: Test, model: Model): Promise<QmpClient> {
  const directory = mkdtempSync(join(tmpdir(), 'devstate-settings-'));
  const path = join(directory, 'qmp');
  const answer = (command: string, args: Record<string, unknown>): unknown => {
    if (command === 'query-migrate-capabilities')
      return Object.entries(model.capabilities).map(([capability, state]) => ({ capability, state }));
    if (command === 'query-migrate-parameters') return model.parameters;
    if (command === 'migrate-set-parameters') Object.assign(model.parameters, args);
    if (command === 'migrate-set-capabilities') {
      const states = args.capabilities as { capability: string; state: boolean }[];
      for (const { capability, state } of states) model.capabilities[capability] = state;
    }
    if (command.startsWith('migrate-set')) model.changes.push(command);
    return {};
  };
  const server = createServer((socket) => {
    socket.write(GREETING);
    LineSplitter.of(socket, 1 << 20).onLine = (line) => {
      const { execute, arguments: args, id } = JSON.parse(line);
      const refused = { error: { class: 'GenericError', desc: 'no' }, id };
      const reply = execute === model.refuses ? refused : { return: answer(execute, args ?? {}), id };
      socket.write(`${JSON.stringify(reply)}\n`);
    };
  });
  server.listen(path);
  await once(server, 'listening');
  const qmp = await QmpClient.connect(path);
  t.teardown(() => {
    qmp.close();
    server.close();
    rmSync(directory, { recursive: true });
  });
  return qmp;
}

const LONG = Array.from({ length: 1000 }, (_, index) => `-device,id=d${index}`);
const WANTED = {
  capabilities: { events: true, 'return-path': true, 'x-colo': false },
  parameters: { mode: 'cpr-exec', 'downtime-limit': 300, 'cpr-exec-command': LONG },
};

function modelOf(): Model {
  return {
    capabilities: { events: true, 'return-path': false, 'x-colo': true },
    parameters: { mode: 'normal', 'downtime-limit': 777, 'cpr-exec-command': [], 'announce-rounds': 7 },
    changes: [],
  };
}

t.test('only what differs is changed, and comes back', async (t) => {
  const model = modelOf();
  const qmp = await connectTo(t, model);
  const planned = await planSettings(qmp, WANTED);
  t.same(model.changes, [], 'planning changes nothing');
  t.same(planned.capabilities, { 'return-path': false, 'x-colo': true });
  t.ok(JSON.stringify(planned).length < 1000, 'a command line does not blow up the note');
  const noted = SettingsChange.parse(JSON.parse(JSON.stringify(planned)));
  await applySettings(qmp, WANTED, planned);
  t.match(model, WANTED);
  t.same(await putBackSettings(qmp, noted), []);
  t.same({ ...model, changes: [] }, modelOf());
  model.changes.length = 0;
  t.same(await putBackSettings(qmp, noted), [], 'it can be done again');
  t.same(model.changes, []);
});

t.test('nothing to change: QEMU is not asked to', async (t) => {
  const model = modelOf();
  const qmp = await connectTo(t, model);
  const settings = { capabilities: { events: true }, parameters: { 'downtime-limit': 777 } };
  await putBackSettings(qmp, await changeSettings(qmp, settings));
  t.same(model.changes, []);
});

t.test('what somebody else has set meanwhile stays', async (t) => {
  const model = modelOf();
  const qmp = await connectTo(t, model);
  const change = await changeSettings(qmp, WANTED);
  model.parameters['downtime-limit'] = 5;
  model.capabilities['return-path'] = false;
  t.same(await putBackSettings(qmp, change), ['downtime-limit']);
  const expected = modelOf();
  expected.parameters['downtime-limit'] = 5;
  t.same({ ...model, changes: [] }, expected);
});

t.test('a parameter that QEMU shows no value of has its default afterwards', async (t) => {
  const model = modelOf();
  delete model.parameters['cpr-exec-command'];
  const qmp = await connectTo(t, model);
  await putBackSettings(qmp, await changeSettings(qmp, WANTED));
  t.same({ ...model, changes: [] }, modelOf());
});

t.test('a half of it was refused: the other half is put back', async (t) => {
  const model = modelOf();
  model.refuses = 'migrate-set-parameters';
  const qmp = await connectTo(t, model);
  const change = await planSettings(qmp, WANTED);
  await t.rejects(applySettings(qmp, WANTED, change), { code: 'DEVSTATE_E_QMP_COMMAND' });
  t.same(await putBackSettings(qmp, change), []);
  t.match(model, { capabilities: modelOf().capabilities, parameters: modelOf().parameters });
});

t.test('a capability that QEMU does not know is left to QEMU to refuse', async (t) => {
  const model = modelOf();
  const qmp = await connectTo(t, model);
  const unknown = { capabilities: { unknown: true, other: false }, parameters: {} };
  t.same((await planSettings(qmp, unknown)).capabilities, { unknown: false });
});

t.test('an answer that is none', async (t) => {
  const qmp = await connectTo(t, { ...modelOf(), parameters: [] as unknown as Record<string, unknown> });
  await t.rejects(planSettings(qmp, WANTED), { code: 'DEVSTATE_E_QMP_PROTOCOL' });
});

t.test('what two QEMUs must have alike', async (t) => {
  const plain = modelOf();
  const multifd = { ...modelOf(), capabilities: { multifd: true } };
  const zstd = { ...multifd, parameters: { 'multifd-compression': 'zstd' } };
  const encrypted = { ...modelOf(), parameters: { 'tls-creds': 'tls0' } };
  const compare = async (one: Model, other: Model) =>
    unlikeSettings(await connectTo(t, one), await connectTo(t, other));
  t.same(await compare(plain, modelOf()), []);
  t.same(await compare(multifd, { ...multifd }), []);
  t.match(await compare(multifd, plain), [
    /^multifd is on at the source QEMU and off at the destination QEMU/,
  ]);
  t.match(await compare(zstd, multifd), [/^multifd-compression is zstd at the source QEMU and none at/]);
  t.match(await compare(plain, encrypted), [
    /^tls-creds is not set at the source QEMU and set at the destination/,
  ]);
});
