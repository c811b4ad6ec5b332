// SPDX-License-Identifier: Apache-2.0
/** What can be known of a destination's VM whose QEMU answers badly, late or not at all. */
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { connectIfThere, quit, start } from '../../src/operations/migrate/destination-vm.js';
import { QmpClient } from '../../src/qemu/index.js';
import { LineSplitter } from '../../src/qemu/line-splitter.js';

const GREETING =
  '{"QMP":{"version":{"qemu":{"major":11,"minor":1,"micro":3},"package":""},"capabilities":[]}}\n';

interface Request {
  readonly execute: string;
  readonly id: number;
}

/** Stands in for a QEMU: answers as `behave` says. */
class FakeQemu {
  readonly path: string;
  readonly commands: string[] = [];
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(path: string, behave: (qemu: FakeQemu, request: Request, socket: Socket) => void) {
    this.path = path;
    this.#server = createServer((socket) => {
      this.#sockets.add(socket.on('error', () => {}));
      socket.write(GREETING);
      LineSplitter.of(socket, 1 << 20).onLine = (line) => {
        const request = JSON.parse(line) as Request;
        if (request.execute === 'qmp_capabilities') return this.answer(socket, request, {});
        this.commands.push(request.execute);
        behave(this, request, socket);
      };
    });
  }

  static async start(t: Test, behave: (qemu: FakeQemu, request: Request, socket: Socket) => void) {
    const directory = mkdtempSync(join(tmpdir(), 'devstate-vm-'));
    const qemu = new FakeQemu(join(directory, 'qmp'), behave);
    qemu.#server.listen(qemu.path);
    await once(qemu.#server, 'listening');
    const qmp = await QmpClient.connect(qemu.path);
    t.teardown(() => {
      qmp.close();
      qemu.exit();
      rmSync(directory, { recursive: true });
    });
    return { qemu, qmp };
  }

  answer(socket: Socket, { id }: Request, value: unknown): void {
    socket.write(`${JSON.stringify({ return: value, id })}\n`);
  }

  /** Ends as a process does: nobody listens any more. */
  exit(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }
}

const never = (): boolean => false;

t.test('a QEMU that quits', async (t) => {
  const { qemu, qmp } = await FakeQemu.start(t, (qemu) => qemu.exit());
  await quit(qmp, 5000);
  t.same(qemu.commands, ['quit']);
  await quit(qmp, 5000);
  t.pass('nor is it there when it is asked once more');
});

t.test('a connection that is lost is no QEMU that has quit', async (t) => {
  let connections = 0;
  const { qemu, qmp } = await FakeQemu.start(t, (qemu, _, socket) => {
    if (++connections === 1) socket.destroy();
    else qemu.exit();
  });
  await quit(qmp, 5000);
  t.same(qemu.commands, ['quit', 'quit'], 'it is told again');
});

t.test('a QEMU that does not quit', async (t) => {
  const { qmp } = await FakeQemu.start(t, () => {});
  await t.rejects(quit(qmp, 50), { code: 'DEVSTATE_E_REQUEST_TIMEOUT' });
  const { qmp: dropping } = await FakeQemu.start(t, (_, __, socket) => socket.destroy());
  await t.rejects(quit(dropping, 200), { code: 'DEVSTATE_E_REQUEST_TIMEOUT' }, 'or only drops connections');
});

t.test('a VM that is started', async (t) => {
  const runState = (running: boolean) => ({ status: running ? 'running' : 'paused', running });
  const outcomes: [string, string, (qemu: FakeQemu, request: Request, socket: Socket) => void][] = [
    ['it says so', 'runs', (qemu, request, socket) => qemu.answer(socket, request, {})],
    [
      'it refuses',
      'refused',
      (_, { id }, socket) => socket.write(`{"error":{"class":"GenericError","desc":"no"},"id":${id}}\n`),
    ],
    ['it dies', 'refused', (qemu) => qemu.exit()],
    [
      'the answer is lost, and it runs',
      'runs',
      (qemu, request, socket) =>
        request.execute === 'cont' ? socket.destroy() : qemu.answer(socket, request, runState(true)),
    ],
    [
      'the command is lost, and it does not run',
      'refused',
      (qemu, request, socket) =>
        request.execute === 'cont' ? socket.destroy() : qemu.answer(socket, request, runState(false)),
    ],
    ['it does not answer any more', 'unknown', () => {}],
    [
      'the answer is lost, and it does not answer any more',
      'unknown',
      (_, { execute }, socket) => {
        if (execute === 'cont') socket.destroy();
      },
    ],
  ];
  for (const [what, expected, behave] of outcomes) {
    const { qmp } = await FakeQemu.start(t, behave);
    t.equal((await start(qmp, never, 100)).outcome, expected, what);
  }
  const { qmp } = await FakeQemu.start(t, (qemu) => qemu.exit());
  t.equal((await start(qmp, () => true, 100)).outcome, 'runs', 'it has run and dies: it has run');
});

t.test('whether there is a QEMU', async (t) => {
  const { qemu, qmp } = await FakeQemu.start(t, () => {});
  const signal = AbortSignal.timeout(5000);
  (await connectIfThere(qemu.path, signal))?.close();
  qmp.close();
  qemu.exit();
  t.equal(await connectIfThere(qemu.path, signal), undefined);
  const busy = createServer((socket) => socket.on('error', () => {}));
  const path = `${qemu.path}2`;
  await new Promise<void>((resolve) => busy.listen(path, resolve));
  t.teardown(() => busy.close());
  await t.rejects(
    connectIfThere(path, AbortSignal.timeout(50)),
    { name: 'TimeoutError' },
    'one that serves another client may be there',
  );
});
