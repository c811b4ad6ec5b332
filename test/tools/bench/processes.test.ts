// SPDX-License-Identifier: Apache-2.0
/** A benchmark whose server ends fails with what the server said, and leaves no process that would keep it alive. */

import t from 'tap';
import { endAll, measure, type Program, Running } from '../../../tools/bench/processes.js';

const program = (script: string): Program => [process.execPath, '-e', script];
const SERVES = program('setInterval(() => {}, 1000); console.log("listening")');
/** Ends when it is told to by SIGUSR2, with a last word. */
const FALLS = program(`
  process.on('SIGUSR2', () => { console.error('it broke here'); process.exit(3); });
  setInterval(() => {}, 1000);
  console.log('listening');
`);
const CLIENT_THAT_WAITS = program('setInterval(() => {}, 1000)');

t.setTimeout(120_000);
t.afterEach(() => endAll());

t.test('a server that ends before it listens', async (t) => {
  const other = await Running.start(SERVES, []);
  const broken = program('console.error("no address"); process.exit(3)');
  await t.rejects(Running.start(broken, []), { message: /ended with 3: no address/ });
  await endAll();
  t.equal(other.process.signalCode, 'SIGTERM', 'the server beside it does not keep the benchmark alive');
});

t.test('a server that ends while a client waits for it', async (t) => {
  const server = await Running.start(FALLS, []);
  const measured = measure(CLIENT_THAT_WAITS, []);
  server.process.kill('SIGUSR2');
  await t.rejects(measured, { message: /ended with 3: it broke here/ });
});

t.test('a server that was gone before the client began', async (t) => {
  const server = await Running.start(FALLS, []);
  server.process.kill('SIGUSR2');
  await t.rejects(server.failed, { message: /it broke here/ });
  await t.rejects(measure(program('process.exit(1)'), []), { message: /ended with 3: it broke here/ });
});

t.test('a server that is asked to end has not failed', async (t) => {
  const server = await Running.start(SERVES, []);
  t.same(await measure(program('console.log("{}")'), []), {});
  await server.end();
  t.same(await measure(program('console.log("{}")'), []), {});
});
