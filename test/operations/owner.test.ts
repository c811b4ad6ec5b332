// SPDX-License-Identifier: Apache-2.0
/** A device that a VMM has is saved, loaded or given another server only by who says whose it is. Here the VMM is no QEMU. */

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { answerAll, Channel } from '../../src/documents/index.js';
import { DevstateError } from '../../src/errors.js';
import { load, relaySwitch, save } from '../../src/operations/index.js';
import { Listener } from '../../src/transport/index.js';
import { RelayBed } from '../relay/support.js';
import { serveScratch, socketFolder } from '../support/served.js';

const UNNAMED = {
  code: 'DEVSTATE_E_INCOMPATIBLE',
  message: /a VMM is connected to .*--qmp PATH --device ID/,
};

t.test('save and load', async (t) => {
  const served = serveScratch(t);
  const file = join(socketFolder(t), 'state');
  const device = { migrationSocket: served.migrationPath };
  const output = { ...device, output: file, afterwards: 'run' } as const;
  const input = { ...device, input: file, afterwards: 'run' } as const;
  await save(output);
  await load(input);
  await served.vmm();
  const other = { ...output, output: `${file}-2` };
  await t.rejects(save(other), UNNAMED);
  t.notOk(existsSync(other.output));
  await t.rejects(load(input), UNNAMED);
  await save({ ...other, unproven: true });
  await load({ ...input, unproven: true });
  const owner = { qmp: join(socketFolder(t), 'none'), id: 'disk0' };
  await t.rejects(save({ ...output, owner }), { code: 'DEVSTATE_E_QMP_CONNECT' });
});

t.test('a server behind a relay', async (t) => {
  const bed = new RelayBed(t);
  bed.serveScratch();
  const server = join(bed.folder, 'next');
  bed.serveScratch({ socketPath: server });
  const request = { control: bed.controlPath, server, state: 'with' } as const;
  await t.rejects(relaySwitch(request), { code: 'DEVSTATE_E_RELAY', message: /no VMM is connected/ });
  await bed.vmm();
  await t.rejects(relaySwitch(request), UNNAMED);
  await t.rejects(relaySwitch({ ...request, state: 'without' }), UNNAMED);
  t.match(await relaySwitch({ ...request, unproven: true }), { server });
});

t.test('a relay that does not say what its VMM reads', async (t) => {
  const control = join(socketFolder(t), 'control');
  const asked: unknown[] = [];
  const report = { server: 'b', withState: true, stateBytes: 0, prepareMs: 0, heldMs: 0 };
  const answers: Record<string, unknown> = {
    status: { generation: 0, serving: true },
    switch: { ...report, drainMs: 0, catchUpMs: 0, stateMs: 0 },
  };
  const carryOut = (request: unknown) => {
    const { command } = request as { command: string };
    asked.push(command);
    const document = answers[command];
    if (document !== undefined) return { document };
    throw new DevstateError('DEVSTATE_E_USAGE', 'the relay does not know that command');
  };
  const older = Listener.listen(control, (fd) => {
    answerAll(new Channel(fd), { carryOut }).catch(() => {});
  });
  t.teardown(() => older.close());
  t.match(await relaySwitch({ control, server: 'b', state: 'with' }), { server: 'b' });
  t.same(asked, ['status', 'config-reads', 'switch']);
});
