// SPDX-License-Identifier: Apache-2.0
/** Clients of a relay's control socket that stay silent do not keep others from it. */

import { once } from 'node:events';
import { Socket } from 'node:net';
import t, { type Test } from 'tap';
import { type ControlHost, ControlServer } from '../../src/relay/control.js';
import { socketPair } from '../../src/transport/index.js';
import { until } from '../support/served.js';

/** More than may be connected at once. */
const MANY = 40;

class Client {
  readonly #socket: Socket;
  #said = '';
  readonly closed: Promise<unknown>;

  constructor(t: Test, server: ControlServer) {
    const [ours, theirs] = socketPair();
    this.#socket = new Socket({ fd: ours.release(), readable: true, writable: true });
    this.#socket.setEncoding('utf8').on('data', (text: string) => {
      this.#said += text;
    });
    this.#socket.on('error', () => {});
    this.closed = once(this.#socket, 'close');
    t.teardown(() => this.#socket.destroy());
    server.accept(theirs);
  }

  async line(): Promise<string> {
    while (!this.#said.includes('\n')) await Promise.race([once(this.#socket, 'data'), this.closed]);
    const [line = ''] = this.#said.split('\n', 1);
    this.#said = this.#said.slice(line.length + 1);
    return line;
  }

  ask(request: unknown): void {
    this.#socket.write(`${JSON.stringify(request)}\n`);
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
    active.ask({ command: 'status' });
    t.match(await active.line(), '"serving":true');
  }
  await silent[0]?.closed;
  silent.at(-1)?.ask({ command: 'status' });
  t.match(await silent.at(-1)?.line(), '"serving":true', 'the latest are there');
});

t.test('where all wait for answers the next one is told so', async (t) => {
  const asked = new Set<string>();
  const switchTo = ({ server }: { server: string }): Promise<never> => {
    asked.add(server);
    return new Promise(() => {});
  };
  const server = serve(t, { switchTo });
  for (let i = 0; i < 16; i++)
    new Client(t, server).ask({ command: 'switch', server: `/nowhere/${i}`, state: 'with' });
  await until(() => asked.size === 16);
  const late = new Client(t, server);
  late.ask({ command: 'status' });
  t.match(await late.line(), /DEVSTATE_E_RELAY.*wait for answers; try again/);
});
