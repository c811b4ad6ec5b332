// SPDX-License-Identifier: Apache-2.0
/**
 * The v2 state machine against an oracle that knows only the direct arcs and the rules of the uAPI's text, for every
 * state, every target and every set of features; and what failing arcs leave behind.
 */

import t from 'tap';
import {
  BrokenDeviceError,
  MigrationMachine,
  migrationPath,
  supportedStates,
} from '../../src/migration/index.js';
import { Errno, MigrationState, migrationStateName as name, RequestError } from '../../src/wire/index.js';
import { refusal } from '../support/hex.js';

const { ERROR, STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P } = MigrationState;
const ALL: readonly MigrationState[] = Object.values(MigrationState);
/** STOP_COPY alone, with P2P, with PRE_COPY, with both. */
const FLAGS = [1, 3, 5, 7];
const SAVING: readonly number[] = [STOP_COPY, PRE_COPY, PRE_COPY_P2P];

function statesOf(flags: number): MigrationState[] {
  const states: MigrationState[] = [ERROR, RUNNING, STOP, STOP_COPY, RESUMING];
  if ((flags & 2) !== 0) states.push(RUNNING_P2P);
  if ((flags & 4) !== 0) states.push(PRE_COPY);
  if (flags === 7) states.push(PRE_COPY_P2P);
  return states;
}

/** Arcs as `enum vfio_device_mig_state` documents them; without P2P its states are taken out of the middle. */
function arcsOf(flags: number): [MigrationState, MigrationState][] {
  const both: [MigrationState, MigrationState][] = [
    [STOP, STOP_COPY],
    [STOP, RESUMING],
    [RUNNING, PRE_COPY],
  ];
  const oneWay: [MigrationState, MigrationState][] = [];
  if ((flags & 2) === 0) {
    both.push([RUNNING, STOP]);
    oneWay.push([PRE_COPY, STOP_COPY]);
  } else {
    both.push(
      [RUNNING, RUNNING_P2P],
      [RUNNING_P2P, STOP],
      [RUNNING_P2P, PRE_COPY_P2P],
      [PRE_COPY, PRE_COPY_P2P],
    );
    oneWay.push([PRE_COPY_P2P, STOP_COPY]);
  }
  const states = statesOf(flags);
  return [...both, ...both.map(([a, b]): [MigrationState, MigrationState] => [b, a]), ...oneWay].filter(
    ([from, to]) => states.includes(from) && states.includes(to),
  );
}

/** Shortest path, breadth first. A state of the saving group lies between only if both ends are of the group. */
function oracle(from: MigrationState, to: number, flags: number): MigrationState[] | undefined {
  const states = statesOf(flags);
  if (!(states as number[]).includes(to) || !states.includes(from)) return undefined;
  if (from === ERROR || to === ERROR) return undefined;
  if (from === STOP_COPY && (to === PRE_COPY || to === PRE_COPY_P2P)) return undefined;
  const inGroup = SAVING.includes(from) && SAVING.includes(to);
  const paths: MigrationState[][] = [[]];
  const seen = new Set<MigrationState>([from]);
  for (let path = paths.shift(); path !== undefined; path = paths.shift()) {
    const last = path.at(-1) ?? from;
    if (last === to) return path;
    if (path.length > 0 && SAVING.includes(last) && !inGroup) continue;
    for (const [a, b] of arcsOf(flags)) {
      if (a !== last || seen.has(b)) continue;
      seen.add(b);
      paths.push([...path, b]);
    }
  }
  return undefined;
}

const text = (path: readonly number[] | undefined): string =>
  path === undefined ? 'refused' : path.map(name).join(' ');

/** The path of a machine that has been brought to `from` by resets and transitions of its own. */
async function machineAt(
  from: MigrationState,
  flags: number,
  arc: (a: MigrationState, b: MigrationState) => void,
) {
  let recording = false;
  const machine = new MigrationMachine(flags, (a, b) => {
    if (recording) arc(a, b);
    else if (from === ERROR) throw new BrokenDeviceError(new Error('cannot'));
  });
  if (from === ERROR) await machine.setState(STOP).catch(() => {});
  else await machine.setState(from);
  recording = true;
  return machine;
}

for (const flags of FLAGS) {
  t.test(`every state × every target, features ${flags}`, async (t) => {
    t.strictSame([...supportedStates(flags)].sort(), statesOf(flags).sort());
    for (const from of statesOf(flags)) {
      for (const to of [...ALL, 8, 255, 0xffffffff, -1, 1.5]) {
        const expected = from === to && from !== ERROR ? [] : oracle(from, to, flags);
        let found: number[] | undefined;
        try {
          found = migrationPath(from, to, supportedStates(flags));
        } catch (error) {
          t.equal((error as RequestError).errno, Errno.EINVAL);
        }
        if (from === ERROR && to === ERROR) continue;
        t.equal(text(found), text(expected), `${name(from)} → ${name(to)}`);
        if (expected === undefined || to === from) continue;

        const called: string[] = [];
        const machine = await machineAt(from, flags, (a, b) => called.push(`${name(a)} ${name(b)}`));
        await machine.setState(to);
        const arcs = expected.map((state, i) => `${name(expected[i - 1] ?? from)} ${name(state)}`);
        t.strictSame(called, arcs, 'the arcs that were carried out');
        t.equal(machine.state, to);
      }
    }
  });
}

t.test("the kernel's own table, all features", async (t) => {
  const targets = [STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P];
  const table: [MigrationState, string][] = [
    [STOP, '= R_P2P S_COPY RESUM R_P2P R_P2P R_P2P'],
    [RUNNING, 'R_P2P = R_P2P R_P2P R_P2P PRE R_P2P'],
    [STOP_COPY, 'STOP STOP = STOP STOP E E'],
    [RESUMING, 'STOP STOP STOP = STOP STOP STOP'],
    [RUNNING_P2P, 'STOP RUN STOP STOP = RUN PRE_P2P'],
    [PRE_COPY, 'RUN RUN PRE_P2P RUN RUN = PRE_P2P'],
    [PRE_COPY_P2P, 'R_P2P R_P2P S_COPY R_P2P R_P2P PRE ='],
    [ERROR, 'E E E E E E E'],
  ];
  const short: Record<string, MigrationState> = {
    STOP,
    RUN: RUNNING,
    S_COPY: STOP_COPY,
    RESUM: RESUMING,
    R_P2P: RUNNING_P2P,
    PRE: PRE_COPY,
    PRE_P2P: PRE_COPY_P2P,
  };
  for (const [from, row] of table) {
    row.split(' ').forEach((cell, i) => {
      const to = targets[i]!;
      const what = `${name(from)} → ${name(to)}`;
      if (cell === 'E')
        t.equal(
          refusal(() => migrationPath(from, to, supportedStates(7))),
          Errno.EINVAL,
          what,
        );
      else
        t.equal(migrationPath(from, to, supportedStates(7))[0], cell === '=' ? undefined : short[cell], what);
    });
  }
});

t.test('an arc that fails leaves the machine where it was, wherever on the path', async (t) => {
  for (const flags of FLAGS) {
    for (const from of statesOf(flags).filter((state) => state !== ERROR)) {
      for (const to of statesOf(flags)) {
        const path = oracle(from, to, flags) ?? [];
        for (let failing = 0; failing < path.length; failing++) {
          for (const broken of [false, true]) {
            let step = 0;
            const cause = new RequestError(Errno.ENOSPC, 'no room');
            const machine = await machineAt(from, flags, () => {
              if (step++ === failing) throw broken ? new BrokenDeviceError(cause) : cause;
            });
            const error = await machine.setState(to).catch((error) => error);
            const last = path[failing - 1] ?? from;
            if (
              error?.errno !== Errno.ENOSPC ||
              step !== failing + 1 ||
              machine.state !== (broken ? ERROR : last)
            ) {
              t.fail(`${name(from)} → ${name(to)} failing at step ${failing}: in ${name(machine.state)}`);
            }
            machine.reset();
            if (machine.state !== RUNNING) t.fail('reset');
          }
        }
      }
    }
  }
  t.pass('every step of every path');
});

t.test('a device without migration is RUNNING and nothing else', async (t) => {
  t.strictSame([...supportedStates(0)].sort(), [ERROR, RUNNING]);
  const machine = new MigrationMachine(0, () => {});
  await t.rejects(machine.setState(STOP), RequestError);
  await machine.setState(RUNNING);
});

t.test('an arc that is slow: the state changes when it is done', async (t) => {
  let finish = (): void => {};
  const machine = new MigrationMachine(1, () => new Promise<void>((resolve) => (finish = resolve)));
  const done = machine.setState(STOP);
  t.equal(machine.state, RUNNING);
  finish();
  await done;
  t.equal(machine.state, STOP);
});

t.test('a broken device tells the errno of what broke it', async (t) => {
  t.equal(new BrokenDeviceError(new RequestError(Errno.ENOSPC, 'x')).errno, Errno.ENOSPC);
  t.equal(new BrokenDeviceError(new Error('x')).errno, Errno.EIO);
  t.equal(new BrokenDeviceError('x').errno, Errno.EIO);
});
