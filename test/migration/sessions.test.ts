// SPDX-License-Identifier: Apache-2.0
/** Saving and loading: chunks of any size, pre-copy rounds, streams of any length, failures, damage at every byte. */

import t from 'tap';
import type { StateRecord } from '../../src/device/index.js';
import { decodeEnvelope, type EnvelopeHeader, parseUuid } from '../../src/formats/index.js';
import { LoadSession, SaveSession } from '../../src/migration/index.js';
import { sameBytes } from '../support/hex.js';
import { ScratchState } from '../support/scratch-state.js';
import { turnsOf } from '../support/turns.js';

function stateOf(size: number, chunk: number, hook: (step: string) => void = () => {}): ScratchState {
  const state = new ScratchState({ size, chunk, hook });
  for (let i = 0; i < size; i++) state.memory[i] = (i * 31 + (i >> 8)) & 0xff;
  state.registers.fill(7);
  return state;
}

function headerOf({ uuid, version }: ScratchState): EnvelopeHeader {
  return {
    format: uuid,
    version,
    model: 'devstate.org/scratch',
    parameters: { size: 1 },
    producer: { name: 'test', version: '1' },
    stream: parseUuid('ffb52a17-6d23-4071-bc66-ecaaf72ae18c'),
    features: [],
    other: {},
  };
}

async function readAll(session: SaveSession, size: number): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  for (;;) {
    const read = await session.read(size);
    const length = read.reduce((sum, part) => sum + part.length, 0);
    if (length > size) throw new Error(`${length} bytes instead of at most ${size}`);
    parts.push(...read);
    if (length === 0) return Buffer.concat(parts);
    // The specification's end of the stream: fewer bytes than asked for.
    if (length < size && (await session.read(size)).length > 0) throw new Error('bytes after a short read');
  }
}

async function blobOf(state: ScratchState, size = 4096): Promise<Buffer> {
  const session = new SaveSession(state, headerOf(state));
  await session.finish();
  const blob = await readAll(session, size);
  if (!session.ended) throw new Error('not at its end');
  return blob;
}

async function load(state: ScratchState, blob: Uint8Array, size = blob.length): Promise<void> {
  const session = new LoadSession(() => state);
  for (let at = 0; at < blob.length; at += size) await session.push(blob.subarray(at, at + size));
  await session.commit();
}

t.test('chunks of any size carry the same stream', async (t) => {
  const source = stateOf(10_000, 1000);
  const expected = await blobOf(source);
  for (const size of [1, 4, 4096, 2 ** 20]) {
    source.touchAll();
    const blob = await blobOf(source, size);
    t.ok(blob.equals(expected), `read ${size} bytes at a time`);
    const target = new ScratchState({ size: 10_000, chunk: 1000, hook: () => {} });
    await load(target, blob, size);
    t.ok(sameBytes(target.memory, source.memory));
    t.ok(sameBytes(target.registers, source.registers));
  }
});

t.test('pre-copy: rounds until nothing is new, then the last', async (t) => {
  const source = stateOf(64 * 1024, 4096);
  const session = new SaveSession(source, headerOf(source));
  const stream: Uint8Array[] = [];
  const round = async (): Promise<number> => {
    let bytes = 0;
    for (;;) {
      const parts = await session.read(5000);
      const length = parts.reduce((sum, part) => sum + part.length, 0);
      stream.push(...parts);
      bytes += length;
      if (length === 0) return bytes;
    }
  };
  t.ok((await round()) > 64 * 1024, 'everything at first');
  t.equal(await round(), 0, 'nothing new');
  t.equal(session.ended, false, 'but that is not the end');
  source.write(5000, Uint8Array.of(1, 2, 3));
  t.ok(session.pending >= 4096, 'pending tells');
  const second = await round();
  t.ok(second > 4096 && second < 5000, 'one chunk');
  source.write(60_000, Uint8Array.of(9));
  await session.finish();
  await round();
  t.equal(session.ended, true);
  t.equal(session.pending, 0);
  const target = new ScratchState({ size: 64 * 1024, chunk: 4096, hook: () => {} });
  await load(target, Buffer.concat(stream));
  t.ok(sameBytes(target.memory, source.memory));
});

t.test('a round given up half way: what it had not sent comes with the last', async (t) => {
  for (const read of [1, 100, 3000, 20_000]) {
    const source = stateOf(32 * 1024, 1024);
    const session = new SaveSession(source, headerOf(source));
    const stream = await session.read(read);
    source.write(0, Uint8Array.of(0xee));
    await session.finish();
    stream.push(await readAll(session, 777));
    const target = new ScratchState({ size: 32 * 1024, chunk: 1024, hook: () => {} });
    await load(target, Buffer.concat(stream));
    t.ok(sameBytes(target.memory, source.memory), `after ${read} bytes`);
  }
});

t.test('a saving that was given up does not count for the next', async (t) => {
  const source = stateOf(32 * 1024, 1024);
  const first = new SaveSession(source, headerOf(source));
  await first.read(20_000);
  await first.close();
  const target = new ScratchState({ size: 32 * 1024, chunk: 1024, hook: () => {} });
  await load(target, await blobOf(source));
  t.ok(sameBytes(target.memory, source.memory), 'the next has everything');
});

t.test('a format that yields without waiting', async (t) => {
  const plain = {
    ...headerOf(stateOf(0, 1)),
  };
  const records: StateRecord[] = [{ type: 0x10001, payload: Uint8Array.of(1) }];
  const format = Object.assign(stateOf(0, 1), { save: () => records as never });
  const session = new SaveSession(format, plain);
  await session.finish();
  t.ok((await readAll(session, 10)).length > 0);
});

t.test('64 MiB stream through little memory, both ways', async (t) => {
  const MIB = 2 ** 20;
  const source = new ScratchState({ size: 64 * MIB, chunk: MIB, hook: () => {} });
  source.write(63 * MIB, Uint8Array.of(42));
  const target = new ScratchState({ size: 64 * MIB, chunk: MIB, hook: () => {} });
  const save = new SaveSession(source, headerOf(source));
  await save.finish();
  const into = new LoadSession(() => target);
  let read = 0;
  let most = 0;
  while (!save.ended) {
    for (const part of await save.read(256 * 1024)) {
      read += part.length;
      await into.push(part);
    }
    most = Math.max(most, source.yielded - read);
  }
  t.ok(most <= MIB + 256 * 1024, `at most one record ahead of the reader: ${most} bytes`);
  await into.commit();
  t.equal(target.memory[63 * MIB], 42);
});

t.test('a save that fails never gets an end, however often it is read', async (t) => {
  let failing = true;
  let saved = 0;
  const source = stateOf(8192, 1024, (step) => {
    if (step === 'saved a chunk' && ++saved === 3 && failing) throw new Error('disk on fire');
  });
  const session = new SaveSession(source, headerOf(source));
  await session.finish();
  await t.rejects(readAll(session, 512), /disk on fire/);
  failing = false;
  await t.rejects(session.read(512), /disk on fire/, 'again');
  t.equal(session.ended, false);
  source.touchAll();
  t.ok((await blobOf(source)).length > 8192, 'a new session starts from the beginning');
});

t.test('cut anywhere: refused, and the device is what it was', async (t) => {
  const blob = await blobOf(stateOf(300, 100));
  const target = new ScratchState({ size: 300, chunk: 100, hook: () => {} });
  for (let length = 0; length < blob.length; length++) {
    const error = await load(target, blob.subarray(0, length)).catch((error) => error);
    if (!(error instanceof Error)) t.fail(`${length} of ${blob.length} bytes were accepted`);
  }
  t.equal(target.commits, 0);
  t.ok(target.memory.every((byte) => byte === 0));
  await t.rejects(load(target, Buffer.concat([blob, Buffer.of(0)])), 'nor anything behind the end');
  await load(target, blob);
  t.equal(target.commits, 1);
});

t.test('flipped anywhere: refused, and the device is what it was', async (t) => {
  const source = stateOf(300, 100);
  const blob = await blobOf(source);
  const target = new ScratchState({ size: 300, chunk: 100, hook: () => {} });
  for (let at = 0; at < blob.length; at++) {
    for (const bit of [0x01, 0x80]) {
      const damaged = Buffer.from(blob);
      damaged[at]! ^= bit;
      const error = await load(target, damaged).catch((error) => error);
      if (!(error instanceof Error)) t.fail(`byte ${at} flipped by ${bit} was accepted`);
    }
  }
  t.equal(target.commits, 0, 'commit was never reached');
  t.ok(target.memory.every((byte) => byte === 0));
});

t.test('a chooser that refuses refuses the load', async (t) => {
  const blob = await blobOf(stateOf(10, 10));
  const session = new LoadSession(() => {
    throw new Error('other model');
  });
  t.throws(() => session.push(blob), /other model/);
  t.throws(() => session.push(blob), /other model/, 'and stays refused');
  await t.rejects(session.commit(), /other model/);
});

t.test('a commit that fails', async (t) => {
  const blob = await blobOf(stateOf(10, 10));
  const target = new ScratchState({
    size: 10,
    chunk: 10,
    hook: (step) => {
      if (step === 'commit') throw new Error('no');
    },
  });
  await t.rejects(load(target, blob), /no/);
  t.equal(target.commits, 0);
});

t.test('a saving that is compressed gives others their turns', async (t) => {
  const MIB = 2 ** 20;
  const recordsOf = async (count: number, length: number): Promise<{ turns: number; blob: Buffer }> => {
    const state = stateOf(1, 1);
    const source = {
      *save() {
        for (let i = 0; i < count; i++) yield { type: 0x10000 + i, payload: new Uint8Array(length) };
      },
      estimate: () => 0,
    };
    const session = new SaveSession(source, { ...headerOf(state), features: ['deflate'] });
    await session.finish();
    let parts: Uint8Array[] = [];
    const turns = await turnsOf(async () => {
      // All of it is less than was asked for.
      parts = await session.read(MIB);
    });
    return { turns, blob: Buffer.concat(parts) };
  };
  // A fast machine compresses 16 MiB of zeros in two turns.
  const MANY = 512;
  const many = await recordsOf(MANY, MIB / 4);
  t.ok(many.turns > 2, `many records: ${many.turns}`);
  const one = await recordsOf(1, 8 * MIB);
  t.ok(one.turns > 2, `one of 8 MiB: ${one.turns}`);
  for (const [{ blob }, count, length] of [
    [many, MANY, MIB / 4],
    [one, 1, 8 * MIB],
  ] as const) {
    const { records } = decodeEnvelope(blob);
    t.equal(records.length, count);
    const plain = Buffer.alloc(length);
    t.ok(records.every(({ payload }) => plain.equals(payload)));
  }
});
