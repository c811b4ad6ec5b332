// SPDX-License-Identifier: Apache-2.0
/** `devstate cpr` between real QEMUs, and what a QEMU hands to the program that it becomes. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { asDevstateError, ExitCode } from '../../src/errors.js';
import type { Inspection } from '../../src/formats/index.js';
import { QmpClient, queryRunState, resumeVm } from '../../src/qemu/index.js';
import { closeAll, connect, type Fd, Listener, StreamSocket } from '../../src/transport/index.js';
import { CprPair } from './harness/cpr-pair.js';
import { Devstate, devstate } from './harness/devstate-process.js';
import { QemuProcess } from './harness/qemu-process.js';
import { requireGuest, requireQemu } from './harness/require-qemu.js';

t.setTimeout(900_000);

/** Starts `devstate cpr`; resolves when a source may connect, to its `path`. */
async function startCpr(pair: CprPair, ...args: string[]): Promise<{ path: string; cpr: Devstate }> {
  const path = join(pair.directory, 'between');
  const cpr = new Devstate(['cpr', '--listen', path, '--forward', pair.sockets.cpr, ...args]);
  await cpr.saysOnStderr(/waiting for the source/);
  return { path, cpr };
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 5));
}

/** Starts a destination, which listens when this resolves. */
async function startWaiting(pair: CprPair): Promise<{ starting: Promise<QemuProcess> }> {
  const starting = pair.startDestination();
  await until(() => existsSync(pair.sockets.cpr));
  return { starting };
}

/** QEMU listens some time after its start, and refuses connections until then. */
async function connectWhenThere(path: string): Promise<QmpClient> {
  for (;;) {
    try {
      return await QmpClient.connect(path);
    } catch (error) {
      if (asDevstateError(error).code !== 'DEVSTATE_E_QMP_CONNECT') throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

async function inspected(path: string): Promise<Inspection> {
  const { stdout, stderr } = await devstate('inspect', path, '-o', 'json');
  return JSON.parse(stdout === '' ? `"${stderr}"` : stdout);
}

/** The source's migration has failed, its VM has never stopped, and its guest counts on. */
async function runsOn(t: Test, pair: CprPair, path: string, meanwhile = async () => {}): Promise<void> {
  const { source } = pair;
  const watch = await pair.transfer(path);
  await meanwhile();
  t.equal(await watch.waitForAny(['failed', 'completed']), 'failed');
  t.equal(watch.stopped, undefined, 'the VM was never stopped');
  watch.close();
  t.match(await queryRunState(source.qmp), { running: true });
  await pair.counts(source);
}

t.test('from QEMU to QEMU', async (t) => {
  const qemu = await requireQemu(t);
  const guest = qemu && (await requireGuest(t));
  if (qemu === undefined || guest === undefined) return;
  const pair = await CprPair.start(t, qemu, guest);
  const { source } = pair;
  const saved = join(pair.directory, 'saved');

  await t.test('no destination', async (t) => {
    const { path, cpr } = await startCpr(pair);
    await runsOn(t, pair, path);
    t.equal(await cpr.exited, ExitCode.cannotConnect);
    t.match(cpr.stdout, /^Forwarded: +no\n/);
  });

  await t.test('something is not there', async (t) => {
    const { starting } = await startWaiting(pair);
    const { path, cpr } = await startCpr(
      pair,
      '--require',
      'mem',
      '--require',
      'vfio_group:12',
      '--save',
      saved,
    );
    await runsOn(t, pair, path);
    t.equal(await cpr.exited, ExitCode.incompatible);
    t.match(cpr.stderr, /error: .*vfio_group:12 is not there \[DEVSTATE_E_CPR_REFUSED\]/);
    t.match(cpr.stdout, /^Forwarded: +no\n +vfio_group:12 is not there\nVersion: +1\n/);
    await t.rejects(starting, /bad magic 0/, 'the destination ends');
  });

  await t.test('a list that is cut, and garbage', async (t) => {
    const list = readFileSync(saved);
    for (const [bytes, code] of [
      [list.subarray(0, 8), 'TRUNCATED'],
      // Without its descriptors.
      [list, 'DAMAGED'],
      [Buffer.from('\x7fELF\x02\x01\x01\0'), 'DAMAGED'],
    ] as const) {
      const { starting } = await startWaiting(pair);
      const { path, cpr } = await startCpr(pair);
      const handler = { data: () => {}, ended: () => {}, lost: () => {} };
      const socket = new StreamSocket(await connect(path), handler, { maxQueuedBytes: 0 });
      socket.send(bytes);
      socket.endSending();
      t.equal(await cpr.exited, ExitCode.corrupt);
      t.match(cpr.stderr, `DEVSTATE_E_CONTENT_${code}`);
      socket.close();
      await t.rejects(starting, /bad magic 0/);
    }
  });

  await t.test('devstate is killed while the destination loads', async (t) => {
    let accepted = (): void => {};
    const connected = new Promise<void>((resolve) => (accepted = resolve));
    const held: Fd[] = [];
    const mute = Listener.listen(pair.sockets.cpr, (fd) => {
      held.push(fd);
      accepted();
    });
    const { path, cpr } = await startCpr(pair);
    await runsOn(t, pair, path, async () => {
      await connected;
      t.notOk(cpr.hasEnded);
      await cpr.end('SIGKILL');
    });
    mute.close();
    closeAll(held);
  });

  await t.test('all is there: the guest continues at the destination', async (t) => {
    const { starting } = await startWaiting(pair);
    const args = ['--require', 'mem:0', '--require', 'pc.bios', '--save', saved, '-o', 'json'];
    const { path, cpr } = await startCpr(pair, ...args);
    const watch = await pair.transfer(path);
    t.equal(await cpr.exited, ExitCode.done, 'devstate cpr', { stderr: cpr.stderr });
    await watch.waitFor('completed');
    watch.close();
    const destination = await starting;
    const last = source.console.lines.findLast((line) => line.startsWith('tick ')) ?? '';
    await resumeVm(destination.qmp);
    t.ok((await pair.counts(destination)) >= Number(last.slice(5)), 'it counts on from where it was');

    const report = JSON.parse(cpr.stdout);
    const size = 128 << 20;
    const memory = { kind: 'memfd', name: 'memory-backend-memfd', size, seals: ['seal', 'shrink', 'grow'] };
    t.match(report, { forwarded: true, version: 1, vfioDevices: [], reasons: [], error: null });
    t.match(
      report.descriptors.find(({ name }: { name: string }) => name === 'mem'),
      { id: 0, descriptor: memory },
    );
    t.match(await inspected(saved), {
      kind: 'content',
      size: report.bytes,
      content: { kind: 'qemu-cpr', fields: { descriptors: report.descriptors.length, vfioDevices: 0 } },
      error: null,
    });
  });
});

t.test('cpr-exec: what a QEMU hands to the program that it becomes', async (t) => {
  const qemu = await requireQemu(t);
  if (qemu === undefined) return;
  const machine = [
    '-accel',
    'tcg',
    '-M',
    'q35,aux-ram-share=on',
    '-m',
    '64M',
    '-nodefaults',
    '-display',
    'none',
  ];
  const vm = await QemuProcess.start(qemu, { memoryMiB: 64, extra: ['-machine', 'aux-ram-share=on'] });
  t.teardown(() => vm.kill());
  const [saved, stream, socket] = [vm.path('saved'), vm.path('stream'), vm.path('next')];
  const next = [
    ...[...qemu.command, ...machine, '-S', '-incoming', `file:${stream}`],
    ...['-object', 'memory-backend-memfd,id=mem,size=64M,share=on', '-machine', 'memory-backend=mem'],
    ...['-qmp', `unix:${socket},server=on,wait=off`],
  ];
  // The console of the first.
  next.push('-chardev', `socket,id=serial0,path=${vm.path('serial')}`, '-serial', 'chardev:serial0');
  const copy = `cat /proc/self/fd/$QEMU_CPR_EXEC_STATE > ${saved} && exec "$@"`;
  await vm.qmp.execute('migrate-set-parameters', {
    arguments: { mode: 'cpr-exec', 'cpr-exec-command': ['sh', '-c', copy, 'sh', ...next] },
  });
  await vm.qmp.execute('migrate', { arguments: { uri: `file:${stream}` } });
  const qmp = await connectWhenThere(socket);
  t.teardown(() => qmp.close());
  while ((await queryRunState(qmp)).status === 'inmigrate');
  await resumeVm(qmp);
  t.match(await queryRunState(qmp), { running: true });
  const list = await inspected(saved);
  t.match(list, { kind: 'content', content: { kind: 'qemu-cpr' }, error: null });
  const memory =
    list.kind === 'content' ? list.content.sections.find(({ name }) => name === 'mem') : undefined;
  t.match(memory?.fields, { id: 0, descriptor: Number });
});
