// SPDX-License-Identifier: Apache-2.0
/** Requests and their replies. */

import t from 'tap';
import { DevstateError } from '../../src/errors.js';
import { RequestTable } from '../../src/transport/index.js';

const lost = new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', 'lost');

t.test('each reply meets its request, in any order', async (t) => {
  const table = new RequestTable<string>();
  const ids: number[] = [];
  const replies = [0, 1, 2].map((i) => table.request(`request ${i}`, Infinity, (id) => ids.push(id)));
  t.equal(new Set(ids).size, 3);
  t.equal(table.whatOf(ids[1]!), 'request 1');
  t.ok(table.resolve(ids[2]!, 'c'));
  t.ok(table.resolve(ids[0]!, 'a'));
  t.ok(table.reject(ids[1]!, lost));
  t.equal(await replies[0], 'a');
  t.equal(await replies[2], 'c');
  await t.rejects(replies[1]!, { code: 'DEVSTATE_E_CONNECTION_CLOSED' });
  t.notOk(table.resolve(ids[0]!, 'again'));
  t.notOk(table.reject(12345, lost));
  t.equal(table.size, 0);
});

t.test('ids go round and skip those that wait', async (t) => {
  const table = new RequestTable<number>();
  const kept = table.add('kept', Infinity, () => {});
  const seen = new Set<number>();
  for (let i = 0; i < 65535; i++) {
    const id = table.add('quick', Infinity, () => {});
    seen.add(id);
    table.resolve(id, 0);
  }
  t.equal(seen.size, 65535);
  t.notOk(seen.has(kept));
  t.not(
    table.add('next', Infinity, () => {}),
    kept,
  );
});

t.test('no id is left: refused', async (t) => {
  const table = new RequestTable<number>();
  let failed = 0;
  for (let i = 0; i < 65536; i++) table.add('many', Infinity, (error) => void (error === lost && failed++));
  t.throws(() => table.add('one more', Infinity, () => {}), { code: 'DEVSTATE_E_REQUEST_LIMIT' });
  await t.rejects(
    table.request('one more', 1, () => {}),
    { code: 'DEVSTATE_E_REQUEST_LIMIT' },
  );
  table.rejectAll(lost);
  t.equal(failed, 65536);
  t.equal(table.size, 0);
});

t.test('a reply that does not come in time', async (t) => {
  const table = new RequestTable<number>();
  const order: string[] = [];
  const add = (name: string, timeoutMs: number) =>
    new Promise<void>((resolve) =>
      table.add(name, timeoutMs, (error) => {
        order.push(`${name} ${error instanceof DevstateError ? error.code : error}`);
        resolve();
      }),
    );
  const keepAlive = setInterval(() => {}, 1000);
  const all = [add('slow', 40), add('quick', 5), add('middle', 20)];
  table.add('for ever', Infinity, () => {});
  await Promise.all(all);
  clearInterval(keepAlive);
  t.same(order, [
    'quick DEVSTATE_E_REQUEST_TIMEOUT',
    'middle DEVSTATE_E_REQUEST_TIMEOUT',
    'slow DEVSTATE_E_REQUEST_TIMEOUT',
  ]);
  t.equal(table.size, 1);
});

t.test('a request that could not be sent is not entered', async (t) => {
  const table = new RequestTable<number>();
  await t.rejects(
    table.request('unsent', Infinity, () => {
      throw lost;
    }),
    { code: 'DEVSTATE_E_CONNECTION_CLOSED' },
  );
  t.equal(table.size, 0);
});
