// SPDX-License-Identifier: Apache-2.0
/** UUIDs, the registry and its published list, and the checksum. */
import { existsSync, readFileSync } from 'node:fs';
import fc from 'fast-check';
import t from 'tap';
import { crc32c, crc32cTable } from '../../src/formats/envelope/crc32c.js';
import {
  findFormat,
  formatVersionText,
  isSameName,
  NVME_ALDER,
  REGISTERED_FORMATS,
  requireFormat,
  requireReadableVersion,
} from '../../src/formats/registry.js';
import {
  compareUuids,
  isUuid,
  newUuid,
  parseUuid,
  type Uuid,
  uuidFromBytes,
  uuidToBytes,
} from '../../src/formats/uuid.js';
import { native } from '../../src/native/index.js';

t.test('uuid: text, bytes, order', async (t) => {
  const text = '00112233-4455-6677-8899-AABBCCDDEEFF';
  const uuid = parseUuid(text);
  t.equal(uuid, text.toLowerCase());
  const bytes = uuidToBytes(uuid);
  t.same(
    [...bytes],
    [0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff],
  );
  t.equal(uuidFromBytes(Buffer.concat([Buffer.alloc(3), bytes]), 3), uuid);
  t.throws(() => uuidFromBytes(bytes, 1), RangeError);
  t.ok(isUuid(text));
  t.match(newUuid(), /^[0-9a-f-]{14}4[0-9a-f-]{21}$/);
  t.not(newUuid(), newUuid());
  for (const bad of [
    '',
    'nvme',
    text.slice(1),
    `${text}0`,
    `{${text}}`,
    text.replaceAll('-', ''),
    `${text}\n`,
  ]) {
    t.equal(isUuid(bad), false, bad);
    t.throws(() => parseUuid(bad), { code: 'DEVSTATE_E_UUID', exitCode: 2 });
  }
  const both = fc.uint8Array({ minLength: 16, maxLength: 16 });
  fc.assert(
    fc.property(both, both, (a, b) => {
      const [first, second]: Uuid[] = [uuidFromBytes(a), uuidFromBytes(b)];
      const order = compareUuids(first!, second!) === Buffer.compare(a, b);
      return order && Buffer.from(uuidToBytes(first!)).equals(a) && compareUuids(first!, first!) === 0;
    }),
  );
});

t.test('registry: the published list is the one in the code', async (t) => {
  const path = new URL('../../../formats/registry.json', import.meta.url);
  t.same(JSON.parse(readFileSync(path, 'utf8')), { formats: REGISTERED_FORMATS });
});

t.test('registry: entries are distinct and well formed', async (t) => {
  const names = REGISTERED_FORMATS.map((format) => format.name);
  t.same(names, [...new Set(names)].sort());
  t.equal(new Set(REGISTERED_FORMATS.map((format) => format.uuid)).size, names.length);
  for (const format of REGISTERED_FORMATS) {
    t.ok(isUuid(format.uuid));
    t.match(format.name, /^[a-z0-9]+(\.[a-z0-9-]+)+$/);
    t.ok(format.models.length > 0 && format.versions.length > 0);
    for (const version of format.versions) t.match(version, /^\d+\.\d+$/);
  }
});

t.test('registry: found by name or UUID', async (t) => {
  t.equal(findFormat('org.devstate.nvme.alder'), NVME_ALDER);
  t.equal(findFormat(NVME_ALDER.uuid.toUpperCase()), NVME_ALDER);
  t.equal(requireFormat(NVME_ALDER.uuid), NVME_ALDER);
  for (const name of ['org.example.none', newUuid()]) {
    t.equal(findFormat(name), undefined);
    t.throws(() => requireFormat(name), { code: 'DEVSTATE_E_FORMAT_UNKNOWN', exitCode: 3, message: name });
  }
});

t.test('registry: names as users give them', async (t) => {
  const format = { uuid: NVME_ALDER.uuid, name: 'org.devstate.nvme.alder' };
  for (const given of [format.name, format.uuid, format.uuid.toUpperCase()])
    t.equal(isSameName(format, given), true, given);
  for (const given of ['org.devstate.nvme', format.name.toUpperCase(), `${format.name}@1`, newUuid(), ''])
    t.equal(isSameName(format, given), false, given);
  t.equal(formatVersionText({ major: 1, minor: 10 }), '1.10');
  for (const one of REGISTERED_FORMATS) {
    t.equal(requireFormat(one.name), one);
    t.equal(requireFormat(one.uuid.toUpperCase()), one);
    t.match(one.kind, /^(standard|vendor)$/);
    t.match(one.stability, /^(experimental|stable)$/);
    for (const model of one.models) t.match(model, /^[a-z.-]+(\/[a-z0-9-]+)+$/, `${one.name}: a model's URI`);
    if (one.kind === 'standard') t.type(one.schema, 'string', 'a standard has a published schema');
    if (one.schema === null) continue;
    const schema = new URL(`../../../formats/${one.schema}`, import.meta.url);
    t.ok(existsSync(schema), `${one.schema} is there`);
  }
  const order = REGISTERED_FORMATS.map(({ versions }) => versions.map((one) => one.split('.').map(Number)));
  for (const versions of order) {
    const sorted = [...versions].sort(([a = 0, b = 0], [c = 0, d = 0]) => a - c || b - d);
    t.strictSame(versions, sorted, 'oldest first');
  }
});

t.test('registry: a newer minor version is readable, another major is not', async (t) => {
  t.doesNotThrow(() => requireReadableVersion(NVME_ALDER, { major: 1, minor: 0 }));
  t.doesNotThrow(() => requireReadableVersion(NVME_ALDER, { major: 1, minor: 9 }));
  for (const major of [0, 2, 10, 11]) {
    t.throws(() => requireReadableVersion(NVME_ALDER, { major, minor: 0 }), {
      code: 'DEVSTATE_E_FORMAT_VERSION',
      exitCode: 3,
      message: `org.devstate.nvme.alder ${major}.0`,
    });
  }
});

t.test('crc32c: known values (RFC 3720 B.4), and the addon agrees with the tables', async (t) => {
  const known: [Uint8Array, number][] = [
    [new Uint8Array(0), 0],
    [Buffer.from('123456789'), 0xe3069283],
    [new Uint8Array(32), 0x8a9136aa],
    [new Uint8Array(32).fill(0xff), 0x62a8ab43],
    [Uint8Array.from({ length: 32 }, (_, index) => index), 0x46dd794e],
    [Uint8Array.from({ length: 32 }, (_, index) => 31 - index), 0x113fdb5c],
  ];
  for (const [bytes, crc] of known) {
    t.equal(crc32cTable(bytes), crc);
    t.equal(crc32c(bytes), crc);
  }
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 600, size: 'max' }), fc.nat(600), (bytes, cut) => {
      const crc = crc32cTable(bytes);
      const continued = crc32c(bytes.subarray(cut), crc32c(bytes.subarray(0, cut)));
      return crc32c(bytes) === crc && native.crc32c(bytes, 0, bytes.length, 0) === crc && continued === crc;
    }),
  );
});
