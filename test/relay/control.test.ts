// SPDX-License-Identifier: Apache-2.0
/** Clients of a relay's control socket that stay silent do not keep others from it. */

import t, { type Test } from 'tap';
import { Asker, Channel } from '../../src/documents/index.js';
import { type ControlHost, type ControlRequest, ControlServer } from '../../src/relay/control.js';
import { socketPair } from '../../src/transport/index.js';
import { z } from '../../src/zod.js';
import { until } from '../support/served.js';

/** More than may be connected at once. */
const MANY = 40;

class Client {
  readonly #asker: Asker;
  readonly closed: Promise<void>;

  constructor(t: Test, server: ControlServer) {
    const [ours, theirs] = socketPair();
    let end = (): void => {};
    this.closed = new Promise((resolve) => {
      end = resolve;
    });
    this.#asker = new Asker(new Channel(ours, { closed: () => end() }), 'the relay');
    t.teardown(() => this.#asker.close());
    server.accept(theirs);
  }

  ask(request: ControlRequest | object): Promise<unknown> {
    return this.#asker.ask(request, z.unknown());
  }

  leave(): void {
    this.#asker.close();
  }
}

function serve(t: Test, host: Partial<ControlHost> = {}): ControlServer {
  const never = (): Promise<never> => new Promise(() => {});
  const status = { serving: true, generation: 1 };
  const quiet = { status, configReads: () => undefined, deserted: () => {} };
  const server = new ControlServer({ switchTo: never, handOver: never, ...quiet, ...host });
  t.teardown(() => server.close());
  return server;
}

t.test('silent clients make room for others, the longest silent first', async (t) => {
  const server = serve(t);
  const active = new Client(t, server);
  const silent: Client[] = [];
  for (let i = 0; i < MANY; i++) {
    silent.push(new Client(t, server));
    t.match(await active.ask({ command: 'status' }), { serving: true });
  }
  await silent[0]?.closed;
  t.match(await silent.at(-1)?.ask({ command: 'status' }), { serving: true }, 'the latest are there');
});

t.test('where all wait for answers the next one gets an error that says so', async (t) => {
  const asked = new Set<string>();
  const switchTo = ({ server }: { server: string }): Promise<never> => {
    asked.add(server);
    return new Promise(() => {});
  };
  const server = serve(t, { switchTo });
  for (let i = 0; i < 16; i++)
    new Client(t, server).ask({ command: 'switch', server: `/nowhere/${i}`, state: 'with' }).catch(() => {});
  await until(() => asked.size === 16);
  const late = new Client(t, server);
  await t.rejects(late.ask({ command: 'status' }), {
    code: 'DEVSTATE_E_RELAY',
    message: /wait for answers; try again/,
  });
  await late.closed;
});

t.test('clients that left while they waited leave their places, and the last one is noticed', async (t) => {
  const asked = new Set<string>();
  const answers: ((error: Error) => void)[] = [];
  const switchTo = ({ server }: { server: string }): Promise<never> => {
    asked.add(server);
    return new Promise((_, reject) => answers.push(reject));
  };
  let deserted = 0;
  const server = serve(t, { switchTo, deserted: () => deserted++ });
  const clients = Array.from({ length: 16 }, () => new Client(t, server));
  const asking = clients.map((client, i) =>
    t.rejects(client.ask({ command: 'switch', server: `/nowhere/${i}`, state: 'with' })),
  );
  await until(() => asked.size === 16);
  for (const client of clients) client.leave();
  await Promise.all(asking);
  await until(() => deserted === 1);
  const next = new Client(t, server);
  t.match(await next.ask({ command: 'status' }), { serving: true });
  let idle = false;
  void server.idle().then(() => {
    idle = true;
  });
  for (const answer of answers.splice(1)) answer(new Error('no'));
  t.match(await next.ask({ command: 'status' }), { serving: true });
  t.equal(idle, false, 'one is under way');
  answers[0]?.(new Error('no'));
  await until(() => idle);
});

t.test('what is no command is refused, and the next is answered', async (t) => {
  const client = new Client(t, serve(t));
  const wrong = [{ command: 'explode' }, { command: 'switch', server: '', state: 'with' }, {}, [1]];
  for (const request of wrong)
    await t.rejects(client.ask(request), {
      code: 'DEVSTATE_E_USAGE',
      message: /the relay does not know that command/,
    });
  t.match(await client.ask({ command: 'status' }), { serving: true });
  t.equal(await client.ask({ command: 'config-reads', since: 0, vmm: 0 }), null);
});
