// SPDX-License-Identifier: Apache-2.0
/** What `devstate upgrade --qemu` refuses before it asks anybody, and what it reads from a command line. */

import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { type UpgradeQemuOptions, upgradeQemu } from '../../src/operations/index.js';
import { commandObstacles, qmpSockets } from '../../src/operations/upgrade-qemu/command-line.js';
import { execArguments, transferArguments } from '../../src/qemu/index.js';

t.test('where the new QEMU is asked', async (t) => {
  const found: [string[], string[]][] = [
    [[], []],
    [['qemu', '-qmp', 'unix:/run/a,server=on,wait=off'], ['/run/a']],
    [['qemu', '--qmp', 'unix:/run/a'], ['/run/a']],
    [
      ['-qmp-pretty', 'unix:/run/a', '-qmp', 'unix:/run/b'],
      ['/run/a', '/run/b'],
    ],
    [['-qmp', 'unix:/run/a,,b,server=on'], ['/run/a,b']],
    [['-qmp', 'tcp:localhost:4444'], []],
    [['-monitor', 'unix:/run/a', '-qmp'], []],
    [['-qmp', 'unix:a'], [join(process.cwd(), 'a')]],
  ];
  for (const [command, sockets] of found) t.same(qmpSockets(command), sockets, command.join(' '));
});

t.test('what is ours to say', async (t) => {
  t.same(commandObstacles(['qemu', '-S', '-name', 'incoming']), []);
  t.match(commandObstacles(['qemu', '-incoming', 'defer']), [/-incoming: leave it out, devstate adds it/]);
  t.match(commandObstacles(['qemu', '--daemonize']), [/--daemonize: leave it out/]);
  t.same(execArguments('/run/state'), ['-S', '-incoming', 'file:/run/state']);
  const [stopped, first, main = '', second, cpr = ''] = transferArguments({ main: '/m', cpr: '/c' });
  t.same([stopped, first, second], ['-S', '-incoming', '-incoming']);
  t.match(JSON.parse(main), {
    'channel-type': 'main',
    addr: { transport: 'socket', type: 'unix', path: '/m' },
  });
  t.match(JSON.parse(cpr), { 'channel-type': 'cpr', addr: { path: '/c' } });
});

t.test('what is refused before anybody is asked', async (t) => {
  const nowhere = join(tmpdir(), 'no-such-qmp');
  const good: UpgradeQemuOptions = {
    mode: 'cpr-transfer',
    sourceQmp: nowhere,
    devices: [{ id: 'disk0', server: '/run/a' }],
    command: ['qemu', '-qmp', 'unix:/run/new'],
    timeoutMs: 1000,
  };
  const refused: [Partial<UpgradeQemuOptions>, RegExp][] = [
    [{ command: [] }, /command line is missing/],
    [{ command: [...good.command, '-incoming', 'x'] }, /leave it out/],
    [{ devices: [] }, /no device to keep/],
    [{ devices: [...good.devices, { id: 'disk0', server: '/run/b' }] }, /disk0 is named for two devices/],
    [{ devices: [...good.devices, { id: 'disk1', server: '/run/a' }] }, /\/run\/a is named for two/],
    [{ command: ['qemu'] }, /say where it is asked with --qmp/],
    [{ command: ['qemu', '-qmp', `unix:${nowhere}`] }, /would take the old one's QMP socket/],
    [{ qmp: nowhere }, /would take the old one's QMP socket/],
    [{ mode: 'cpr-exec' }, /has no -qmp unix:.*no-such-qmp/],
  ];
  for (const [change, message] of refused)
    await t.rejects(upgradeQemu({ ...good, ...change }), { code: 'DEVSTATE_E_USAGE', message });
  await t.rejects(upgradeQemu(good), { code: 'DEVSTATE_E_QMP_CONNECT', message: /^check: / });
});
