// SPDX-License-Identifier: Apache-2.0
/** One owner for each descriptor. */

import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import t from 'tap';
import { check, Errno, native } from '../../src/native/index.js';
import { closeAll, Fd } from '../../src/transport/index.js';
import { openFds } from './support.js';

const eventfd = (): Fd => new Fd(check(native.eventfdCreate(0), 'create'));

t.test('close is idempotent and the number is gone', async (t) => {
  const fd = eventfd();
  const number = fd.number;
  t.ok(fd.isOpen);
  fd.close();
  fd.close();
  t.notOk(fd.isOpen);
  t.throws(() => fd.number, { code: 'DEVSTATE_E_FD_CLOSED' });
  t.throws(() => fd.take(), { code: 'DEVSTATE_E_FD_CLOSED' });
  t.throws(() => fd.duplicate(), { code: 'DEVSTATE_E_FD_CLOSED' });
  t.equal(native.eventfdSignal(number), -Errno.EBADF);
});

t.test('take moves, duplicate shares, release gives it up', async (t) => {
  const fd = eventfd();
  const number = fd.number;
  const taken = fd.take();
  fd.close();
  t.equal(taken.number, number);
  const copy = taken.duplicate();
  t.not(copy.number, number);
  t.equal(native.eventfdSignal(copy.number), 0);
  t.equal(native.eventfdRead(taken.number), 1);
  t.equal(taken.release(), number);
  t.notOk(taken.isOpen);
  t.equal(native.close(number), 0);
  closeAll([copy, copy]);
  t.notOk(copy.isOpen);
});

t.test('a forgotten one is closed, with a warning', async (t) => {
  setFlagsFromString('--expose-gc');
  const collectGarbage = runInNewContext('gc') as () => void;
  const before = openFds();
  const warned = new Promise<string>((resolve) =>
    process.once('warning', (warning) => resolve(warning.name)),
  );
  (() => void eventfd())();
  for (let i = 0; i < 50 && openFds() > before; i++) {
    collectGarbage();
    await new Promise((resolve) => setImmediate(resolve));
  }
  t.equal(openFds(), before);
  t.equal(await warned, 'DevstateFdLeak');
});
