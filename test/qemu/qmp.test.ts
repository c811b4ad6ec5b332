// SPDX-License-Identifier: Apache-2.0
/** The QMP client against peers that misbehave; test/qemu/qemu.test.ts runs it against QEMU. */
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import type { DevstateError } from '../../src/errors.js';
import { LineSplitter } from '../../src/qemu/line-splitter.js';
import { QmpClient, QmpCommandError } from '../../src/qemu/qmp.js';
import { z } from '../../src/zod.js';

const GREETING =
  '{"QMP":{"version":{"qemu":{"major":11,"minor":1,"micro":3},"package":""},"capabilities":[]}}\n';
const EVENT = '{"event":"STOP","data":{},"timestamp":{"seconds":1700000000,"microseconds":250000}}\n';

/** A server at a path of its own that hands every connection to `serve`. */
async function listen(t: Test, serve: (socket: Socket) => void): Promise<string> {
  const directory = mkdtempSync(join(tmpdir(), 'devstate-qmp-'));
  const path = join(directory, 'qmp');
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket.on('error', () => {}));
    serve(socket);
  });
  server.listen(path);
  await once(server, 'listening');
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
    rmSync(directory, { recursive: true });
  });
  return path;
}

/** A server that greets and then answers line by line. */
function scripted(t: Test, answer: (request: { execute: string; id: number }, socket: Socket) => void) {
  return listen(t, (socket) => {
    socket.write(GREETING);
    LineSplitter.of(socket, 1 << 20).onLine = (line) => {
      const request = JSON.parse(line);
      if (request.execute === 'qmp_capabilities') socket.write(`{"return":{},"id":${request.id}}\n`);
      else answer(request, socket);
    };
  });
}

function code(expected: DevstateError['code'], message?: RegExp) {
  return { code: expected, ...(message === undefined ? {} : { message }) };
}

t.test('what is no QMP server gives DEVSTATE_E_QMP_CONNECT', async (t) => {
  const cases: [string, (socket: Socket) => void, RegExp][] = [
    ['garbage', (socket) => socket.write('SSH-2.0-OpenSSH\r\n'), /not QMP/],
    ['JSON of something else', (socket) => socket.write('{"hello":1}\n'), /not QMP/],
    ['closes at once', (socket) => socket.end(), /closed the connection/],
    ['silence, as when another client is connected', () => {}, /another QMP client/],
    ['a line without end', (socket) => socket.write(Buffer.alloc((8 << 20) + 1, 'x')), /without end/],
    ['refuses capabilities', refusing, /CommandNotFound|refused qmp_capabilities/],
    ['garbage after the greeting', (socket) => socket.write(`${GREETING}rubbish\n`), /.+/],
  ];
  for (const [name, serve, why] of cases) {
    await t.test(name, async (t) => {
      const path = await listen(t, serve);
      const connecting = QmpClient.connect(path, { timeoutMs: name.startsWith('silence') ? 50 : 5000 });
      await t.rejects(connecting, { ...code('DEVSTATE_E_QMP_CONNECT', why), exitCode: 5 });
    });
  }
  await t.rejects(QmpClient.connect('/proc/no/such'), code('DEVSTATE_E_QMP_CONNECT', /does not exist/));
  const long = `/tmp/${'x'.repeat(103)}`;
  await t.rejects(QmpClient.connect(long), code('DEVSTATE_E_QMP_CONNECT', /longer than 107 bytes/));
});

function refusing(socket: Socket): void {
  socket.write(GREETING);
  socket.once('data', () => socket.write('{"error":{"class":"CommandNotFound","desc":"no"},"id":0}\n'));
}

t.test('aborting a connect gives the reason of the signal', async (t) => {
  const path = await listen(t, () => {});
  const reason = new Error('enough');
  const abort = new AbortController();
  const connecting = QmpClient.connect(path, { signal: abort.signal });
  abort.abort(reason);
  await t.rejects(connecting, reason);
  await t.rejects(QmpClient.connect(path, { signal: abort.signal }), reason);
});

t.test('answers find their commands by id, whatever their order', async (t) => {
  const requests: { execute: string; id: number }[] = [];
  const path = await scripted(t, (request, socket) => {
    requests.push(request);
    if (requests.length < 3) return;
    for (const { execute, id } of requests.reverse()) {
      socket.write(
        execute === 'bad'
          ? `${EVENT}{"id":${id},"error":{"class":"GenericError","desc":"no such thing"}}\n`
          : `{"return":{"was":"${execute}"},"id":${id}}\n{"return":"nobody asked","id":99}\n`,
      );
    }
  });
  const qmp = await QmpClient.connect(path);
  t.teardown(() => qmp.close());
  t.match(qmp.version, { major: 11, minor: 1, micro: 3 });
  t.same(
    [qmp.isAtLeast(10, 9), qmp.isAtLeast(11, 1), qmp.isAtLeast(11, 2), qmp.isAtLeast(12, 0)],
    [true, true, false, false],
  );
  const Was = z.object({ was: z.string() });
  const [first, bad, third] = await Promise.allSettled([
    qmp.execute('first', { schema: Was }),
    qmp.execute('bad'),
    qmp.execute('third', { schema: z.object({ is: z.string() }) }),
  ]);
  t.match(first, { value: { was: 'first' } });
  t.match(bad, { reason: { errorClass: 'GenericError', message: 'QEMU refused bad: no such thing' } });
  t.ok(bad.status === 'rejected' && bad.reason instanceof QmpCommandError);
  t.match(third, { reason: code('DEVSTATE_E_QMP_PROTOCOL', /answer to third/) });
});

t.test('a lost connection rejects everything under way and everything later', async (t) => {
  const losses: [string, string | undefined, DevstateError['code']][] = [
    ['QEMU exits', undefined, 'DEVSTATE_E_QMP_CLOSED'],
    ['garbage', 'what?\n', 'DEVSTATE_E_QMP_PROTOCOL'],
    ['JSON that is no QMP', '{"unknown":true}\n', 'DEVSTATE_E_QMP_PROTOCOL'],
    ['an endless line', 'x'.repeat((8 << 20) + 1), 'DEVSTATE_E_QMP_PROTOCOL'],
  ];
  for (const [name, sent, expected] of losses) {
    await t.test(name, async (t) => {
      const path = await scripted(t, (_, socket) =>
        sent === undefined ? socket.destroy() : socket.write(sent),
      );
      const qmp = await QmpClient.connect(path);
      const all = [qmp.waitForEvent('STOP'), qmp.events().next(), qmp.execute('query-status')];
      for (const result of await Promise.allSettled(all)) t.match(result, { reason: code(expected) });
      await t.rejects(qmp.execute('query-status'), code(expected));
      await t.rejects(qmp.waitForEvent('STOP'), code(expected));
      await t.rejects(qmp.events().next(), code(expected));
      qmp.close();
    });
  }
  const qmp = await QmpClient.connect(await scripted(t, () => {}));
  const pending = qmp.execute('query-status');
  qmp.close();
  await t.rejects(pending, code('DEVSTATE_E_QMP_CLOSED', /by this side/));
});

t.test('aborting what waits', async (t) => {
  const path = await scripted(t, (request, socket) => {
    if (request.execute === 'answered') socket.write(`{"return":{},"id":${request.id}}\n`);
  });
  const qmp = await QmpClient.connect(path);
  t.teardown(() => qmp.close());
  const reason = new Error('cancelled');
  const abort = new AbortController();
  const { signal } = abort;
  const all = [
    qmp.execute('never', { signal }),
    qmp.waitForEvent('STOP', { signal }),
    qmp.events({ signal }).next(),
  ];
  abort.abort(reason);
  for (const result of await Promise.allSettled(all)) t.match(result, { reason });
  await t.rejects(qmp.execute('never', { signal }), reason);
  await t.rejects(qmp.waitForEvent('STOP', { signal }), reason);
  await t.rejects(qmp.events({ signal }).next(), reason);
  t.same(await qmp.execute('answered'), {}, 'the connection is still good');
});

t.test('events', async (t) => {
  const path = await scripted(t, (request, socket) => {
    const event = (name: string) => EVENT.replace('STOP', name);
    socket.write(`${event('SHUTDOWN')}${event('STOP')}{"return":{},"id":${request.id}}\n`);
  });
  const qmp = await QmpClient.connect(path);
  t.teardown(() => qmp.close());
  const heard: string[] = [];
  const end = qmp.onEvent((event) => heard.push(event.name));
  const iterator = qmp.events();
  const first = iterator.next();
  const stop = qmp.waitForEvent((event) => event.name === 'STOP');
  await qmp.execute('go');
  t.match(await stop, { name: 'STOP', data: {}, timestampMs: 1_700_000_000_250 });
  t.match((await first).value, { name: 'SHUTDOWN' });
  t.match((await iterator.next()).value, { name: 'STOP' });
  await iterator.return();
  end();
  await qmp.execute('go');
  t.same(heard, ['SHUTDOWN', 'STOP']);
});

t.test('lines are the same however the bytes are cut', async () => {
  const texts = fc.array(fc.string({ unit: 'grapheme', maxLength: 20 }).map((s) => s.replace(/[\r\n]/g, '')));
  await fc.assert(
    fc.asyncProperty(texts, fc.integer({ min: 1, max: 9 }), fc.boolean(), async (lines, step, crlf) => {
      const bytes = Buffer.from(lines.map((line) => `${line}${crlf ? '\r\n' : '\n'}`).join(''));
      const stream = new PassThrough();
      const found: string[] = [];
      LineSplitter.of(stream, 200).onLine = (line) => found.push(line);
      for (let start = 0; start < bytes.length; start += step)
        stream.write(bytes.subarray(start, start + step));
      stream.end();
      await once(stream, 'end');
      return JSON.stringify(found) === JSON.stringify(lines);
    }),
  );
});

t.test('a line over the bound is reported once, and nothing after it is read', async (t) => {
  for (const chunks of [
    ['ok\n', '12345\nlater\n'],
    ['ok\n123', '45', '6\nlater\n'],
    ['ok\n1234', '56789', 'x'],
  ]) {
    const stream = new PassThrough();
    const splitter = LineSplitter.of(stream, 4);
    const found: string[] = [];
    let overflows = 0;
    splitter.onLine = (line) => found.push(line);
    splitter.onOverflow = () => overflows++;
    for (const chunk of chunks) stream.write(chunk);
    stream.end();
    await once(stream, 'end');
    t.same([found, overflows], [['ok'], 1]);
  }
});
