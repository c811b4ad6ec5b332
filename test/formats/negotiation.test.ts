// SPDX-License-Identifier: Apache-2.0
/** Which format is taken, and what is said of those that are not. */

import fc from 'fast-check';
import t from 'tap';
import {
  type Candidate,
  type Converter,
  candidateName,
  type FormatOffer,
  type Negotiation,
  type NegotiationOptions,
  negotiate,
  parseUuid,
} from '../../src/formats/index.js';

const NAMES = ['ash', 'beech', 'cedar', 'elm'] as const;
type Name = (typeof NAMES)[number];
const uuidOf = (name: Name) => parseUuid(`0000000a-0000-4000-8000-00000000000${NAMES.indexOf(name)}`);

function offer(name: Name, more: Partial<FormatOffer> = {}): FormatOffer {
  return {
    uuid: uuidOf(name),
    name,
    version: { major: 1, minor: 0 },
    save: true,
    load: true,
    fidelity: 'complete',
    features: [],
    ...more,
  };
}

function converter(from: Name, to: Name, losses: readonly string[] = [], major = 1): Converter {
  return {
    from: { uuid: uuidOf(from), name: from, major: 1 },
    to: { uuid: uuidOf(to), name: to, version: { major, minor: 0 } },
    losses,
    begin: () => ({ record: () => undefined, end: () => [] }),
  };
}

/** `name: reason` of every candidate, the one taken with an asterisk. */
function told({ candidates }: Negotiation): string[] {
  return candidates.map((one) => `${one.taken ? '* ' : ''}${candidateName(one)}: ${one.reason}`);
}

interface Case {
  what: string;
  source: FormatOffer[];
  destination: FormatOffer[];
  options?: NegotiationOptions;
  says: string[];
}

const both = [converter('ash', 'beech'), converter('beech', 'ash')];
const over = [converter('ash', 'cedar'), converter('cedar', 'beech')];
const BOTH = 'both ends have it, and it holds everything';

const cases: Case[] = [
  { what: 'nothing offered by the source', source: [], destination: [offer('ash')], says: [] },
  { what: 'nothing offered by the destination', source: [offer('ash')], destination: [], says: [] },
  {
    what: 'one in common',
    source: [offer('ash')],
    destination: [offer('ash')],
    says: [`* ash 1.0: ${BOTH}`],
  },
  {
    what: 'none in common',
    source: [offer('ash')],
    destination: [offer('beech')],
    says: ['ash 1.0 → beech 1.0: no converter leads from the one to the other'],
  },
  {
    what: 'the source prefers',
    source: [offer('beech'), offer('ash')],
    destination: [offer('ash'), offer('beech')],
    says: [
      `* beech 1.0: ${BOTH}`,
      'ash 1.0: the source prefers the one taken',
      'beech 1.0 → ash 1.0: no converter leads from the one to the other',
      'ash 1.0 → beech 1.0: no converter leads from the one to the other',
    ],
  },
  {
    what: 'the same of two conversions',
    source: [offer('ash')],
    destination: [offer('cedar'), offer('beech')],
    options: { converters: [...both, ...over] },
    says: [
      '* ash 1.0 → cedar 1.0: converted by 1 step',
      'ash 1.0 → beech 1.0: the destination prefers the one taken',
    ],
  },
  {
    what: 'what both have is better than a conversion from what the source prefers',
    source: [offer('ash'), offer('beech')],
    destination: [offer('beech')],
    options: { converters: both },
    says: [`* beech 1.0: ${BOTH}`, 'ash 1.0 → beech 1.0: it needs more conversions than the one taken'],
  },
  {
    what: 'two conversions, the way shown',
    source: [offer('ash')],
    destination: [offer('beech')],
    options: { converters: over },
    says: ['* ash 1.0 → cedar 1.0 → beech 1.0: converted by 2 steps'],
  },
  {
    what: 'one that only saves, one that only loads',
    source: [offer('ash', { save: false }), offer('beech')],
    destination: [offer('ash'), offer('beech', { load: false })],
    options: { converters: both },
    says: [
      'ash 1.0: the source does not save it',
      'beech 1.0: the destination does not load it',
      'ash 1.0 → beech 1.0: the source does not save it',
      '* beech 1.0 → ash 1.0: converted by 1 step',
    ],
  },
  {
    what: 'a newer minor version at the source',
    source: [offer('ash', { version: { major: 1, minor: 7 } })],
    destination: [offer('ash')],
    says: [`* ash 1.7: ${BOTH}`],
  },
  {
    what: 'an older minor version at the source',
    source: [offer('ash')],
    destination: [offer('ash', { version: { major: 1, minor: 7 } })],
    says: [`* ash 1.0: ${BOTH}`],
  },
  {
    what: 'a newer major version at the source',
    source: [offer('ash', { version: { major: 2, minor: 0 } })],
    destination: [offer('ash')],
    says: ['ash 2.0: the source writes version 2, the destination reads 1'],
  },
  {
    what: 'a newer major version at the destination, and a converter to it',
    source: [offer('ash')],
    destination: [offer('ash', { version: { major: 2, minor: 0 } })],
    options: { converters: [converter('ash', 'ash', [], 2)] },
    says: ['* ash 1.0 → ash 2.0: converted by 1 step'],
  },
  {
    what: 'an old major version beside the new one',
    source: [offer('ash', { version: { major: 2, minor: 0 } }), offer('ash')],
    destination: [offer('ash')],
    says: [`* ash 1.0: ${BOTH}`, 'ash 2.0: the source writes version 2, the destination reads 1'],
  },
  {
    what: 'a conversion that loses something',
    source: [offer('ash')],
    destination: [offer('beech')],
    options: { converters: [converter('ash', 'beech', ['the colour', 'the age'])] },
    says: ['ash 1.0 → beech 1.0: it loses the colour, the age'],
  },
  {
    what: 'which it may',
    source: [offer('ash')],
    destination: [offer('beech')],
    options: { converters: [converter('ash', 'beech', ['the colour', 'the age'])], allowLossy: true },
    says: ['* ash 1.0 → beech 1.0: converted by 1 step; loses the colour, the age'],
  },
  {
    what: 'a longer way that loses nothing, though it might',
    source: [offer('ash')],
    destination: [offer('beech')],
    options: { converters: [converter('ash', 'beech', ['the colour']), ...over], allowLossy: true },
    says: ['* ash 1.0 → cedar 1.0 → beech 1.0: converted by 2 steps'],
  },
  {
    what: 'a format that does not hold all',
    source: [offer('ash', { fidelity: 'partial' }), offer('beech')],
    destination: [offer('ash', { fidelity: 'partial' }), offer('beech')],
    says: [
      `* beech 1.0: ${BOTH}`,
      'ash 1.0: it loses what ash does not hold',
      'ash 1.0 → beech 1.0: no converter leads from the one to the other',
      'beech 1.0 → ash 1.0: no converter leads from the one to the other',
    ],
  },
  {
    what: 'and may be lost: what loses less is still taken',
    source: [offer('ash', { fidelity: 'partial' }), offer('beech')],
    destination: [offer('ash'), offer('beech')],
    options: { allowLossy: true, converters: [converter('beech', 'ash', ['the age', 'the colour'])] },
    says: [
      `* beech 1.0: ${BOTH}`,
      'ash 1.0: it loses more than the one taken',
      'ash 1.0 → beech 1.0: no converter leads from the one to the other',
      'beech 1.0 → ash 1.0: it loses more than the one taken',
    ],
  },
  {
    what: 'only a format that does not hold all',
    source: [offer('ash', { fidelity: 'partial' })],
    destination: [offer('ash', { fidelity: 'partial' })],
    options: { allowLossy: true },
    says: ['* ash 1.0: both ends have it; loses what ash does not hold'],
  },
  {
    what: 'one that is asked for, by name',
    source: [offer('ash'), offer('beech')],
    destination: [offer('ash'), offer('beech')],
    options: { format: 'beech' },
    says: [
      'ash 1.0: beech was asked for',
      `* beech 1.0: ${BOTH}; asked for`,
      'ash 1.0 → beech 1.0: no converter leads from the one to the other',
      'beech 1.0 → ash 1.0: no converter leads from the one to the other',
    ],
  },
  {
    what: 'by UUID in capitals',
    source: [offer('ash')],
    destination: [offer('beech')],
    options: { format: uuidOf('beech').toUpperCase(), converters: both },
    says: ['* ash 1.0 → beech 1.0: converted by 1 step; asked for'],
  },
  {
    what: 'one that neither end has',
    source: [offer('ash')],
    destination: [offer('ash')],
    options: { format: 'yew' },
    says: ['ash 1.0: yew was asked for'],
  },
  {
    what: 'one that loses something is not taken for being asked for',
    source: [offer('ash')],
    destination: [offer('beech')],
    options: { format: 'beech', converters: [converter('ash', 'beech', ['the colour'])] },
    says: ['ash 1.0 → beech 1.0: it loses the colour'],
  },
  {
    what: 'more than the destination loads',
    source: [offer('ash', { estimate: 1001 }), offer('beech', { estimate: 1000 })],
    destination: [offer('ash', { limit: 1000 }), offer('beech', { limit: 1000 })],
    says: [
      'ash 1.0: about 1001 bytes, of which the destination loads 1000',
      `* beech 1.0: ${BOTH}`,
      'ash 1.0 → beech 1.0: no converter leads from the one to the other',
      'beech 1.0 → ash 1.0: no converter leads from the one to the other',
    ],
  },
  {
    what: 'a limit, and no estimate',
    source: [offer('ash')],
    destination: [offer('ash', { limit: 1 })],
    says: [`* ash 1.0: ${BOTH}`],
  },
];

t.test('what is taken, and why the others are not', async (t) => {
  for (const { what, source, destination, options, says } of cases) {
    const negotiation = negotiate(source, destination, options);
    t.strictSame(told(negotiation), says, what);
    t.equal(
      negotiation.taken,
      negotiation.candidates.find(({ taken }) => taken),
      what,
    );
  }
});

const someOffer = fc
  .tuple(
    fc.constantFrom(...NAMES),
    fc.constantFrom(1, 1, 2),
    fc.nat(1),
    fc.boolean(),
    fc.boolean(),
    fc.nat(9),
  )
  .map(([name, major, minor, save, load, more]) =>
    offer(name, {
      version: { major, minor },
      save,
      load,
      fidelity: more === 0 ? 'partial' : 'complete',
      ...(more === 1 ? { limit: 100, estimate: 200 } : {}),
    }),
  );
const offers = fc.uniqueArray(someOffer, {
  maxLength: 4,
  selector: (one) => `${one.name} ${one.version.major}`,
});
const someConverter = fc
  .tuple(
    fc.constantFrom(...NAMES),
    fc.constantFrom(...NAMES),
    fc.subarray(['the age', 'the colour']),
    fc.nat(3),
  )
  .map(([from, to, losses, lossy]) => converter(from, to, lossy === 0 ? losses : []));
const someOptions = fc.record({
  converters: fc.array(someConverter, { maxLength: 8 }),
  format: fc.constantFrom('auto', 'auto', 'ash', 'beech'),
  allowLossy: fc.boolean(),
});

/** What people can tell of a candidate. */
const visible = ({ losses, taken, reason, ...one }: Candidate): unknown => ({
  name: candidateName(one),
  losses: [...losses].sort(),
  taken,
  reason: reason.split(' ').slice(0, 3),
});
const sorted = (candidates: readonly Candidate[]): string[] =>
  candidates.map((one) => JSON.stringify(visible(one))).sort();

t.test('whatever is offered', async (t) => {
  let several = 0;
  fc.assert(
    fc.property(offers, offers, someOptions, (source, destination, options) => {
      const { taken, candidates } = negotiate(source, destination, options);
      const assert = (holds: boolean, what: string): void => {
        if (!holds) throw new Error(what);
      };
      assert(candidates.length === source.length * destination.length, 'every pair is a candidate');
      assert(
        candidates.filter((one) => one.taken).length === (taken === undefined ? 0 : 1),
        'at most one is taken',
      );
      assert(
        candidates.every(({ reason }) => reason.length > 5),
        'each has its reason',
      );
      const again = negotiate(source, destination, {
        ...options,
        converters: [...options.converters].reverse(),
      });
      assert(
        JSON.stringify(again.candidates.map(visible)) === JSON.stringify(candidates.map(visible)),
        'the order of the converters says nothing',
      );
      // The order of the offers is a preference among equals, and decides nothing else.
      const other = negotiate([...source].reverse(), [...destination].reverse(), options);
      assert((other.taken === undefined) === (taken === undefined), 'one can be used in any order');
      if (taken === undefined) {
        assert(
          JSON.stringify(sorted(other.candidates)) === JSON.stringify(sorted(candidates)),
          'the reasons of a failure are the same in any order',
        );
        return;
      }
      several += candidates.length > 2 ? 1 : 0;
      assert(other.taken?.losses.length === taken.losses.length, 'as little is lost');
      assert(other.taken?.way.length === taken.way.length, 'by as few steps');
      const { from, way, to, losses } = taken;
      assert(from.save && to.load, 'one saves it, the other loads it');
      assert(options.allowLossy || losses.length === 0, 'nothing is lost unless it may');
      assert(options.format === 'auto' || [from.name, to.name].includes(options.format), 'as asked for');
      let at = { uuid: from.uuid, major: from.version.major };
      for (const step of way) {
        assert(step.from.uuid === at.uuid && step.from.major === at.major, 'the way has no gap');
        at = { uuid: step.to.uuid, major: step.to.version.major };
      }
      assert(at.uuid === to.uuid && at.major === to.version.major, 'the way leads to what is loaded');
      // The first of its equals in the source's order, then in the destination's.
      for (const [i, a] of source.entries())
        for (const [j, b] of destination.entries()) {
          const before =
            i < source.indexOf(from) || (i === source.indexOf(from) && j < destination.indexOf(to));
          if (!before) continue;
          const alone = negotiate([a], [b], options).taken;
          assert(
            alone === undefined || alone.losses.length > losses.length || alone.way.length > way.length,
            'what is preferred is worse',
          );
        }
    }),
    { numRuns: 2000, seed: 4 },
  );
  t.ok(several > 100, `${several} choices among several`);
});
