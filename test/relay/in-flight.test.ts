// SPDX-License-Identifier: Apache-2.0
/** The relay's message ids, against a model: whatever order requests and replies come in, each finds its sender. */

import fc from 'fast-check';
import t from 'tap';
import { type InFlight, InFlightTable, type Origin } from '../../src/relay/in-flight.js';
import { Command, encodeHeader, HeaderFlag, messageId } from '../../src/wire/index.js';

const origin: Origin = { reply: () => {}, lost: () => {} };

function message(id: number, length = 32, flags: number = HeaderFlag.TYPE_COMMAND): Uint8Array {
  const bytes = new Uint8Array(length).fill(id & 0xff);
  encodeHeader(new DataView(bytes.buffer), 0, id, Command.REGION_WRITE, length, flags);
  return bytes;
}

function add(table: InFlightTable, senderId: number, options: { posted?: boolean; length?: number } = {}) {
  const { posted = false, length = 32 } = options;
  const request = { origin, senderId, command: Command.REGION_WRITE, posted, silent: false, whole: true };
  return table.add(request, message(senderId, length), length, []);
}

t.test('each reply finds its request, though senders use the same id twice', async () => {
  fc.assert(
    fc.property(
      fc.array(
        fc.oneof(fc.record({ send: fc.nat(7), length: fc.integer({ min: 16, max: 200 }) }), fc.nat(100)),
      ),
      (steps) => {
        const table = new InFlightTable();
        const waiting: { id: number; senderId: number; length: number }[] = [];
        for (const step of steps) {
          if (typeof step !== 'number') {
            const { id } = add(table, step.send, { length: step.length });
            if (waiting.some((other) => other.id === id)) return false;
            waiting.push({ id, senderId: step.send, length: step.length });
          } else if (waiting.length > 0) {
            const [expected] = waiting.splice(step % waiting.length, 1);
            const request = table.take(expected!.id);
            if (request === undefined || request.senderId !== expected!.senderId) return false;
            // What is kept is the message as it came, and all of it.
            if (messageId(request.view) !== expected!.senderId || request.bytes.length < expected!.length)
              return false;
            if (!request.bytes.subarray(16, expected!.length).every((byte) => byte === expected!.senderId))
              return false;
            table.release(request);
          }
        }
        return table.size === waiting.length;
      },
    ),
  );
});

t.test('posted requests are kept until a later one was answered', async (t) => {
  const table = new InFlightTable();
  add(table, 1, { posted: true });
  const first = add(table, 2);
  add(table, 3, { posted: true });
  add(table, 4, { posted: true });
  const second = add(table, 5);
  add(table, 6, { posted: true });
  t.equal(table.size, 6);
  table.release(table.take(first.id) as InFlight);
  t.equal(table.size, 4, 'the one before it is forgotten');
  table.release(table.take(second.id) as InFlight);
  t.same(
    table.drain().map(({ senderId }) => senderId),
    [6],
    'and those between, but not the one after',
  );
  t.equal(table.take(first.id), undefined);
});

t.test('after many posted requests one is to be answered', async (t) => {
  const table = new InFlightTable();
  let posted = 0;
  while (!table.needsReply) {
    add(table, posted, { posted: true });
    posted++;
  }
  t.ok(posted <= 64);
  table.release(table.take(add(table, 100).id) as InFlight);
  t.equal(table.size, 0);
  t.notOk(table.needsReply);
});

t.test('ids go round, and there are 65536 of them', async (t) => {
  const table = new InFlightTable();
  for (let i = 0; i < 0x10000; i++) add(table, i & 0xff);
  t.throws(() => add(table, 1), { code: 'DEVSTATE_E_REQUEST_LIMIT' });
  table.release(table.take(0x1234) as InFlight);
  t.equal(add(table, 1).id, 0x1234);
  let idle = false;
  const settled = table.idle().then(() => {
    idle = true;
  });
  t.equal(table.drain().length, 0x10000);
  await settled;
  t.ok(idle);
});
