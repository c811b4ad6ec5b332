// SPDX-License-Identifier: Apache-2.0
/** The way from one format to another: the best there is, found by search, against all there are, found by trying. */

import fc from 'fast-check';
import t from 'tap';
import {
  type Converter,
  type FormatPoint,
  findPath,
  lossesOf,
  parseUuid,
} from '../../../src/formats/index.js';

const NAMES = ['ash', 'beech', 'cedar', 'douglas', 'elm'] as const;
type Name = (typeof NAMES)[number];

const uuidOf = (name: Name) => parseUuid(`00000000-0000-4000-8000-00000000000${NAMES.indexOf(name)}`);
const point = (name: Name, major = 1): FormatPoint => ({ uuid: uuidOf(name), major });

/** `ash` or `ash2` for version 2. */
function end(text: string): { name: Name; major: number } {
  const [, name, major] = /^([a-z]+)(\d*)$/.exec(text) as unknown as [string, Name, string];
  return { name, major: major === '' ? 1 : Number(major) };
}

function converter(from: string, to: string, losses: readonly string[] = [], minor = 0): Converter {
  const [a, b] = [end(from), end(to)];
  return {
    from: { uuid: uuidOf(a.name), name: a.name, major: a.major },
    to: { uuid: uuidOf(b.name), name: b.name, version: { major: b.major, minor } },
    losses,
    begin: () => ({ record: () => undefined, end: () => [] }),
  };
}

/** `ash beech2 cedar`; undefined if there is no way. */
function text(way: readonly Converter[] | undefined): string | undefined {
  return way?.map(({ to }) => `${to.name}${to.version.major === 1 ? '' : to.version.major}`).join(' ');
}

t.test('ways', async (t) => {
  const c = converter;
  const cases: [string, Converter[], boolean, string | undefined][] = [
    ['none at all', [], false, undefined],
    ['one step', [c('ash', 'elm')], false, 'elm'],
    ['not backwards', [c('elm', 'ash')], false, undefined],
    ['not from another version', [c('ash2', 'elm')], false, undefined],
    ['not to another version', [c('ash', 'elm2')], false, undefined],
    ['over another version', [c('ash', 'ash2'), c('ash2', 'elm2'), c('elm2', 'elm')], false, 'ash2 elm2 elm'],
    ['of two the shorter', [c('ash', 'beech'), c('beech', 'elm'), c('ash', 'elm')], false, 'elm'],
    [
      'of two as short the first by name, wherever they are in the list',
      [c('ash', 'douglas'), c('ash', 'cedar'), c('douglas', 'elm'), c('cedar', 'elm')],
      false,
      'cedar elm',
    ],
    [
      'the names passed through are compared from the first on',
      [
        c('ash', 'beech'),
        c('beech', 'douglas'),
        c('douglas', 'elm'),
        c('ash', 'cedar'),
        c('cedar', 'ash2'),
        c('ash2', 'elm'),
      ],
      false,
      'beech douglas elm',
    ],
    [
      'round in circles',
      [c('ash', 'ash'), c('ash', 'beech'), c('beech', 'ash'), c('beech', 'cedar'), c('cedar', 'elm')],
      false,
      'beech cedar elm',
    ],
    ['circles that lead nowhere', [c('ash', 'beech'), c('beech', 'ash')], true, undefined],
    ['what loses is not taken', [c('ash', 'elm', ['colour'])], false, undefined],
    ['unless it may', [c('ash', 'elm', ['colour'])], true, 'elm'],
    [
      'a longer way that loses nothing',
      [c('ash', 'elm', ['colour']), c('ash', 'beech'), c('beech', 'cedar'), c('cedar', 'elm')],
      true,
      'beech cedar elm',
    ],
    [
      'the fewest losses, not the fewest that lose',
      [c('ash', 'elm', ['colour', 'weight']), c('ash', 'beech', ['age']), c('beech', 'elm')],
      true,
      'beech elm',
    ],
    [
      'what is lost twice is lost once',
      [
        c('ash', 'beech', ['colour']),
        c('ash', 'cedar', ['weight']),
        c('beech', 'douglas'),
        c('cedar', 'douglas'),
        c('douglas', 'elm', ['weight']),
      ],
      true,
      'cedar douglas elm',
    ],
    [
      'what has lost more may lose less in the end',
      [
        c('ash', 'douglas', ['age']),
        c('ash', 'cedar', ['colour', 'weight']),
        c('cedar', 'douglas'),
        c('douglas', 'elm', ['colour', 'weight', 'height']),
      ],
      true,
      'cedar douglas elm',
    ],
  ];
  for (const [name, converters, lossy, expected] of cases) {
    for (const list of [converters, [...converters].reverse()])
      t.equal(text(findPath(point('ash'), point('elm'), list, { lossy })), expected, name);
  }
  t.strictSame(findPath(point('elm'), point('elm'), [c('elm', 'elm', ['colour'])], { lossy: true }), []);
  t.equal(
    text(findPath(point('ash'), point('elm'), [c('ash', 'elm', ['x'])])),
    undefined,
    'lossy is not the default',
  );
});

t.test('what a way loses', async (t) => {
  t.strictSame(lossesOf([]), []);
  const way = [
    converter('ash', 'beech', ['colour', 'age']),
    converter('beech', 'cedar'),
    converter('cedar', 'elm', ['weight', 'colour']),
  ];
  t.strictSame(lossesOf(way), ['colour', 'age', 'weight'], 'each phrase once, in the order of the losing');
});

/** Every way that passes no point twice. */
function allWays(from: FormatPoint, to: FormatPoint, converters: readonly Converter[]): Converter[][] {
  const key = ({ uuid, major }: FormatPoint): string => `${uuid} ${major}`;
  const ways: Converter[][] = [];
  const go = (at: FormatPoint, way: Converter[], passed: string[]): void => {
    if (key(at) === key(to)) {
      ways.push(way);
      return;
    }
    for (const next of converters) {
      const there = { uuid: next.to.uuid, major: next.to.version.major };
      if (key(next.from) === key(at) && !passed.includes(key(there)))
        go(there, [...way, next], [...passed, key(there)]);
    }
  };
  go(from, [], [key(from)]);
  return ways;
}

/** How good a way is, as the docstring of `findPath` says it. */
function rankOf(way: readonly Converter[]): { losses: number; steps: number; names: string[] } {
  return {
    losses: new Set(way.flatMap(({ losses }) => losses)).size,
    steps: way.length,
    names: way.map(({ to }) => to.name),
  };
}

function isBetter(a: readonly Converter[], b: readonly Converter[]): boolean {
  const [first, second] = [rankOf(a), rankOf(b)];
  if (first.losses !== second.losses) return first.losses < second.losses;
  if (first.steps !== second.steps) return first.steps < second.steps;
  const different = first.names.findIndex((name, index) => name !== second.names[index]);
  return different >= 0 && first.names[different]! < second.names[different]!;
}

t.test('the best of all ways, whatever the order of the converters', async (t) => {
  const someEnd = fc
    .tuple(fc.constantFrom(...NAMES.slice(0, 4)), fc.constantFrom('', '2'))
    .map(([name, major]) => `${name}${major}`);
  const someLosses = fc.subarray(['age', 'colour', 'weight']);
  const someConverter = fc
    .tuple(someEnd, someEnd, fc.oneof(fc.constant([]), someLosses), fc.nat(1))
    .map(([from, to, losses, minor]) => converter(from, to, losses, minor));
  const some = fc.array(someConverter, { minLength: 3, maxLength: 12 });
  let found = 0;
  fc.assert(
    fc.property(
      some,
      someEnd,
      someEnd,
      fc.boolean(),
      fc.infiniteStream(fc.nat()),
      (list, a, b, lossy, random) => {
        const [from, to] = [a, b].map(end).map(({ name, major }) => point(name, major)) as [
          FormatPoint,
          FormatPoint,
        ];
        const way = findPath(from, to, list, { lossy });
        const ways = allWays(from, to, list).filter((one) => lossy || lossesOf(one).length === 0);
        if ((way === undefined) !== (ways.length === 0)) throw new Error('there is a way, or there is none');
        const keys = list.map((one) => ({ one, at: random.next().value }));
        const shuffled = keys.sort((x, y) => x.at - y.at).map(({ one }) => one);
        const visible = (one?: Converter[]): unknown =>
          one?.map(({ from, to, losses }) => ({ from, to, losses }));
        if (JSON.stringify(visible(findPath(from, to, shuffled, { lossy }))) !== JSON.stringify(visible(way)))
          throw new Error('another order, another way');
        if (way === undefined) return;
        found += way.length > 1 ? 1 : 0;
        let at = from;
        for (const step of way) {
          if (step.from.uuid !== at.uuid || step.from.major !== at.major) throw new Error('a gap in the way');
          at = { uuid: step.to.uuid, major: step.to.version.major };
        }
        const better = ways.find((one) => isBetter(one, way));
        if (better !== undefined) throw new Error(`${text(better)} is better than ${text(way)}`);
      },
    ),
    { numRuns: 3000, seed: 3 },
  );
  t.ok(found > 100, `${found} ways of several steps`);
});
