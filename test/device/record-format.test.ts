// SPDX-License-Identifier: Apache-2.0
/** A state of a few records: what is saved, what is taken, every refusal. */

import t from 'tap';
import { RecordFormat, type StateRecord } from '../../src/device/index.js';
import { Errno } from '../../src/wire/index.js';
import { hex, refusal } from '../support/hex.js';

const STATE = 0x10000;
const NOTE = 0x10001;

interface Saved {
  state: Uint8Array;
  note: Uint8Array | undefined;
}

/** A format of what `held` is; loading replaces that. */
function formatOf(held: Saved) {
  return new RecordFormat({
    uuid: '4e6a1b52-0d4c-4f5b-8a53-2c1f0a7d9b11',
    name: 'org.devstate.test.records',
    version: { major: 1, minor: 0 },
    records: { state: { type: STATE, length: 2 }, note: { type: NOTE, optional: true } },
    save: () => held,
    load: ({ state, note }) => {
      if (state[0] === 0xff) throw new Error('no such state');
      Object.assign(held, { state, note });
    },
  });
}

/** Loads records. @returns what it was refused with; undefined when it was not */
function load(held: Saved, records: StateRecord[]): { errno: number; message: string } | undefined {
  const loader = formatOf(held).load();
  let message = '';
  const errno = refusal(() => {
    try {
      for (const record of records) loader.record(record);
      loader.commit();
    } catch (error) {
      message = (error as Error).message;
      throw error;
    }
  });
  return errno === 0 ? undefined : { errno, message };
}

t.test('all is saved at the end, and stays as it was', async (t) => {
  const held: Saved = { state: hex('0102'), note: undefined };
  const format = formatOf(held);
  t.strictSame([...format.save('pre-copy')], []);
  const saved = [...format.save('final')];
  held.state[0] = 9;
  t.strictSame(saved, [{ type: STATE, optional: false, payload: hex('0102') }]);
  held.note = hex('aa');
  t.strictSame([...format.save('final')][1], { type: NOTE, optional: true, payload: hex('aa') });
  t.ok(format.estimate() >= 2);
});

t.test('becomes what it was given', async (t) => {
  const held: Saved = { state: hex('0000'), note: hex('00') };
  const payload = hex('0304');
  const loader = formatOf(held).load();
  loader.record({ type: STATE, payload });
  payload.fill(0);
  t.strictSame(held.state, hex('0000'), 'nothing changes before the commit');
  loader.record({ type: 0x20000, optional: true, payload: hex('') });
  loader.commit();
  t.strictSame(held, { state: hex('0304'), note: undefined }, 'a payload is valid during the call only');
  t.equal(
    load(held, [
      { type: NOTE, payload: hex('bb') },
      { type: STATE, payload: hex('0506') },
    ]),
    undefined,
  );
  t.strictSame(held, { state: hex('0506'), note: hex('bb') });
});

t.test('refuses what is no state of it, and stays what it is', async (t) => {
  const state = { type: STATE, payload: hex('0102') };
  const cases: [string, StateRecord[], RegExp][] = [
    ['nothing', [], /"state" is missing/],
    ['too little', [{ type: STATE, payload: hex('01') }], /"state" has 1 bytes, not 2/],
    ['too much', [{ type: STATE, payload: hex('010203') }], /"state" has 3 bytes, not 2/],
    ['one twice', [state, state], /"state" came twice/],
    ['one that is not known', [state, { type: 0x20000, payload: hex('') }], /type 0x20000 is unknown/],
  ];
  for (const [what, records, message] of cases) {
    const held: Saved = { state: hex('0000'), note: undefined };
    t.match(load(held, records), { errno: Errno.EINVAL, message }, what);
    t.strictSame(held, { state: hex('0000'), note: undefined }, what);
  }
  const held: Saved = { state: hex('0000'), note: undefined };
  const loader = formatOf(held).load();
  loader.record({ type: STATE, payload: hex('ff00') });
  t.throws(() => loader.commit(), { message: 'no such state' }, "the device's own refusal is passed on");
});
