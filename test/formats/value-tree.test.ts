// SPDX-License-Identifier: Apache-2.0
/** A state as a tree and as named values; and the adapter that makes records of a standard format of them. */

import { isDeepStrictEqual } from 'node:util';
import fc from 'fast-check';
import t from 'tap';
import { flattenTree, type LeafValue, nvmeValues, unflattenTree } from '../../src/formats/index.js';
import { toHex } from '../support/hex.js';
import { codeThrownBy } from './blobs.js';
import { anyNvmeState } from './nvme/arbitrary.js';

const build = (leaves: Record<string, LeafValue>): unknown => unflattenTree(new Map(Object.entries(leaves)));

t.test('a tree and its values', async (t) => {
  const cases: [string, object, [string, LeafValue][]][] = [
    ['nothing', {}, []],
    [
      'plain values',
      { cc: 1, on: true, name: '', data: Uint8Array.of(1, 2) },
      [
        ['cc', 1],
        ['on', true],
        ['name', ''],
        ['data', Uint8Array.of(1, 2)],
      ],
    ],
    [
      'objects',
      { registers: { cc: 5, csts: { rdy: false } } },
      [
        ['registers.cc', 5],
        ['registers.csts.rdy', false],
      ],
    ],
    ['an empty list', { commands: [] }, [['commands.length', 0]]],
    [
      'a list of objects',
      { features: [{ id: 7 }, { id: 9 }] },
      [
        ['features.length', 2],
        ['features[0].id', 7],
        ['features[1].id', 9],
      ],
    ],
    [
      'a list of values',
      { events: { requests: [3, 4] } },
      [
        ['events.requests.length', 2],
        ['events.requests[0]', 3],
        ['events.requests[1]', 4],
      ],
    ],
    [
      'lists in lists',
      { grid: [[1], []] },
      [
        ['grid.length', 2],
        ['grid[0].length', 1],
        ['grid[0][0]', 1],
        ['grid[1].length', 0],
      ],
    ],
  ];
  for (const [what, tree, leaves] of cases) {
    t.strictSame([...flattenTree(tree)], leaves, what);
    t.strictSame(unflattenTree(new Map(leaves)), tree, what);
    t.strictSame(unflattenTree(new Map([...leaves].reverse())), tree, `${what}, in another order`);
  }
});

t.test('names that do not make a tree', async (t) => {
  const long = Array.from({ length: 17 }, () => 'a').join('.');
  const wrong: [string, Record<string, LeafValue>][] = [
    ['no name', { '': 1 }],
    ['an empty step', { 'a..b': 1 }],
    ['a step at the end', { 'a.': 1 }],
    ['a list of no name', { '[0]': 1, length: 1, 'a[x]': 1 }],
    ['an index that is none', { 'a.length': 1, 'a[-1]': 1 }],
    ['an index of six digits', { 'a.length': 1, 'a[100000]': 1 }],
    ['an index with a zero before it', { 'a.length': 1, 'a[00]': 1 }],
    ['the prototype', { '__proto__.polluted': 1 }],
    ['blanks', { 'a b': 1 }],
    ['too deep', { [long]: 1 }],
    ['a value with values in it', { a: 1, 'a.b': 2 }],
    ['values with a value around them', { 'a.b': 2, a: 1 }],
    ['bytes with values in them', { a: new Uint8Array(4), 'a.length': 2 }],
    ['a list that is too short', { 'a.length': 2, 'a[0]': 1 }],
    ['a list that is too long', { 'a.length': 1, 'a[0]': 1, 'a[1]': 1 }],
    ['a list with a hole', { 'a.length': 2, 'a[0]': 1, 'a[2]': 1 }],
    ['a negative length', { 'a.length': -1 }],
    ['half a length', { 'a.length': 0.5 }],
    ['a length without items', { 'a.length': 65536 }],
    ['a length that no array can have', { 'a.length': Number.MAX_SAFE_INTEGER }],
    ['items without a length', { 'a[0]': 1 }],
    ['items and a length that is no number', { 'a.length': '1', 'a[0]': 1 }],
    ['items among fields', { 'a.length': 1, 'a[0]': 1, 'a.b': 1 }],
  ];
  for (const [what, leaves] of wrong)
    t.equal(
      codeThrownBy(() => build(leaves)),
      'DEVSTATE_E_STATE_VALUE',
      what,
    );
  const list = (length: number): Map<string, LeafValue> =>
    new Map<string, LeafValue>([['a.length', length]]).set('b', 1);
  const [most, tooMany] = [list(65536), list(65537)];
  for (let i = 0; i < 65537; i++)
    for (const one of [most, tooMany]) if (i < Number(one.get('a.length'))) one.set(`a[${i}]`, i);
  t.equal((unflattenTree(most) as { a: unknown[] }).a.length, 65536);
  t.equal(
    codeThrownBy(() => unflattenTree(tooMany)),
    'DEVSTATE_E_STATE_VALUE',
    'a list longer than any',
  );
  t.strictSame(
    build({ [long.slice(2)]: 1 }),
    JSON.parse(`${'{"a":'.repeat(16)}1${'}'.repeat(16)}`),
    'as deep as may be',
  );
  const own = build({ 'constructor.prototype.polluted': 1 }) as object;
  t.ok(Object.hasOwn(own, 'constructor'), 'what looks like the prototype is a field');
  t.notOk('polluted' in {});
  const named = codeOf(() => build({ ['b'.repeat(500)]: 1, [`${'b'.repeat(500)}.c`]: 1 }));
  t.ok(named.length < 250, 'a long name is not repeated');
});

function codeOf(work: () => unknown): string {
  try {
    work();
    return '';
  } catch (error) {
    return (error as Error).message;
  }
}

const name = fc.constantFrom('a', 'b', 'cc', 'queue_1', 'constructor', 'toString', 'valueOf');
const leaf = fc.oneof(
  fc.maxSafeNat(),
  fc.boolean(),
  fc.string(),
  fc.uint8Array({ maxLength: 8 }),
) as fc.Arbitrary<LeafValue>;
const { tree } = fc.letrec((tie) => ({
  node: fc.oneof({ maxDepth: 4 }, leaf, tie('list'), tie('branch')),
  list: fc.array(tie('node'), { maxLength: 3 }),
  // An empty object has no values, so it leaves no trace.
  branch: fc.dictionary(name, tie('node'), { minKeys: 1, maxKeys: 3, noNullPrototype: true }),
  tree: fc.dictionary(name, tie('node'), { maxKeys: 4, noNullPrototype: true }),
})) as { tree: fc.Arbitrary<object> };

t.test('every tree comes back from its values', async (t) => {
  let lists = 0;
  fc.assert(
    fc.property(tree, (value) => {
      const leaves = flattenTree(value);
      if ([...leaves.keys()].some((path) => path.includes(']['))) lists++;
      const again = unflattenTree(leaves) as object;
      if (!isDeepStrictEqual(again, value)) throw new Error('another tree');
      if (!isDeepStrictEqual([...flattenTree(again)], [...leaves])) throw new Error('in another order');
    }),
    { numRuns: 500, seed: 5 },
  );
  t.ok(lists > 0, 'with lists in lists');
});

t.test('any names are a tree or are refused', async (t) => {
  const step = fc.oneof(name, fc.constantFrom('length', '[0]', '[1]', '[2]', '', '__proto__', '[99999]'));
  const path = fc.array(step, { maxLength: 5 }).map((steps) => steps.join('.').replaceAll('.[', '['));
  const value = fc.oneof(fc.constantFrom<LeafValue>(0, 1, 2, 65536, -1, Number.NaN), leaf);
  let trees = 0;
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.oneof(path, fc.string()), value), { maxLength: 8 }), (entries) => {
      const leaves = new Map(entries);
      let result: unknown;
      const code = codeThrownBy(() => {
        result = unflattenTree(leaves);
      });
      if (code === '') {
        // It is a tree, so its values are those it was made of.
        const again = flattenTree(result as object);
        if (again.size !== leaves.size) throw new Error('a value was lost');
        for (const [key, one] of leaves)
          if (!Object.is(again.get(key), one)) throw new Error(`${key} was changed`);
        trees++;
      } else if (code !== 'DEVSTATE_E_STATE_VALUE') throw new Error(code);
    }),
    { numRuns: 5000, seed: 6 },
  );
  t.ok(trees > 500, `${trees} were trees`);
  t.equal(({} as Record<string, unknown>).polluted, undefined);
});

/** Values to compare: bytes by what they are, not by the class that holds them. */
function plain(values: ReadonlyMap<string, LeafValue>): Map<string, unknown> {
  return new Map(
    [...values].map(([key, value]) => [key, value instanceof Uint8Array ? `bytes ${toHex(value)}` : value]),
  );
}

t.test('values ↔ records of the standard NVMe format', async (t) => {
  fc.assert(
    fc.property(anyNvmeState, fc.infiniteStream(fc.nat()), (state, random) => {
      const values = flattenTree(state);
      const records = nvmeValues.toRecords(values);
      if (!isDeepStrictEqual(plain(nvmeValues.toValues(records)), plain(values)))
        throw new Error('other values');
      const shuffled = [...values].map((entry) => ({ entry, at: random.next().value }));
      const other = new Map(shuffled.sort((a, b) => a.at - b.at).map(({ entry }) => entry));
      if (!isDeepStrictEqual(nvmeValues.toRecords(other), records))
        throw new Error('the order of values matters');
    }),
    { numRuns: 60, seed: 7 },
  );
  const [state] = fc.sample(anyNvmeState, { numRuns: 1, seed: 8 });
  const values = flattenTree(state!);
  const records = nvmeValues.toRecords(values);
  const without = (key: string): Map<string, LeafValue> =>
    new Map([...values].filter(([one]) => one !== key));
  const refused = (changed: Map<string, LeafValue>, what: RegExp): void => {
    t.throws(() => nvmeValues.toRecords(changed), { code: /^DEVSTATE_E_STATE_/, message: what });
  };
  refused(without('registers.cc'), /registers\.cc/);
  refused(without('identity.serial'), /identity\.serial/);
  refused(new Map([...values, ['registers.cc', 'on']]), /registers\.cc/);
  refused(new Map([...values, ['registers.cc', -1]]), /registers\.cc/);
  refused(new Map([...values, ['registers.cc', 2 ** 32]]), /registers\.cc/);
  const stranger = { type: 0x1ffff, optional: true, payload: Uint8Array.of(1) };
  t.strictSame(
    nvmeValues.toValues([...records, stranger]),
    nvmeValues.toValues(records),
    'optional: skipped',
  );
  t.throws(() => nvmeValues.toValues([...records, { ...stranger, optional: false }]), {
    code: 'DEVSTATE_E_STATE_RECORD',
    message: /0x1ffff/,
  });
  t.throws(() => nvmeValues.toValues(records.slice(1)), { message: /Identity/ });
  t.throws(() => nvmeValues.toValues([...records, records[0]!]), { message: /Identity came twice/ });
  t.throws(
    () => nvmeValues.toValues(records.map((one) => ({ ...one, payload: Uint8Array.of(0xff, 0xff, 0xff) }))),
    { code: 'DEVSTATE_E_STATE_RECORD' },
  );
});
