// SPDX-License-Identifier: Apache-2.0
/** device_state of v1: every state × every value that can be written, the way between any two, and what v2 calls them. */

import t from 'tap';
import {
  deviceStateOf,
  deviceStatePath,
  isDeviceState,
  migrationStateOf,
  requireTransition,
} from '../../../src/migration/index.js';
import { DeviceState, deviceStateName, Errno, MigrationState } from '../../../src/wire/index.js';
import { refusal } from '../../support/hex.js';

const STATES = Object.values(DeviceState);

/** `x`: legal. Columns are all values of the three bits; the rows those that are states. */
const TABLE: readonly (readonly [from: DeviceState, row: string])[] = [
  //   written:          000 001 010 011 100 101 110 111
  [DeviceState.STOP, '    x   x   x   .   .   .   .   .'],
  [DeviceState.RUNNING, ' x   x   x   x   x   .   .   .'],
  [DeviceState.STOP_COPY, 'x  x   x   .   .   .   .   .'],
  [DeviceState.PRE_COPY, '.   x   x   x   .   .   .   .'],
  [DeviceState.RESUMING, '.   x   .   .   x   .   .   .'],
  [DeviceState.ERROR, '   .   .   .   .   .   .   .   .'],
];

t.test('every state × every value', async (t) => {
  t.equal(TABLE.length, STATES.length);
  for (const [from, row] of TABLE) {
    row
      .trim()
      .split(/\s+/)
      .forEach((cell, written) => {
        const what = `${deviceStateName(from)} ← ${written.toString(2).padStart(3, '0')}`;
        t.equal(
          refusal(() => requireTransition(from, written)),
          cell === 'x' ? 0 : Errno.EINVAL,
          what,
        );
      });
    for (const bit of [8, 16, 0x100, 0x40000000, 0x80000000]) {
      t.equal(
        refusal(() => requireTransition(from, from + bit)),
        Errno.EINVAL,
        'reserved bits are refused',
      );
    }
  }
});

t.test(
  'the way a client goes: legal writes, the shortest, without states that save or load in between',
  async (t) => {
    for (const from of STATES) {
      for (const to of STATES) {
        const what = `${deviceStateName(from)} → ${deviceStateName(to)}`;
        if (from !== to && (from === DeviceState.ERROR || to === DeviceState.ERROR)) {
          t.equal(
            refusal(() => deviceStatePath(from, to)),
            Errno.EINVAL,
            what,
          );
          continue;
        }
        const path = deviceStatePath(from, to);
        t.ok(path.length <= 2, what);
        t.equal(path.at(-1) ?? from, to);
        t.ok(path.slice(0, -1).every((state) => state === DeviceState.RUNNING));
        path.forEach((state, i) => {
          t.equal(
            refusal(() => requireTransition(path[i - 1] ?? from, state)),
            0,
            'a server takes each step',
          );
        });
        if (from !== to && refusal(() => requireTransition(from, to)) === 0)
          t.equal(path.length, 1, 'directly');
      }
    }
  },
);

t.test('v1 and v2 of the same state', async (t) => {
  const table: [MigrationState, DeviceState, back: MigrationState][] = [
    [MigrationState.ERROR, 6, MigrationState.ERROR],
    [MigrationState.STOP, 0, MigrationState.STOP],
    [MigrationState.RUNNING, 1, MigrationState.RUNNING],
    [MigrationState.STOP_COPY, 2, MigrationState.STOP_COPY],
    [MigrationState.RESUMING, 4, MigrationState.RESUMING],
    [MigrationState.RUNNING_P2P, 1, MigrationState.RUNNING],
    [MigrationState.PRE_COPY, 3, MigrationState.PRE_COPY],
    [MigrationState.PRE_COPY_P2P, 3, MigrationState.PRE_COPY],
  ];
  t.equal(table.length, Object.keys(MigrationState).length);
  for (const [v2, v1, back] of table) {
    t.equal(deviceStateOf(v2), v1);
    t.equal(migrationStateOf(v1), back);
  }
});

t.test('names', async (t) => {
  t.equal(deviceStateName(3), 'PRE_COPY (011)');
  t.equal(deviceStateName(0), 'STOP (000)');
  t.equal(deviceStateName(5), 'device_state 101');
  t.strictSame([...Array(9).keys()].filter(isDeviceState), [0, 1, 2, 3, 4, 6]);
});
