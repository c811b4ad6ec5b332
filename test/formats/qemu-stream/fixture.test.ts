// SPDX-License-Identifier: Apache-2.0
/**
 * A stream that QEMU 11.1.3 wrote: `-M none -m 1 -S` with a UUID, the capability validate-uuid, and two helpers on its
 * `dbus-vmstate`, one of which saved `formats/fixtures/minimal.bin`.
 */
import fc from 'fast-check';
import t from 'tap';
import { fixture } from '../blobs.js';
import { Extracted, markKind, read, sumOfSizes } from './reading.js';

const BYTES = fixture('foreign/qemu-none.bin');
const REPORT = read(BYTES);

t.test('is read as expected, from a file and from a pipe', async (t) => {
  t.same(REPORT, JSON.parse(fixture('foreign/qemu-none.json').toString('utf8')));
  t.same(read(BYTES, { pipe: true }), REPORT);
  t.equal(REPORT.error, null);
  t.equal(sumOfSizes(REPORT.sections), BYTES.length);
});

t.test('the helpers’ states come out byte for byte', async (t) => {
  const extraction = new Extracted();
  read(BYTES, { extraction });
  t.same(Object.fromEntries(extraction.files), {
    'dbus-vmstate.disk0.bin': fixture('minimal.bin'),
    'dbus-vmstate.other.bin': Buffer.from('state of another kind'),
  });
});

t.test('cut or damaged anywhere, that is reported, and every byte is accounted for', async (t) => {
  const description = REPORT.sections.at(-1)!;
  for (let length = 0; length < BYTES.length; length++) {
    const { error, sections } = read(BYTES.subarray(0, length), { pipe: length % 2 === 0 });
    if (length === description.offset) continue;
    const { code, offset } = error ?? {};
    if (code !== 'DEVSTATE_E_CONTENT_TRUNCATED' || offset !== length) t.fail(`cut at ${length}: ${code}`);
    if (sumOfSizes(sections) !== length) t.fail(`cut at ${length}: sizes`);
  }
  const flips = fc.array(fc.nat(BYTES.length * 8 - 1), { minLength: 1, maxLength: 5 });
  const seen = new Set<string>();
  fc.assert(
    fc.property(flips, fc.boolean(), (bits, pipe) => {
      const bytes = Buffer.from(BYTES);
      for (const bit of bits) bytes[bit >> 3]! ^= 1 << (bit & 7);
      const report = read(bytes, { pipe, kinds: [markKind] });
      seen.add(report.error?.code ?? 'none');
      return sumOfSizes(report.sections) === bytes.length;
    }),
    { numRuns: 2000 },
  );
  t.ok(seen.has('DEVSTATE_E_CONTENT_DAMAGED') && seen.has('none'), [...seen].join());
});

t.test('arbitrary bytes behind a header', async () => {
  const bytes = fc.uint8Array({ maxLength: 2000, size: 'max' });
  fc.assert(
    fc.property(bytes, fc.boolean(), (rest, pipe) => {
      const all = Buffer.concat([BYTES.subarray(0, 8), rest]);
      return sumOfSizes(read(all, { pipe }).sections) === all.length;
    }),
    { numRuns: 1000 },
  );
});
