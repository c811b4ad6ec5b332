// SPDX-License-Identifier: Apache-2.0
/** What a guest does, and others do to it, while its VM is moved: what is noticed, and what comes of it in which phase. */
import type { Socket } from 'node:net';
import t, { type Test } from 'tap';
import {
  type Facts,
  type Moment,
  obstacle,
  requireStanding,
  requireStopped,
  resetArrived,
  type Stand,
  standOf,
  type Watched,
  wasResetSince,
  watchVm,
} from '../../src/operations/migrate/guest.js';
import { GuestWatch, guestAfter, guestInState, initialGuest, MigrationWatch } from '../../src/qemu/index.js';
import { FakeQemu, type Request } from '../support/fake-qemu.js';
import { until } from '../support/served.js';

const PHASES = ['check', 'precopy', 'switchover', 'land', 'commit', 'rollback'] as const;
type Phase = (typeof PHASES)[number];

/** How far an operation has come in a phase. */
const momentOf: Readonly<Record<Phase, (stand: Stand) => Moment>> = {
  check: () => ({ tag: 'idle' }),
  precopy: () => ({ tag: 'migrating' }),
  switchover: (stand) => ({ tag: 'standing', stand }),
  land: (stand) => ({ tag: 'landing', stand, sourceSpent: false, resetThere: false }),
  commit: () => ({ tag: 'over' }),
  // Whatever has failed: the watch is ended before anything is undone.
  rollback: () => ({ tag: 'idle' }),
};

interface QemuEvent {
  readonly name: string;
  readonly data?: object;
  /** QEMU's run state then. */
  readonly status?: string;
  /** How far QEMU's migration is by then. */
  readonly after?: string;
}

const migration = (status: string): QemuEvent => ({ name: 'MIGRATION', data: { status } });
const shutdown = (reason: string): QemuEvent => ({ name: 'SHUTDOWN', data: { guest: true, reason } });

/**
 * Events at the source × phases: `-` the operation continues, `E` the VM has ended, `C` it was changed, `M` QEMU's migration
 * has ended. Over (`commit`, `rollback`) nothing counts.
 */
const TABLE: readonly (readonly [name: string, event: QemuEvent, cells: string])[] = [
  //                                                                               check precopy switchover land commit rollback
  ['reset by the guest', { name: 'RESET', data: { guest: true, reason: 'guest-reset' } }, '- - - - - -'],
  ['stopped by somebody', { name: 'STOP', status: 'paused' }, '                            - - - - - -'],
  ["stopped by QEMU's migration", { name: 'STOP', status: 'finish-migrate' }, '            - - - - - -'],
  ['resumed before the migration has completed', { name: 'RESUME' }, '                     - - - - - -'],
  ['resumed when it has', { name: 'RESUME', after: 'completed' }, '                        - - C C - -'],
  ['sleeps', { name: 'SUSPEND', status: 'suspended' }, '                                   - - - - - -'],
  ['woken', { name: 'WAKEUP' }, '                                                          - - - - - -'],
  ['power-off by the guest', shutdown('guest-shutdown'), '                                 E E E E - -'],
  ['QEMU asked to quit', shutdown('host-qmp-quit'), '                                       E E E E - -'],
  ['reboot with -no-reboot', shutdown('guest-reset'), '                                    E E E E - -'],
  ['a cause that is new', shutdown('something'), '                                         E E E E - -'],
  ['panic, VM paused', { name: 'GUEST_PANICKED', data: { action: 'pause' } }, '            E E E E - -'],
  ['panic, VM continues', { name: 'GUEST_PANICKED', data: { action: 'run' } }, '             - - - - - -'],
  ['powered off, told by the state', { name: 'STOP', status: 'shutdown' }, '               E E E E - -'],
  ['panic, told by the state', { name: 'STOP', status: 'guest-panicked' }, '               E E E E - -'],
  ['disk error', { name: 'STOP', status: 'io-error' }, '                                   E E E E - -'],
  ['internal error', { name: 'STOP', status: 'internal-error' }, '                         E E E E - -'],
  ['watchdog', { name: 'STOP', status: 'watchdog' }, '                                     E E E E - -'],
  ['our device removed', { name: 'DEVICE_DELETED', data: { device: 'disk0' } }, '          C C C C - -'],
  ['another device removed', { name: 'DEVICE_DELETED', data: { device: 'nic' } }, '        - - - - - -'],
  ['a nameless device removed', { name: 'DEVICE_DELETED', data: { path: '/x' } }, '        - - - - - -'],
  ['migration cancelled', migration('cancelling'), '                                       - M M M - -'],
  ['migration has been cancelled', migration('cancelled'), '                               - M M M - -'],
  ['migration failed', migration('failed'), '                                              - - M - - -'],
  ['migration continues', migration('active'), '                                             - - - - - -'],
  ['something new', { name: 'NOVELTY', data: { device: 1 } }, '                            - - - - - -'],
];

const CODES: Readonly<Record<string, string>> = {
  E: 'DEVSTATE_E_VM_ENDED',
  C: 'DEVSTATE_E_VM_CHANGED',
  M: 'DEVSTATE_E_QEMU_MIGRATION',
};

/** A source whose run state is what the test sets, and as much of an operation as is watched. */
async function scene(t: Test, status = 'running', phase: Phase = 'precopy') {
  const state = { status, migration: 'active', executed: [] as string[] };
  const behave = (qemu: FakeQemu, request: Request, socket: Socket): void => {
    state.executed.push(request.execute);
    const answers: Record<string, object> = {
      'query-status': { status: state.status, running: state.status === 'running' },
      'query-migrate': { status: state.migration },
    };
    qemu.answer(socket, request, answers[request.execute] ?? {});
    if (request.execute === 'system_reset') setImmediate(() => qemu.event('RESET', { guest: false }));
  };
  const { qemu, qmp } = await FakeQemu.start(t, behave);
  const watch = new MigrationWatch(qmp);
  const guest = await GuestWatch.begin(qmp);
  t.teardown(() => {
    watch.close();
    guest.close();
  });
  const source = { qmp, watch, guest } as Watched['source'];
  const stand = standOf({ source });
  const run: Watched = { source, devices: [{ id: 'disk0' }], moment: momentOf[phase](stand) };
  return { qemu, qmp, state, run, stand, guest, watch };
}

t.test('every event in every phase', async (t) => {
  for (const phase of PHASES) {
    for (const [name, event, cells] of TABLE) {
      const { qemu, state, run, guest } = await scene(t, 'running', phase);
      const aborted: { code: string }[] = [];
      const unwatch = watchVm(
        () => run,
        (reason) => aborted.push(reason),
      );
      if (phase === 'rollback') unwatch();
      if (event.status !== undefined) state.status = event.status;
      if (event.after !== undefined) qemu.event('MIGRATION', { status: event.after });
      qemu.event(event.name, event.data);
      // Whoever has an answer has seen every event before it.
      await run.source.qmp.execute('query-version');
      await guest.settled();
      const expected = CODES[cells.trim().split(' ')[PHASES.indexOf(phase)]!];
      t.equal(aborted[0]?.code, expected, `${name} in ${phase}`);
    }
  }
});

t.test('whether the VM runs is what it did last, not what it did first', async (t) => {
  const steps: [events: QemuEvent[], live: boolean, what: string][] = [
    [[], true, 'as it was found'],
    [[{ name: 'STOP', status: 'paused' }], false, 'somebody stops it'],
    [
      [
        { name: 'STOP', status: 'paused' },
        { name: 'RESUME', status: 'running' },
      ],
      true,
      'and resumes it',
    ],
    [[{ name: 'STOP', status: 'finish-migrate' }], true, "QEMU's migration stops it"],
    [[{ name: 'STOP', status: 'postmigrate' }], true, 'and completes'],
    [[{ name: 'SUSPEND', status: 'suspended' }], true, 'it sleeps'],
    [
      [
        { name: 'STOP', status: 'paused' },
        { name: 'RESET', status: 'prelaunch' },
      ],
      false,
      'stopped, then reset',
    ],
  ];
  for (const [events, live, what] of steps) {
    const { qemu, state, qmp, guest } = await scene(t);
    for (const { name, data, status } of events) {
      if (status !== undefined) state.status = status;
      qemu.event(name, data);
      await qmp.execute('query-version');
      await guest.settled();
    }
    t.equal(guest.guest.live, live, what);
  }
  t.equal((await scene(t, 'paused')).guest.guest.live, false, 'paused when it was found');
  const found = await scene(t, 'shutdown');
  t.match(found.guest.guest, { live: false, ended: 'the guest powered off' }, 'ended when it was found');
});

t.test('a VM that was powered off and begins anew', (t) => {
  const off = guestInState(guestAfter(initialGuest, shutdown('guest-shutdown') as never), 'shutdown');
  t.equal(off.ended, 'the guest powered off');
  const again = guestAfter(off, { name: 'RESUME', data: {} });
  t.match(again, { live: true, ended: undefined });
  t.end();
});

t.test('right before QEMU sends the rest', async (t) => {
  const { qemu, state, run, stand } = await scene(t, 'finish-migrate', 'switchover');
  const signal = new AbortController().signal;
  state.migration = 'pre-switchover';
  await requireStanding(run, signal);
  qemu.event('RESET', { guest: false });
  await requireStanding(run, signal);
  t.equal(wasResetSince(run, stand), true, 'an event that came before the answer is known');
  state.migration = 'cancelled';
  state.status = 'running';
  await t.rejects(requireStanding(run, signal), {
    code: 'DEVSTATE_E_VM_CHANGED',
    message: /the VM is running and QEMU's migration cancelled/,
  });
  qemu.event('SHUTDOWN', { guest: true, reason: 'guest-shutdown' });
  await t.rejects(requireStanding(run, signal), { code: 'DEVSTATE_E_VM_ENDED' });
});

t.test('right before the VM runs at the destination', async (t) => {
  const { qemu, state, run } = await scene(t, 'postmigrate', 'land');
  const signal = new AbortController().signal;
  await requireStopped(run, signal);
  state.status = 'prelaunch';
  await requireStopped(run, signal);
  for (const status of ['running', 'suspended']) {
    state.status = status;
    await t.rejects(requireStopped(run, signal), { code: 'DEVSTATE_E_VM_CHANGED' }, status);
  }
  qemu.exit();
  await requireStopped(run, signal);
  t.pass('a QEMU that is gone runs nothing');
});

t.test('a connection that is lost says nothing of a VM that may run', async (t) => {
  const { qmp, run } = await scene(t, 'postmigrate', 'land');
  qmp.close();
  await t.rejects(requireStopped(run, new AbortController().signal), { code: 'DEVSTATE_E_QMP_CLOSED' });
});

t.test('a VM that arrives is reset', async (t) => {
  const { qmp, state, guest } = await scene(t, 'paused');
  await resetArrived({ qmp, guest } as never, AbortSignal.timeout(5000));
  t.equal(state.executed.includes('system_reset'), true);
  t.equal(guest.guest.resets, 1);
});

t.test('a VM that QEMU resumes as its migration has failed was not resumed by somebody', async (t) => {
  const { qemu, qmp, run } = await scene(t, 'postmigrate', 'land');
  qemu.event('MIGRATION', { status: 'failed' });
  qemu.event('RESUME');
  await qmp.execute('query-version');
  await requireStopped(run, new AbortController().signal);
});

t.test('a VM that runs at the destination before its devices are there', async (t) => {
  const stand = { resets: 0, resumes: 0 };
  const landing = { tag: 'landing', stand, sourceSpent: false, resetThere: false } as const;
  const facts: Facts = {
    guest: initialGuest,
    resumesThere: 1,
    resetsThere: 0,
    history: [],
    ids: [],
    moment: landing,
  };
  t.match(obstacle(facts), { code: 'DEVSTATE_E_VM_CHANGED', message: /at the destination/ });
  t.equal(obstacle({ ...facts, moment: { tag: 'over' } }), undefined, 'which is when we run it');
  const reset = { ...facts, resumesThere: 0, resetsThere: 1 };
  t.match(obstacle(reset), { code: 'DEVSTATE_E_VM_CHANGED', message: /system_reset/ });
  t.equal(obstacle({ ...reset, moment: { ...landing, resetThere: true } }), undefined, 'unless it was us');
  const ended = { ...initialGuest, ended: 'QEMU was asked to quit' };
  t.equal(
    obstacle({ ...facts, resumesThere: 0, guest: ended, moment: { ...landing, sourceSpent: true } }),
    undefined,
    'a source that is no longer needed may end',
  );
  const [there, here] = [await scene(t, 'inmigrate'), await scene(t, 'postmigrate', 'land')];
  const aborted: unknown[] = [];
  const run = { ...here.run, destination: there.run.source };
  watchVm(
    () => run,
    (reason) => aborted.push(reason),
  );
  there.qemu.event('RESUME');
  await until(() => aborted.length > 0);
});
