// SPDX-License-Identifier: Apache-2.0
/** What can be known of a destination's VM whose QEMU answers badly, late or not at all. */
import { createServer, type Socket } from 'node:net';
import t from 'tap';
import { connectIfThere, quit, start } from '../../src/operations/migrate/destination-vm.js';
import { FakeQemu, type Request } from '../support/fake-qemu.js';

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
  t.same(qemu.commands, ['quit', 'quit'], 'it is asked again');
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
