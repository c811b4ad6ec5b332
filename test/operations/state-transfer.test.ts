// SPDX-License-Identifier: Apache-2.0
/** The state of one controller on its way to another, on real sockets: every pair of interfaces, converted where it must be. */

import t from 'tap';
import { MigrationClient } from '../../src/client/index.js';
import { DevstateError } from '../../src/errors.js';
import { decodeEnvelope, type NvmeState } from '../../src/formats/index.js';
import {
  askPeer,
  planState,
  type StatePeer,
  type StatePlan,
  selectFormats,
  summarisePlan,
} from '../../src/operations/state-plan.js';
import { createSink, createTransfer, readPeer } from '../../src/operations/state-transfer.js';
import { Errno, MigrationState } from '../../src/wire/index.js';
import { encodeBlob, MINIMAL_HEADER } from '../formats/blobs.js';
import { sameBytes } from '../support/hex.js';
import { outcome, type Served, serveScratch } from '../support/served.js';
import {
  ALDER,
  BIRCH,
  type NvmeOptions,
  STANDARD,
  serveNvme,
  setUp,
  stateOf,
  type Vendor,
} from './nvme-servers.js';

const { STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY } = MigrationState;

/** Two ends and what they have agreed on. */
interface Ends {
  source: MigrationClient;
  destination: MigrationClient;
  plan: StatePlan;
}

async function agree(from: Served, to: Served, format = 'auto'): Promise<Ends> {
  const [source, destination] = [await from.manager(), await to.manager()];
  const { plan, reasons } = planState(await askPeer(source), await askPeer(destination), { format });
  if (reasons.length > 0) throw new Error(reasons.join('; '));
  await selectFormats(plan, source, destination);
  return { source, destination, plan };
}

/** Counts what is written to a device as a stream. */
function countWrites(client: MigrationClient): () => number {
  const write = client.writeData.bind(client);
  let bytes = 0;
  client.writeData = (data) => {
    bytes += data.length;
    return write(data);
  };
  return () => bytes;
}

/** What a list's order does not say is put in one order. */
function comparable(state: NvmeState): unknown {
  const features = state.features.filter(({ id, value }) => id !== 7 && !(id === 9 && value < 0x10000));
  return {
    ...state,
    features: features.map(({ id, value }) => `${id} ${value}`).sort(),
    pci: { ...state.pci, msixPending: undefined },
  };
}

const own = { alder: ALDER, birch: BIRCH };
const cases: [Vendor, string[] | undefined, Vendor, string[] | undefined, string][] = [
  ['alder', undefined, 'alder', undefined, `${ALDER} 1.0`],
  ['alder', undefined, 'birch', undefined, `${STANDARD} 1.0`],
  ['birch', undefined, 'alder', undefined, `${STANDARD} 1.0`],
  ['alder', [own.alder], 'birch', [own.birch], `${ALDER} 1.0 → ${STANDARD} 1.0 → ${BIRCH} 1.0`],
  ['birch', [own.birch], 'alder', [own.alder], `${BIRCH} 1.0 → ${STANDARD} 1.0 → ${ALDER} 1.0`],
  ['birch', [own.birch], 'birch', [STANDARD], `${BIRCH} 1.0 → ${STANDARD} 1.0`],
  ['alder', ['values'], 'birch', [STANDARD], `${STANDARD} 1.0`],
  ['alder', ['values'], 'birch', [own.birch], `${STANDARD} 1.0 → ${BIRCH} 1.0`],
  ['birch', [STANDARD], 'alder', ['values'], `${STANDARD} 1.0`],
  ['birch', [own.birch], 'alder', ['values'], `${BIRCH} 1.0 → ${STANDARD} 1.0`],
  ['alder', ['values'], 'birch', ['values'], `${STANDARD} 1.0`],
];

for (const [from, fromFormats, to, toFormats, taken] of cases) {
  const what = `${from} (${fromFormats ?? 'all'}) to ${to} (${toFormats ?? 'all'})`;
  t.test(what, async (t) => {
    const options = (vendor: Vendor, formats?: string[]): NvmeOptions =>
      formats === undefined ? { vendor } : { vendor, formats };
    const [a, b] = [serveNvme(t, options(from, fromFormats)), serveNvme(t, options(to, toFormats))];
    await setUp(a);
    const { source, destination, plan } = await agree(a, b);
    t.equal(summarisePlan(plan).taken, taken);
    const written = countWrites(destination);
    const transfer = createTransfer(plan, source, destination);

    await destination.setState(RESUMING);
    await source.setState(PRE_COPY);
    const first = await transfer.round();
    const second = await transfer.round();
    if (fromFormats?.includes('values')) t.equal(first, 0, 'values are of one moment: nothing while it runs');
    t.equal(second, 0, 'nothing has changed since');
    await source.setState(STOP_COPY);
    const rest = await transfer.finish();
    t.ok(rest > 800, `${rest} bytes when it has stopped`);
    if (toFormats?.includes('values')) t.equal(written(), 0, 'given value by value');
    else t.equal(written(), first + rest, 'all that was counted came there');

    const fresh = await stateOf(serveNvme(t, { vendor: to }).device).catch(() => undefined);
    await destination.setState(STOP);
    const [gone, come] = [comparable(await stateOf(a.device)), comparable(await stateOf(b.device))];
    t.strictSame(come, gone, 'what came is what went');
    t.match(come, { registers: { asq: 0x20001000, acq: 0x20005000, aqa: 0x003f001f } });
    t.notSame(come, fresh, 'and not what a new controller has');
    await destination.setState(RUNNING);
    t.equal(await destination.state(), RUNNING);
  });
}

t.test('a stream of who knows what, longer than a chunk', async (t) => {
  const stateSize = 4 * 2 ** 20;
  const [a, b] = [serveScratch(t, { stateSize, chunk: 65536 }), serveScratch(t, { stateSize, chunk: 65536 })];
  for (let at = 0; at < stateSize; at++) a.scratch.state.memory[at] = (at * 31) >> 7;
  const [source, destination] = [new MigrationClient(await a.vmm()), new MigrationClient(await b.vmm())];
  const { plan } = planState(await askPeer(source), await askPeer(destination));
  t.equal(plan.source.interface, 'opaque');
  t.equal(plan.negotiation, undefined);
  const transfer = createTransfer(plan, source, destination);
  await destination.setState(RESUMING);
  await source.setState(PRE_COPY);
  const first = await transfer.round();
  t.ok(first > stateSize, 'all of it while it runs');
  a.scratch.state.write(100_000, new Uint8Array(10).fill(0xaa));
  const second = await transfer.round();
  t.ok(second > 65536 && second < 2 * 65536 + 1000, `${second} bytes: what has changed since`);
  a.scratch.state.write(0, new Uint8Array(10).fill(0xbb));
  await source.setState(STOP_COPY);
  t.ok((await transfer.finish()) < 2 * 65536);
  await destination.setState(STOP);
  t.ok(sameBytes(b.scratch.state.memory, a.scratch.state.memory));
  t.equal(b.scratch.state.memory[0], 0xbb);

  // Converters that have nothing to do: what a sink is given in one piece is cut for its device.
  await destination.setState(RUNNING);
  await source.setState(STOP);
  await source.setState(STOP_COPY);
  const parts: Uint8Array[] = [];
  for await (const chunk of readPeer(plan.source, source)) {
    t.ok(chunk.length <= 2 ** 20, 'a chunk at most');
    parts.push(chunk.slice());
  }
  const blob = Buffer.concat(parts);
  t.doesNotThrow(() => decodeEnvelope(blob));
  b.scratch.state.memory.fill(0);
  await destination.setState(RESUMING);
  const sink = createSink(plan, destination);
  await sink.write(blob);
  await sink.finish();
  await destination.setState(STOP);
  t.ok(sameBytes(b.scratch.state.memory, a.scratch.state.memory), 'as one piece');
});

t.test('given up, refused, broken', async (t) => {
  const pairs: [NvmeOptions, NvmeOptions][] = [
    [{ vendor: 'alder' }, { vendor: 'birch' }],
    [
      { vendor: 'alder', formats: [ALDER] },
      { vendor: 'birch', formats: [BIRCH] },
    ],
    [
      { vendor: 'alder', formats: ['values'] },
      { vendor: 'birch', formats: ['values'] },
    ],
  ];
  for (const [from, to] of pairs) {
    const what = `${from.formats ?? 'all'}`;
    const { source, destination, plan } = await agree(serveNvme(t, from), serveNvme(t, to));
    await source.setState(STOP_COPY);
    const reason = new DevstateError('DEVSTATE_E_CANCELLED', 'enough');
    await t.rejects(
      createTransfer(plan, source, destination).finish(AbortSignal.abort(reason)),
      reason,
      what,
    );
    await source.setState(STOP);
    await source.setState(STOP_COPY);
    t.equal(
      await outcome(createTransfer(plan, source, destination).finish()),
      Errno.EINVAL,
      `${what}: a destination that is not RESUMING`,
    );
    await source.setState(RUNNING);
    await destination.setState(RESUMING);
    t.not(
      await outcome(createTransfer(plan, source, destination).finish()),
      0,
      `${what}: a source that is not STOP_COPY`,
    );
  }

  const { source, destination, plan } = await agree(
    serveNvme(t, { vendor: 'alder', formats: [ALDER] }),
    serveNvme(t, { vendor: 'birch', formats: [BIRCH] }),
  );
  await destination.setState(RESUMING);
  const given = async (blob: Uint8Array): Promise<void> => {
    const sink = createSink(plan, destination);
    await sink.write(blob);
    await sink.finish();
  };
  await t.rejects(given(encodeBlob([], { ...MINIMAL_HEADER, version: { major: 2, minor: 0 } })), {
    code: 'DEVSTATE_E_FORMAT_VERSION',
    message: /nvme\.alder 2\.0/,
  });
  const parameters = { ...plan.destination.model?.parameters };
  const strangers = ['one', 'two'].map((text) => ({ type: 0x1aaaa, flags: 1, payload: Buffer.from(text) }));
  await destination.reset();
  await destination.setState(RESUMING);
  await t.rejects(
    given(encodeBlob(strangers, { ...MINIMAL_HEADER, parameters })),
    { code: 'DEVSTATE_E_CONVERSION' },
    'a blob without a state in it; what is kept of it the destination takes',
  );
  const values = { ...plan.source, interface: 'values', values: source, model: undefined } as StatePeer;
  t.throws(() => readPeer(values, source), { code: 'DEVSTATE_E_NOT_MIGRATABLE', message: /of which model/ });
});
