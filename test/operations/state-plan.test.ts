// SPDX-License-Identifier: Apache-2.0
/** What two peers say of themselves, what comes of it, and what the operator reads. */

import t from 'tap';
import { MigrationClient } from '../../src/client/index.js';
import {
  type Converter,
  type DeviceModel,
  decodeEnvelope,
  type FormatOffer,
  NVME_STANDARD,
  newUuid,
  type ParameterValue,
} from '../../src/formats/index.js';
import {
  askPeer,
  bestFeature,
  planReasons,
  planState,
  type StateInterface,
  type StatePeer,
  selectFormats,
  summarisePlan,
} from '../../src/operations/state-plan.js';
import { DeviceRuntime } from '../../src/runtime/index.js';
import { Errno, MigrationState } from '../../src/wire/index.js';
import { encodeBlob } from '../formats/blobs.js';
import { onlyValues, VALUES_UUID } from '../runtime/many-formats.js';
import { outcome, Served, serveScratch } from '../support/served.js';
import { ALDER, BIRCH, STANDARD, serveNvme, VENDORS } from './nvme-servers.js';

const [A, B] = [newUuid(), newUuid()];

function offer(name: string, more: Partial<FormatOffer> = {}): FormatOffer {
  const uuid = name === 'a' ? A : B;
  const version = { major: 1, minor: 0 };
  return { uuid, name, version, save: true, load: true, fidelity: 'complete', features: [], ...more };
}

function model(parameters: Record<string, ParameterValue>, known = true): DeviceModel {
  const int = (maximum: number) =>
    ({ type: 'int', description: '', initial: 1, allowed: [{ minimum: 1, maximum }] }) as const;
  const definitions = {
    queues: int(8),
    mdts: int(3),
    serial: { type: 'str', description: '', initial: '' },
  } as const;
  return { uri: 'example.org/disk', parameters, ...(known ? { definitions } : {}) };
}

function peer(offers: readonly FormatOffer[], more: Partial<StatePeer> = {}): StatePeer {
  return { interface: 'formats', offers, model: model({ queues: 4 }), ...more };
}

const kind = (how: StateInterface, more: Partial<StatePeer> = {}): StatePeer =>
  peer(how === 'opaque' ? [] : [offer('a')], { interface: how, ...more });

t.test('what peers say of themselves', async (t) => {
  for (const vendor of VENDORS) {
    const served = serveNvme(t, { vendor });
    const said = await askPeer(await served.manager());
    const own = vendor === 'alder' ? ALDER : BIRCH;
    t.match(said, {
      interface: 'formats',
      offers: [
        { name: own, version: { major: 1, minor: 0 }, save: true, load: true, fidelity: 'complete' },
        { name: STANDARD, estimate: Number },
      ],
      model: { uri: 'devstate.org/nvme', parameters: { queues: 4, namespace_size: 2 ** 20 } },
      description: { producer: served.device.producer },
    });
    t.strictSame(
      said.model?.definitions?.queues,
      served.device.model.definitions?.queues,
      'with what it can have',
    );

    // As any vfio-user server: the VMM's socket tells nothing of us.
    const opaque = await askPeer(new MigrationClient(await served.vmm()));
    t.strictSame(opaque, { interface: 'opaque', offers: [], model: undefined, description: undefined });
  }
  const valued = await askPeer(await serveNvme(t, { formats: ['values'] }).manager());
  t.equal(valued.interface, 'values');
  t.strictSame(valued.offers, [
    {
      uuid: NVME_STANDARD.uuid,
      name: STANDARD,
      version: { major: 1, minor: 0 },
      save: true,
      load: true,
      fidelity: 'complete',
      features: [],
    },
  ]);
  const unregistered = new Served(t, new DeviceRuntime(onlyValues(), { name: 'values' }));
  t.match((await askPeer(await unregistered.manager())).offers, [{ uuid: VALUES_UUID, name: VALUES_UUID }]);
  t.match(await askPeer(await serveScratch(t).manager()), {
    interface: 'formats',
    model: { uri: 'devstate.org/scratch' },
  });
});

t.test('every reason at once', async (t) => {
  const source = peer([offer('a')], { model: model({ queues: 6, mdts: 9, serial: "it's one", wings: 2 }) });
  const dest = peer([offer('b')], { model: model({ queues: 4, mdts: 2, serial: 'b' }) });
  const planned = planState(source, dest, {}, []);
  t.strictSame(planned.reasons, [
    'parameter mdts is 9 at the source, 2 at the destination, which cannot have 9',
    'parameter queues is 6 at the source, 4 at the destination',
    `parameter serial is "it's one" at the source, "b" at the destination`,
    'parameter wings is 2 at the source, not known at the destination',
    'no format can be used: a to b: no converter leads from the one to the other',
  ]);
  t.strictSame(planned.remedies, ['queues=6', "serial=it's one"]);
  t.strictSame(
    planReasons(planned),
    [
      ...planned.reasons,
      String.raw`start the destination with --param queues=6 --param 'serial=it'\''s one'`,
    ],
    'and what to type',
  );
  t.strictSame(planReasons({ ...planned, remedies: [] }), planned.reasons);
  t.strictSame(planReasons(planState(source, source)), [], 'nothing to say');

  const unknown = planState(peer([offer('a')], { model: undefined }), dest, { format: 'b' }, []);
  t.strictSame(
    unknown.reasons,
    ['no format can be used: a to b: no converter leads from the one to the other'],
    'who says no model is not compared',
  );
  t.strictSame(planState(peer([]), peer([offer('a')])).reasons, [
    'no format can be used: one of the two ends has none',
  ]);
});

t.test('streams of who knows what', async (t) => {
  const opaque = kind('opaque', { model: undefined });
  for (const [from, to, reasons] of [
    ['opaque', 'opaque', []],
    [
      'opaque',
      'formats',
      [
        'the source does not say which formats it has, so it is unknown whether its state fits the destination: put servers of one kind, or a relay before the server, at both ends',
      ],
    ],
    [
      'values',
      'opaque',
      [
        'the destination does not say which formats it has, so it is unknown whether its state fits the source: put servers of one kind, or a relay before the server, at both ends',
      ],
    ],
  ] as [StateInterface, StateInterface, string[]][]) {
    const planned = planState(
      { ...kind(from), ...(from === 'opaque' ? opaque : {}) },
      { ...kind(to), ...(to === 'opaque' ? opaque : {}) },
    );
    t.strictSame(planned.reasons, reasons, `${from} to ${to}`);
    t.equal(planned.plan.negotiation, undefined);
  }
  t.strictSame(planState(opaque, opaque, { format: 'auto' }).reasons, []);
  t.strictSame(planState(opaque, opaque, { format: 'a' }).reasons, [
    'a was asked for, but neither end says which formats it has',
  ]);
  t.match(
    planState(kind('opaque'), kind('opaque', { model: model({ queues: 2 }) })).reasons,
    [/queues is 4/],
    'models are compared where they are told',
  );
});

t.test('what was agreed on, for people and for programs', async (t) => {
  const summary = (...[source, dest, options, converters]: Parameters<typeof planState>) =>
    summarisePlan(planState(source, dest, options, converters).plan);
  t.strictSame(summary(peer([offer('a')]), peer([offer('b'), offer('a')]), {}, []), {
    taken: 'a 1.0',
    reason: 'both ends have it, and it holds everything',
    losses: [],
    features: [],
    candidates: [
      { name: 'a 1.0', taken: true, reason: 'both ends have it, and it holds everything', losses: [] },
      {
        name: 'a 1.0 → b 1.0',
        taken: false,
        reason: 'no converter leads from the one to the other',
        losses: [],
      },
    ],
  });
  const lossy: Converter = {
    from: { uuid: A, name: 'a', major: 1 },
    to: { uuid: B, name: 'b', version: { major: 1, minor: 0 } },
    losses: ['the colour'],
    begin: () => ({ record: () => undefined, end: () => [] }),
  };
  t.match(summary(peer([offer('a')]), peer([offer('b')]), { allowLossy: true }, [lossy]), {
    taken: 'a 1.0 → b 1.0',
    losses: ['the colour'],
  });
  t.match(summary(peer([offer('a')]), peer([offer('b')]), {}, [lossy]), {
    taken: null,
    reason: 'no format of the source can be used at the destination',
    losses: [],
    candidates: [{ taken: false, reason: 'it loses the colour', losses: ['the colour'] }],
  });
  t.strictSame(summary(kind('opaque'), kind('opaque')), {
    taken: null,
    reason: 'the stream is passed on as it is: neither end says which formats it has',
    losses: [],
    features: [],
    candidates: [],
  });
  t.equal(
    summary(kind('opaque'), kind('values')).reason,
    'only one of the two ends says which formats it has',
  );
  t.equal(
    summary(kind('formats'), kind('values')).taken,
    'a 1.0',
    'values and a stream of one format fit together',
  );
});

t.test('features that both ends have', async (t) => {
  const features = (compress: boolean, from: string[], to: string[]): readonly string[] =>
    planState(peer([offer('a', { features: from })]), peer([offer('a', { features: to })]), { compress }).plan
      .features;
  t.strictSame(features(true, ['deflate', 'zstd'], ['zstd', 'deflate']), ['zstd'], 'one is enough');
  t.strictSame(features(true, ['deflate', 'zstd'], ['deflate']), ['deflate']);
  t.strictSame(features(true, ['deflate'], ['zstd']), []);
  t.strictSame(features(false, ['zstd'], ['zstd']), [], 'not unless it is asked for');
  t.strictSame(bestFeature(['other', 'deflate']), ['other']);
  t.strictSame(bestFeature([]), []);
  t.strictSame(
    planState(
      peer([offer('a', { features: ['zstd'] })]),
      peer([offer('b', { features: ['zstd'] })]),
      { compress: true },
      [],
    ).plan.features,
    [],
  );
});

t.test('both ends are told', async (t) => {
  const servers = [serveNvme(t, { vendor: 'alder' }), serveNvme(t, { vendor: 'birch' })] as const;
  const [source, dest] = [await servers[0].manager(), await servers[1].manager()];
  const { plan, reasons } = planState(await askPeer(source), await askPeer(dest), { format: STANDARD });
  t.strictSame(reasons, []);
  t.equal(summarisePlan(plan).taken, `${STANDARD} 1.0`);
  await selectFormats(plan, source, dest);
  await source.setState(MigrationState.STOP_COPY);
  const parts: Uint8Array[] = [];
  const chunk = new Uint8Array(65536);
  for (let size = await source.readData(chunk); size > 0; size = await source.readData(chunk))
    parts.push(chunk.slice(0, size));
  t.equal(decodeEnvelope(Buffer.concat(parts)).header.format, NVME_STANDARD.uuid, 'the source saves it');
  await source.setState(MigrationState.RUNNING);
  await dest.setState(MigrationState.RESUMING);
  await t.rejects(
    dest.writeData(encodeBlob([])),
    { message: /is not known here/ },
    'the destination takes nothing else',
  );
  await dest.reset();
  await dest.setState(MigrationState.RESUMING);
  t.equal(await outcome(selectFormats(plan, source, dest)), Errno.EBUSY, 'before the loading begins');

  const valued = await serveNvme(t, { formats: ['values'] }).manager();
  const mixed = planState(await askPeer(valued), await askPeer(source)).plan;
  t.equal(await outcome(selectFormats(mixed, valued, source)), 0, 'who gives values has nothing to select');
  const opaque = planState(kind('opaque'), kind('opaque')).plan;
  t.equal(await outcome(selectFormats(opaque, valued, valued)), 0);
});
