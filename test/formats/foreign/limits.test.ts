// SPDX-License-Identifier: Apache-2.0
/** Content of others: cut anywhere, damaged anywhere, arbitrary, without end. */
import fc from 'fast-check';
import t from 'tap';
import { detectContent, FOREIGN_KINDS } from '../../../src/formats/foreign/index.js';
import { cprState, ENTRIES } from '../qemu-cpr/states.js';
import { check, kindNamed, readWith, samples } from './reading.js';
import { join, SAMPLES, u8, u16, u32, u64, virtioDeviceParts, zeros } from './samples.js';

/** Characters: what is said must not grow with the content. */
const REPORT_LENGTH_MAX = 4 << 20;

/** Where a sample may end without anything missing: after this many bytes. */
const WHOLE_AT: ReadonlyMap<string, (length: number) => boolean> = new Map([
  // Sent during pre-copy, or all there is of a device that was not set up.
  ['hisi-acc', (length: number) => length === 40],
  // Records and parts have no end; what follows the state of the others means nothing.
  ['mlx5', (length: number) => [0, 24, 140, 161].includes(length)],
  ['virtio-vfio', (length: number) => [0, 323].includes(length)],
  ['virtio-device-parts', (length: number) => [0, 32, 64, 82, 100, 117, 165, 213, 237, 261].includes(length)],
  ['qat', (length: number) => length >= 448 || (length >= 90 && length < 94)],
  ['spdk-nvme', (length: number) => length >= 16608],
  ['nvme-controller-state', (length: number) => length >= 140],
  // Older QEMUs have no list of VFIO devices.
  ['qemu-cpr', (length: number) => length === cprState(ENTRIES).length],
]);

t.test('cut anywhere, the cut is reported, and every byte is accounted for', async (t) => {
  for (const { name, kind, bytes } of samples) {
    for (let length = 0; length < bytes.length; length++) {
      const reader = kind.read({});
      reader.push(bytes.subarray(0, length));
      const report = reader.finish();
      const problem = check(report, length);
      if (problem !== undefined) t.fail(`${name} cut at ${length}: ${problem}`);
      const { code, offset } = report.error ?? {};
      if (WHOLE_AT.get(name)?.(length)) {
        if (code !== undefined) t.fail(`${name} cut at ${length}, where it may end: ${code}`);
      } else if (code !== 'DEVSTATE_E_CONTENT_TRUNCATED' || offset !== length) {
        // The first bytes decide what it is.
        if (name !== 'qat' || length >= 4) t.fail(`${name} cut at ${length}: ${code} at ${offset}`);
      }
    }
    t.pass(name);
  }
});

t.test('damaged anywhere, nothing is thrown and every byte is accounted for', async (t) => {
  const seen = new Map<string, Set<string>>();
  for (const { name, kind, bytes } of samples) {
    const codes = new Set<string>();
    seen.set(name, codes);
    // Where there are more than zeros.
    const places = [...bytes.keys()].filter((at) => at < 600 || bytes[at] !== 0);
    const edits = fc.array(fc.tuple(fc.constantFrom(...places), fc.integer({ min: 0, max: 255 })), {
      minLength: 1,
      maxLength: 4,
    });
    fc.assert(
      fc.property(edits, fc.nat(bytes.length), (edits, length) => {
        const damaged = Buffer.from(bytes);
        for (const [at, value] of edits) damaged[at] = value;
        const cut = length % 3 === 0 ? damaged.subarray(0, length) : damaged;
        const report = readWith(kind, cut, { chunks: [5, 200] });
        codes.add(report.error?.code ?? 'none');
        detectContent(cut);
        return check(report, cut.length) === undefined && JSON.stringify(report).length < REPORT_LENGTH_MAX;
      }),
      { numRuns: 600 },
    );
  }
  for (const [name, codes] of seen) {
    t.ok(codes.has('none') && codes.has('DEVSTATE_E_CONTENT_TRUNCATED'), `${name}: ${[...codes].join()}`);
  }
  for (const name of ['mtty', 'hisi-acc', 'qat', 'xe']) {
    t.ok(seen.get(name)?.has('DEVSTATE_E_CONTENT_UNSUPPORTED'), `${name} of another version`);
  }
});

t.test('arbitrary bytes, alone and behind a beginning', async () => {
  const any = fc.uint8Array({ maxLength: 600, size: 'max' });
  for (const { kind, bytes } of samples) {
    fc.assert(
      fc.property(any, fc.nat(bytes.length), (rest, length) => {
        const head = bytes.subarray(0, Math.min(length, 5000));
        for (const all of [rest, Buffer.concat([head, rest])]) {
          detectContent(all);
          if (check(readWith(kind, all, { chunks: [1, 17, 300] }), all.length) !== undefined) return false;
        }
        return true;
      }),
      { numRuns: 300 },
    );
  }
});

/** Content that continues for ever, and bytes to say of it. */
const ENDLESS: readonly [name: string, begin: Buffer, repeated: Buffer][] = [
  ['mlx5', SAMPLES.get('mlx5')!.subarray(0, 24), join(u64(4), u32(0, 0), zeros(4))],
  ['virtio-device-parts', virtioDeviceParts(), join(u16(0x103), u8(0, 0), zeros(8), u32(1), u8(15))],
  ['virtio-vfio', zeros(0), SAMPLES.get('virtio-vfio')!.subarray(0, 323)],
  ['xe', SAMPLES.get('xe')!.subarray(0, 52), join(u8(1, 6, 0, 0), u32(0), u64(0, 8), zeros(8))],
  [
    'nvme-controller-state',
    join(zeros(16), u64(2 + 6 * 131070, 0), zeros(16), u16(0, 65535, 65535, 0)),
    zeros(24),
  ],
  ['spdk-nvme', SAMPLES.get('spdk-nvme')!, Buffer.from([1, 0, 2])],
  ['qat', join(u32(0xadf5caea, 1), u16(16, 65535), u32(0xfffffff0)), join(zeros(8), u32(0, 0))],
];

t.test('without end: what is kept and said is bounded', async (t) => {
  for (const [name, begin, repeated] of ENDLESS) {
    const chunk = Buffer.concat(Array.from({ length: Math.ceil(65536 / repeated.length) }, () => repeated));
    const reader = kindNamed(name).read({ kinds: FOREIGN_KINDS });
    const before = process.memoryUsage().arrayBuffers;
    reader.push(begin);
    let size = begin.length;
    while (size < 6 << 20) {
      reader.push(chunk);
      size += chunk.length;
    }
    const kept = process.memoryUsage().arrayBuffers - before;
    const report = reader.finish();
    t.equal(check(report, size), undefined, name);
    const said = JSON.stringify(report).length;
    t.ok(said < REPORT_LENGTH_MAX, `${name}: ${said} characters are said`);
    t.ok(kept < 4 << 20, `${name}: ${kept} bytes are kept`);
  }
});
