// SPDX-License-Identifier: Apache-2.0
/** QEMU's CPR state: over a channel, with descriptors beside the bytes, and from a file. */
import fc from 'fast-check';
import t from 'tap';
import { type CprDecoderOptions, CprStateDecoder, inspect, qemuCprKind } from '../../../src/formats/index.js';
import { readWith } from '../foreign/reading.js';
import {
  beforeDescriptor,
  cprState,
  DEVICES,
  type Device,
  ENTRIES,
  type Entry,
  entry,
  header,
  subsection,
  vfioDevices,
} from './states.js';

/** Where the descriptors of a state of these entries travel: at the spaces. */
function marks(entries: readonly Entry[]): number[] {
  let at = header().length;
  return entries.map((one) => {
    at += entry(one).length;
    return at - 1;
  });
}

/** Decodes as a channel does; `piece` bounds a read, `at` are the bytes that descriptors come with. */
function decode(
  bytes: Uint8Array,
  at: readonly number[],
  { piece = 7, ...options }: CprDecoderOptions & { piece?: number } = {},
): CprStateDecoder {
  const decoder = new CprStateDecoder(options);
  const places = new Map<number, number>();
  for (const place of at) places.set(place, (places.get(place) ?? 0) + 1);
  for (let from = 0; from < bytes.length; ) {
    const length = Math.min(decoder.wanted, piece, bytes.length - from);
    let count = 0;
    for (let place = from; place < from + length; place++) count += places.get(place) ?? 0;
    decoder.push(bytes.subarray(from, from + length), count);
    from += length;
  }
  decoder.end();
  return decoder;
}

const whole = cprState(ENTRIES, DEVICES);

const damaged = (message: RegExp) => ({ code: 'DEVSTATE_E_CONTENT_DAMAGED', message });
const unsupported = (message: RegExp) => ({ code: 'DEVSTATE_E_CONTENT_UNSUPPORTED', message });

t.test('what is in it', async (t) => {
  for (const devices of [undefined, [], DEVICES]) {
    const { state, unknown } = decode(cprState(ENTRIES, devices), marks(ENTRIES));
    t.same(state, {
      version: 1,
      descriptors: ENTRIES.map((one) => ({ ...one, number: null })),
      vfioDevices: devices ?? [],
    });
    t.equal(unknown, undefined);
  }
  t.same(decode(cprState([]), []).state.descriptors, []);
});

t.test('any state, read in any pieces', async () => {
  const name = fc.string({ maxLength: 300, unit: 'grapheme' }).filter((text) => !text.includes('\0'));
  const number = fc.integer({ min: 0, max: 0xffffffff });
  const int = fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 });
  const entries: fc.Arbitrary<Entry[]> = fc.array(fc.record({ name, id: int }), { maxLength: 20 });
  const devices: fc.Arbitrary<Device[]> = fc.array(
    fc.record({ name, devid: int, ioasId: number, hwptId: number }),
    { maxLength: 5 },
  );
  fc.assert(
    fc.property(entries, devices, fc.integer({ min: 1, max: 300 }), (entries, devices, piece) => {
      const { state } = decode(cprState(entries, devices), marks(entries), { piece });
      const found = state.descriptors.map(({ name, id }) => ({ name, id }));
      return JSON.stringify([found, state.vfioDevices]) === JSON.stringify([entries, devices]);
    }),
    { numRuns: 300 },
  );
});

t.test('cut anywhere, it is refused', async (t) => {
  const list = cprState(ENTRIES).length;
  for (let length = 0; length < whole.length; length++) {
    const cut = () =>
      decode(
        whole.subarray(0, length),
        marks(ENTRIES).filter((at) => at < length),
      );
    // An older QEMU writes no more than the list.
    if (length === list) t.doesNotThrow(cut);
    else t.throws(cut, { code: 'DEVSTATE_E_CONTENT_TRUNCATED' }, `${length} bytes`);
  }
});

t.test('a descriptor that is missing, out of place or one too many is refused', async (t) => {
  const places = marks(ENTRIES);
  for (let at = 0; at < whole.length; at++) {
    t.throws(() => decode(whole, [...places, at]), damaged(/descriptors came where/), `one more at ${at}`);
  }
  for (const [index] of places.entries()) {
    t.throws(
      () => decode(whole, places.toSpliced(index, 1)),
      damaged(/0 descriptors came where one belongs/),
    );
  }
  const [first = 0] = places;
  t.throws(() => decode(whole, places.with(0, first - 1)), damaged(/1 descriptors came where none/));
});

t.test('what is none', async (t) => {
  const one = { name: 'mem', id: 0 };
  const at = marks([one]);
  const long = (length: number) => ({ name: 'x'.repeat(length), id: 0 });
  const wrong: [bytes: Buffer, at: number[], error: { code: string; message: RegExp }][] = [
    [Buffer.from('QEVM\0\0\0\x03'), [], damaged(/does not begin with QCPR/)],
    [header(2), [], unsupported(/version 2/)],
    [Buffer.concat([header(), Buffer.from([2])]), [], damaged(/neither an element nor the end/)],
    [cprState([long(1024)]), marks([long(1024)]), damaged(/a name is 1025 bytes long/)],
    [Buffer.concat([header(), Buffer.from([1, 0, 0, 0, 0])]), [], damaged(/a name is 0 bytes long/)],
    [cprState([{ name: 'a\0b', id: 0 }]), marks([{ name: 'a\0b', id: 0 }]), damaged(/does not end where/)],
    [Buffer.concat([header(), beforeDescriptor(one), Buffer.from('x')]), at, damaged(/not its own/)],
    [Buffer.concat([cprState([one]), Buffer.from('x')]), at, damaged(/more bytes follow/)],
    [
      Buffer.concat([cprState([one]), subsection('CprState/x', 1, Buffer.of())]),
      at,
      unsupported(/CprState\/x/),
    ],
    [Buffer.concat([cprState([one]), vfioDevices([], 2)]), at, unsupported(/version 2, not 1/)],
    [Buffer.concat([cprState([one], []), vfioDevices([])]), at, damaged(/more bytes follow/)],
  ];
  for (const [bytes, at, error] of wrong) t.throws(() => decode(bytes, at), error);
  // As cpr-exec writes it: over a channel a number means nothing.
  t.throws(() => decode(cprState([{ ...one, number: 7 }]), []), damaged(/0 descriptors came where one/));
  t.throws(() => new CprStateDecoder().push(new Uint8Array(9), 0), RangeError);
});

t.test('passed on, though not known: nothing is decoded from there on', async (t) => {
  const one = { name: 'mem', id: 0 };
  const version2 = Buffer.concat([header(2), Buffer.from('something new')]);
  const passed = decode(version2, [9, 9, 20], { passUnknown: true });
  t.match(passed.unknown, { offset: 4, descriptors: 3, reason: /version 2/ });
  t.match(passed.state, { version: 2, descriptors: [] });
  const section = Buffer.concat([cprState([one]), subsection('CprState/x', 1, Buffer.from('abc'))]);
  const partly = decode(section, [...marks([one]), section.length - 1], { passUnknown: true });
  t.match(partly.unknown, { offset: cprState([one]).length, descriptors: 1 });
  t.match(partly.state.descriptors, [one]);
  const wrong = Buffer.concat([cprState([one]), Buffer.from('x')]);
  t.throws(() => decode(wrong, marks([one]), { passUnknown: true }), damaged(/more bytes/), 'damage is none');
});

t.test('arbitrary bytes and descriptors: an error with a code, or a state; bounded', async (t) => {
  const any = fc.uint8Array({ maxLength: 400 });
  const places = fc.array(fc.nat(600), { maxLength: 4 });
  const codes = new Set<string>();
  const attempt = (bytes: Uint8Array, at: readonly number[], passUnknown: boolean): boolean => {
    try {
      decode(bytes, at, { passUnknown });
      codes.add('none');
      return true;
    } catch (error) {
      const { code = '' } = error as { code?: string };
      codes.add(code);
      return code.startsWith('DEVSTATE_E_CONTENT_');
    }
  };
  fc.assert(
    fc.property(any, places, fc.boolean(), fc.nat(whole.length), (rest, at, pass, length) => {
      const begun = Buffer.concat([whole.subarray(0, length), rest]);
      const own = marks(ENTRIES).filter((place) => place < length);
      return attempt(rest, at, pass) && attempt(begun, own, pass) && attempt(begun, [...own, ...at], pass);
    }),
    { numRuns: 2000 },
  );
  const edits = fc.array(fc.tuple(fc.nat(whole.length - 1), fc.nat(255)), { minLength: 1, maxLength: 3 });
  fc.assert(
    fc.property(edits, (edits) => {
      const changed = Buffer.from(whole);
      for (const [at, value] of edits) changed[at] = value;
      return attempt(changed, marks(ENTRIES), false);
    }),
    { numRuns: 1000 },
  );
  for (const kind of ['TRUNCATED', 'DAMAGED', 'UNSUPPORTED'])
    t.ok(codes.has(`DEVSTATE_E_CONTENT_${kind}`), kind);
  t.ok(codes.has('none'));
});

t.test('without end: refused before it costs much', async (t) => {
  const endless = (bytes: Buffer, descriptors: number, passUnknown = false) => {
    const decoder = new CprStateDecoder({ passUnknown });
    const first = passUnknown ? header(2) : header();
    decoder.push(first, 0);
    for (let pushed = 0; pushed < 32 << 20; ) {
      for (let from = 0; from < bytes.length; ) {
        const length = Math.min(decoder.wanted, bytes.length - from);
        const last = from + length === bytes.length;
        decoder.push(bytes.subarray(from, from + length), last ? descriptors : 0);
        from += length;
        pushed += length;
      }
    }
  };
  t.throws(() => endless(entry({ name: '', id: 0 }), 1), damaged(/more than 16384 descriptors/));
  t.throws(() => endless(entry({ name: 'x'.repeat(1000), id: 0 }), 1), damaged(/longer than 4194304 bytes/));
  t.throws(() => endless(Buffer.from('x'), 0, true), damaged(/longer than/));
  t.throws(() => endless(Buffer.from('x'), 253, true), damaged(/more than 16384 descriptors/));
});

t.test('in a file: saved from a channel, or as cpr-exec writes it', async (t) => {
  const saved = await inspect([whole], { kinds: [qemuCprKind] });
  t.match(saved, {
    kind: 'content',
    title: 'QEMU CPR state',
    error: null,
    content: { fields: { descriptors: ENTRIES.length, vfioDevices: 1 } },
  });
  const executed = cprState(
    ENTRIES.map((one, index) => ({ ...one, number: 20 + index })),
    DEVICES,
  );
  const { sections, error } = readWith(qemuCprKind, executed);
  t.equal(error, null);
  t.match(
    sections.slice(1, -2).map(({ name, fields }) => ({ name, ...fields })),
    ENTRIES.map(({ name, id }, index) => ({ name, id, descriptor: 20 + index })),
  );
  t.match(sections.at(-1)?.sections, [{ name: 'nic0', fields: { devid: 1, ioasId: 2, hwptId: 3 } }]);
  t.match(readWith(qemuCprKind, header(2)).error, { code: 'DEVSTATE_E_CONTENT_UNSUPPORTED' });
});
