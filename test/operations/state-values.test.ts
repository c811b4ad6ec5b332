// SPDX-License-Identifier: Apache-2.0
/** A device that gives its state value by value, as a blob; and a blob given to it so. */

import { randomInt } from 'node:crypto';
import t from 'tap';
import {
  decodeEnvelope,
  decodeNvmeState,
  type EnvelopeHeader,
  NVME_STANDARD,
  newUuid,
  RecordFlag,
} from '../../src/formats/index.js';
import { readValuesAsBlob, ValuesWriter } from '../../src/operations/state-values.js';
import { DeviceRuntime } from '../../src/runtime/index.js';
import { PRODUCER } from '../../src/version.js';
import { Errno, MigrationState } from '../../src/wire/index.js';
import { encodeBlob, type PlainRecord } from '../formats/blobs.js';
import { onlyValues, VALUES_UUID } from '../runtime/many-formats.js';
import { outcome, Served } from '../support/served.js';
import { serveNvme, setUp, stateOf, VENDORS } from './nvme-servers.js';

const { STOP, RUNNING, STOP_COPY, RESUMING } = MigrationState;
const FORMAT = { uuid: NVME_STANDARD.uuid, version: { major: 1, minor: 0 } };

async function collect(pieces: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  for await (const piece of pieces) parts.push(piece.slice());
  return new Uint8Array(Buffer.concat(parts));
}

/** The blob of a controller that a guest has set up, and what is in it. */
async function saved(t: Parameters<typeof serveNvme>[0], vendor: 'alder' | 'birch') {
  const server = serveNvme(t, { vendor, formats: ['values'] });
  await setUp(server);
  const manager = await server.manager();
  await manager.setState(STOP_COPY);
  const blob = await collect(readValuesAsBlob(manager, server.device.model, FORMAT));
  const { header, records } = decodeEnvelope(blob);
  return {
    server,
    manager,
    blob,
    header,
    records: records.map(({ type, flags, payload }) => ({ type, flags, payload })),
  };
}

t.test('a blob of values', async (t) => {
  for (const vendor of VENDORS) {
    const { server, manager, blob, header, records } = await saved(t, vendor);
    const { stream, ...rest } = header;
    t.strictSame(rest, {
      format: NVME_STANDARD.uuid,
      version: { major: 1, minor: 0 },
      model: 'devstate.org/nvme',
      parameters: server.device.model.parameters,
      producer: PRODUCER,
      features: [],
      other: {},
    });
    const state = decodeNvmeState(
      records.map((one) => ({ ...one, optional: (one.flags & RecordFlag.optional) !== 0 })),
    );
    t.match(state.registers, { asq: 0x20001000, acq: 0x20005000, aqa: 0x003f001f });
    t.match(state, await stateOf(server.device), 'all of the state');
    t.ok((await manager.valueNames()).names.length > 64, 'more values than are asked for at once');
    const again = decodeEnvelope(await collect(readValuesAsBlob(manager, server.device.model, FORMAT)));
    t.not(again.header.stream, stream, 'each saving has its own stream');
    t.equal(again.summary.length, blob.length);

    await manager.setState(RUNNING);
    await t.rejects(
      collect(readValuesAsBlob(manager, server.device.model, FORMAT)),
      {
        code: /^DEVSTATE_E_STATE_/,
      },
      'there are no values while it runs, and no blob of none',
    );
    await t.rejects(
      collect(readValuesAsBlob(manager, server.device.model, FORMAT, AbortSignal.abort(new Error('enough')))),
      { message: 'enough' },
    );
  }
});

t.test('many values and one signal', async (t) => {
  const { server, manager } = await saved(t, 'alder');
  const warnings: Error[] = [];
  const warned = (warning: Error): unknown => warnings.push(warning);
  process.on('warning', warned);
  const { signal } = new AbortController();
  await collect(readValuesAsBlob(manager, server.device.model, FORMAT, signal));
  await new Promise((resolve) => setImmediate(resolve));
  process.off('warning', warned);
  t.strictSame(warnings, [], 'Node does not take it for a leak of listeners');
});

t.test('values that this devstate cannot put together', async (t) => {
  const device = onlyValues();
  const manager = await new Served(t, new DeviceRuntime(device, { name: 'values' })).manager();
  await manager.setState(STOP_COPY);
  const unknown = { uuid: VALUES_UUID, version: { major: 1, minor: 4 } };
  await t.rejects(collect(readValuesAsBlob(manager, device.model, unknown)), {
    code: 'DEVSTATE_E_FORMAT_UNKNOWN',
    message: new RegExp(`${VALUES_UUID} 1\\.4`),
  });
  t.throws(() => new ValuesWriter(manager, unknown), { code: 'DEVSTATE_E_FORMAT_UNKNOWN' });
  const newer = { ...FORMAT, version: { major: 2, minor: 0 } };
  t.throws(
    () => new ValuesWriter(manager, newer),
    { code: 'DEVSTATE_E_FORMAT_UNKNOWN', message: / 2\.0/ },
    'of a newer major version',
  );
  t.doesNotThrow(() => new ValuesWriter(manager, { ...FORMAT, version: { major: 1, minor: 9 } }));
});

t.test('a blob given value by value', async (t) => {
  const { blob, records, header, server } = await saved(t, 'alder');
  const expected = await stateOf(server.device);
  const target = serveNvme(t, { vendor: 'birch', formats: ['values'] });
  const manager = await target.manager();
  /** Gives a blob in pieces, then takes it over. */
  const give = async (bytes: Uint8Array, next: () => number): Promise<void> => {
    if ((await manager.state()) !== RUNNING) await manager.reset();
    await manager.setState(RESUMING);
    const writer = new ValuesWriter(manager, FORMAT);
    for (let at = 0; at < bytes.length; ) {
      const length = next();
      const piece = bytes.slice(at, at + length);
      await writer.write(piece);
      piece.fill(0xee);
      at += length;
    }
    await writer.finish();
    await manager.setState(STOP);
  };
  for (const [what, next] of [
    ['whole', () => blob.length],
    ['byte by byte', () => 1],
    ['in pieces of any size', () => randomInt(1, 300)],
  ] as const) {
    await give(blob, next);
    t.match((await stateOf(target.device)).registers, expected.registers, what);
    await manager.setState(RUNNING);
    await manager.reset();
  }

  const changed = (extra: PlainRecord[], more: Partial<EnvelopeHeader> = {}): Uint8Array =>
    encodeBlob([...records, ...extra], { ...header, ...more });
  const whole = (): number => 65536;
  const optional = { flags: RecordFlag.optional, payload: Uint8Array.of(1, 2, 3) };
  await give(changed([{ type: 0x1abcd, ...optional }]), whole);
  t.match((await stateOf(target.device)).registers, expected.registers, 'unknown and optional: skipped');
  await manager.setState(RUNNING);
  await give(
    changed([
      { type: 3, ...optional },
      { type: 0x77, ...optional },
    ]),
    whole,
  );
  t.pass('those of the envelope too');
  await manager.setState(RUNNING);
  await give(changed([], { version: { major: 1, minor: 9 } }), whole);
  t.pass('a newer minor version');

  const refused: [string, Uint8Array, { code: string; message?: RegExp }][] = [
    [
      'unknown and not optional',
      changed([{ type: 0x1abcd, flags: 0, payload: new Uint8Array(1) }]),
      { code: 'DEVSTATE_E_STATE_RECORD', message: /0x1abcd/ },
    ],
    [
      'bytes of a foreign stream',
      changed([{ type: 2, flags: 0, payload: new Uint8Array(1) }]),
      { code: 'DEVSTATE_E_ENVELOPE_RECORD_UNKNOWN', message: /type 2 / },
    ],
    [
      'a newer major version',
      changed([], { version: { major: 2, minor: 0 } }),
      { code: 'DEVSTATE_E_FORMAT_VERSION', message: / 2\.0/ },
    ],
    [
      'another format',
      changed([], { format: newUuid() }),
      { code: 'DEVSTATE_E_FORMAT_VERSION', message: new RegExp(NVME_STANDARD.uuid) },
    ],
    ['cut', blob.subarray(0, blob.length - 1), { code: 'DEVSTATE_E_ENVELOPE_TRUNCATED' }],
    ['more than a blob', new Uint8Array([...blob, 0]), { code: 'DEVSTATE_E_ENVELOPE_TRAILING' }],
    [
      'a record missing',
      encodeBlob(records.slice(1), header),
      { code: 'DEVSTATE_E_STATE_RECORD', message: /Identity/ },
    ],
  ];
  for (const [what, bytes, error] of refused) {
    await t.rejects(give(bytes, whole), error, what);
    // Nothing was set: a load of nothing is refused.
    t.equal(await outcome(manager.setState(STOP)), Errno.EINVAL, `${what}: nothing reached the device`);
  }
  await manager.reset();
  await manager.setState(RUNNING);
  const writer = new ValuesWriter(manager, FORMAT);
  await writer.write(blob);
  t.equal(await outcome(writer.finish()), Errno.EINVAL, 'a device that is not RESUMING');
  await t.rejects(writer.finish(AbortSignal.abort(new Error('enough'))), { message: 'enough' });
});
