// SPDX-License-Identifier: Apache-2.0
/**
 * Two VMs, each behind a relay, and every relay and server in a pid namespace of its own, where process numbers say
 * nothing: what is mixed up is refused all the same, and what belongs together is moved.
 */

import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { queryRunState } from '../../src/qemu/index.js';
import { Devstate, devstate } from './harness/devstate-process.js';
import { type LabServer, type LabVm, MigrationLab } from './harness/lab.js';

t.setTimeout(900_000);

const ROOT = process.getuid?.() === 0 ? [] : ['--map-root-user'];
/** Runs a command as process 1 of a new pid namespace, which ends with it. */
const APART = ['unshare', ...ROOT, '--pid', '--fork', '--mount-proc', '--kill-child', '--'];

interface Relayed extends LabServer {
  readonly control: string;
}

async function startApart(t: Test, args: readonly string[], says: RegExp): Promise<Devstate> {
  const process = new Devstate(args, APART);
  t.teardown(() => process.end());
  await process.saysOnStderr(says);
  return process;
}

/** A device server without a migration socket, on an image of its own, and a relay before it. */
async function relayed(
  t: Test,
  lab: MigrationLab,
  name: string,
  image: string,
  incoming = false,
): Promise<Relayed> {
  const at = (what: string): string => join(lab.directory, `${name}.${what}`);
  const disk = ['--image', image, '--param', 'serial=DISK0', ...(incoming ? ['--incoming'] : [])];
  await startApart(t, ['serve', 'nvme', '--socket', at('device'), ...disk], /"msg":"serving /);
  const paths = { socket: at('sock'), migrationSocket: at('mig'), control: at('control') };
  const process = await startApart(
    t,
    [
      ...['relay', '--listen', paths.socket, '--server', at('device'), '--control', paths.control],
      ...['--migration-socket', paths.migrationSocket, '--trap'],
    ],
    /"msg":"relaying /,
  );
  return { name, image, process, ...paths };
}

t.test('relays in pid namespaces', async (t) => {
  if (spawnSync(APART[0]!, [...APART.slice(1), 'true']).status !== 0) {
    t.plan(0, 'this process may not make pid namespaces');
    return;
  }
  const lab = await MigrationLab.create(t);
  if (lab === undefined) return;
  const other = join(lab.directory, 'other.img');
  const [mine, theirs] = [await relayed(t, lab, 'a', lab.image()), await relayed(t, lab, 'b', other)];
  const start = (server: LabServer, incoming = false): Promise<LabVm> => lab.startVm({ server, incoming });
  const [vm, foreign] = [await start(mine), await start(theirs)];
  for (const one of [vm, foreign]) await lab.guestWrites(one);
  const prove = ['--qmp', vm.qmpPath, '--device', 'disk0'];

  const refused = (name: string, args: readonly string[], ...words: readonly RegExp[]): Promise<unknown> =>
    t.test(name, async (t) => {
      const { code, stderr } = await devstate(...args);
      t.equal(code, 3, stderr);
      for (const word of words) t.match(stderr, word);
      for (const one of [vm, foreign]) {
        t.match(await queryRunState(one.qmp), { status: 'running' });
        await lab.guestWrites(one);
      }
    });

  const next = join(lab.directory, 'next.device');
  const disk = ['--image', lab.image(), '--param', 'serial=DISK0', '--incoming'];
  await startApart(t, ['serve', 'nvme', '--socket', next, ...disk], /"msg":"serving /);
  const replace = (control: string, ...more: string[]): string[] => [
    ...['relay-switch', '--control', control, '--server', next, ...more],
  ];
  await refused(
    'a server is replaced, its VM not named',
    replace(mine.control),
    /nothing was replaced: a VMM is connected to .*a\.control.*--qmp PATH --device ID.*--unproven/,
  );
  await refused(
    "the server of another VM's relay is replaced",
    replace(theirs.control, ...prove),
    /nothing was replaced: device disk0: the VM's QEMU .* does not talk to the server behind .*b\.control.*QEMU connected this device to .*a\.sock/,
  );
  const file = join(lab.directory, 'state');
  const save = (socket: string, ...more: string[]): string[] => [
    ...['save', '--migration-socket', socket, '-o', file, ...more],
  ];
  await refused(
    "the state of another VM's device",
    save(theirs.migrationSocket, ...prove),
    /nothing was saved: device disk0: .* does not talk to the server behind .*b\.mig/,
  );
  t.notOk(existsSync(file), 'nothing was written');
  const saved = await devstate(...save(mine.migrationSocket, ...prove));
  t.equal(saved.code, 0, saved.stderr);
  const replaced = await devstate(...replace(mine.control, ...prove));
  t.equal(replaced.code, 0, replaced.stderr);
  await lab.guestWrites(vm);

  const arriving = await relayed(t, lab, 'c', lab.image(), true);
  const destination = await start(arriving, true);
  const migrate = (source: string): string[] => [
    ...['migrate', '--source-qmp', vm.qmpPath, '--dest-qmp', destination.qmpPath],
    ...['--uri', `unix:${join(lab.directory, 'ram')}`],
    ...['--device', `disk0,source=${source},dest=${arriving.migrationSocket}`],
  ];
  await refused(
    'the source of another VM',
    migrate(theirs.migrationSocket),
    /device disk0: the source QEMU .* does not talk to the server behind .*b\.mig/,
  );
  const moved = await devstate(...migrate(mine.migrationSocket));
  t.equal(moved.code, 0, moved.stderr);
  await lab.guestWrites(destination);
  await lab.guestWrites(foreign);
  t.same(await lab.finishAndCheck(destination), []);
});
