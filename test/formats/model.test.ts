// SPDX-License-Identifier: Apache-2.0
/** Device models: which values a parameter can have, what keeps two devices apart, what would bring them together, and the JSON. */

import fc from 'fast-check';
import t from 'tap';
import {
  allows,
  type DeviceModel,
  modelDifferences,
  modelJson,
  type ParameterDefinition,
  type ParameterDefinitions,
  type ParameterValue,
  remedies,
} from '../../src/formats/index.js';

const bool: ParameterDefinition = { type: 'bool', description: 'a switch', initial: false };
const int: ParameterDefinition = { type: 'int', description: 'a count', initial: 4 };
const str: ParameterDefinition = { type: 'str', description: 'a name', initial: 'plain' };

function model(
  parameters: Record<string, ParameterValue>,
  definitions?: ParameterDefinitions,
  uri = 'example.org/disk',
): DeviceModel {
  return definitions === undefined ? { uri, parameters } : { uri, parameters, definitions };
}

t.test('the values that a parameter can have', async (t) => {
  const cases: [string, ParameterDefinition, ParameterValue[], ParameterValue[]][] = [
    ['bool', bool, [true, false], [0, 1, 'true', '']],
    ['bool with one value', { ...bool, allowed: [true] }, [true], [false, 1]],
    [
      'int',
      int,
      [0, -1, Number.MAX_SAFE_INTEGER, Number.MIN_SAFE_INTEGER],
      [0.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53, '4', true],
    ],
    ['int of a list', { ...int, allowed: [512, 4096] }, [512, 4096], [511, 513, 1024, '512']],
    [
      'int of ranges and values',
      { ...int, allowed: [{ minimum: -2, maximum: 1 }, 7, { minimum: 10, maximum: 10 }] },
      [-2, -1, 0, 1, 7, 10],
      [-3, 2, 6, 8, 9, 11, 0.5],
    ],
    ['int with no value at all', { ...int, allowed: [] }, [], [0, 4]],
    ['str', str, ['', 'plain', '0'], [0, true]],
    ['str of a list', { ...str, allowed: ['a', 'b'] }, ['a', 'b'], ['', 'c', 'ab']],
    ['str with a length', { ...str, maximumLength: 3 }, ['', 'abc'], ['abcd']],
    ['str with both', { ...str, maximumLength: 2, allowed: ['ab', 'abc'] }, ['ab'], ['abc', 'a']],
  ];
  for (const [name, definition, can, cannot] of cases) {
    for (const value of can) t.equal(allows(definition, value), true, `${name}: ${value}`);
    for (const value of cannot) t.equal(allows(definition, value), false, `${name}: not ${value}`);
  }
});

t.test('what keeps two devices apart', async (t) => {
  const definitions = {
    queues: { ...int, allowed: [{ minimum: 1, maximum: 8 }] },
    zoned: { ...bool, off: false },
    label: { ...str, off: '' },
  };
  const source = model({ queues: 4, zoned: false, label: '' }, definitions);
  const differ = (from: DeviceModel, to: DeviceModel, expected: string[], what: string): void => {
    t.strictSame(modelDifferences(from, to), expected, what);
  };

  differ(source, source, [], 'itself');
  differ(source, model({ label: '', queues: 4, zoned: false }), [], 'the order of parameters says nothing');
  differ(
    source,
    model({ queues: 4, zoned: false, label: '' }, undefined, 'example.org/tape'),
    ['model is example.org/disk at the source, example.org/tape at the destination'],
    'another model',
  );
  differ(
    source,
    model({ queues: 2, zoned: true, label: 'x' }, definitions),
    [
      'parameter label is "" at the source, "x" at the destination',
      'parameter queues is 4 at the source, 2 at the destination',
      'parameter zoned is false at the source, true at the destination',
    ],
    'every difference at once, by name',
  );
  differ(
    model({ queues: 16 }),
    model({ queues: 2 }, { queues: definitions.queues }),
    ['parameter queues is 16 at the source, 2 at the destination, which cannot have 16'],
    'one that the destination cannot have at all',
  );
  differ(
    model({ queues: '4' }),
    model({ queues: 4 }, { queues: definitions.queues }),
    ['parameter queues is "4" at the source, 4 at the destination, which cannot have "4"'],
    'a text is not a number',
  );

  // Parameters that one side does not know.
  const old = model({ queues: 4 }, { queues: definitions.queues });
  differ(source, old, [], 'unknown at the destination, off at the source');
  differ(old, source, [], 'unknown at the source, off at the destination');
  differ(
    model({ queues: 4, zoned: true, label: 'x' }, definitions),
    old,
    [
      'parameter label is "x" at the source, not known at the destination',
      'parameter zoned is true at the source, not known at the destination',
    ],
    'on at the source',
  );
  differ(
    old,
    model({ queues: 4, zoned: true, label: '' }, definitions),
    ['parameter zoned is not known at the source, true at the destination'],
    'on at the destination',
  );
  differ(
    model({ queues: 4, zoned: false }),
    old,
    ['parameter zoned is false at the source, not known at the destination'],
    'a blob does not say what off is: an unknown parameter is a difference',
  );
  differ(
    old,
    model({ queues: 4, speed: 0 }, { ...old.definitions, speed: int }),
    ['parameter speed is not known at the source, 0 at the destination'],
    'without an off value it cannot be as if it were not there',
  );
  // Names that every object has.
  for (const name of ['constructor', 'toString', 'hasOwnProperty']) {
    differ(
      model({}, {}),
      model({ [name]: 1 }, {}),
      [`parameter ${name} is not known at the source, 1 at the destination`],
      name,
    );
    differ(
      model({ [name]: 1 }, {}),
      model({}, {}),
      [`parameter ${name} is 1 at the source, not known at the destination`],
      name,
    );
    differ(
      model({ [name]: 1 }),
      model({ [name]: 2 }, {}),
      [`parameter ${name} is 1 at the source, 2 at the destination`],
      `${name} without a definition`,
    );
    t.strictSame(remedies(model({ [name]: 1 }), model({}, {})), [], name);
  }
});

t.test('what would bring two devices together', async (t) => {
  const definitions = {
    queues: { ...int, allowed: [{ minimum: 1, maximum: 8 }] },
    zoned: { ...bool, off: false },
    label: { ...str, maximumLength: 4 },
  };
  const destination = model({ queues: 2, zoned: false, label: 'x' }, definitions);
  t.strictSame(
    remedies(model({ queues: 8, zoned: true, label: 'abcd' }), destination),
    ['queues=8', 'zoned=true', 'label=abcd'],
    'all that can be had',
  );
  t.strictSame(
    remedies(model({ queues: 9, zoned: false, label: 'abcde', speed: 1 }), destination),
    [],
    'not what cannot be, what is so already, what is not known',
  );
  t.strictSame(
    remedies(model({ queues: 8 }, undefined, 'example.org/tape'), destination),
    [],
    'another model',
  );
  t.strictSame(remedies(model({ queues: 8 }), model({ queues: 2 })), [], 'a destination that says nothing');

  // Whoever follows every remedy is left with what no remedy was given for.
  const value = fc.oneof(fc.boolean(), fc.integer({ min: 0, max: 9 }), fc.constantFrom('', 'a', 'abcde'));
  const given = fc.dictionary(fc.constantFrom('queues', 'zoned', 'label', 'speed'), value);
  const own = fc.record({
    queues: fc.integer({ min: 1, max: 8 }),
    zoned: fc.boolean(),
    label: fc.constantFrom('x', 'a'),
  });
  fc.assert(
    fc.property(given, own, (from, to) => {
      const source = model(from);
      const before = modelDifferences(source, model(to, definitions));
      const fixes = remedies(source, model(to, definitions)).map((text) => text.split('=')[0]!);
      const changed = Object.fromEntries(
        Object.entries(to).map(([name, old]) => [name, fixes.includes(name) ? from[name]! : old]),
      );
      const after = modelDifferences(source, model(changed, definitions));
      return (
        before.length - after.length === fixes.length && after.every((reason) => before.includes(reason))
      );
    }),
    { numRuns: 500, seed: 1 },
  );
  t.pass('each remedy removes one difference');
});

t.test('differences say the same from both ends', async (t) => {
  const value = fc.oneof(fc.boolean(), fc.integer({ min: 0, max: 2 }), fc.constantFrom('', 'a'));
  const parameters = fc.dictionary(fc.constantFrom('a', 'b', 'c'), value);
  const off = fc.dictionary(fc.constantFrom('a', 'b', 'c'), value);
  const some = fc
    .tuple(parameters, off)
    .map(([values, offs]) =>
      model(
        values,
        Object.fromEntries(
          Object.keys(values).map((name) => [
            name,
            { ...int, ...(Object.hasOwn(offs, name) ? { off: offs[name]! } : {}) },
          ]),
        ),
      ),
    );
  const names = (reasons: string[]): string[] => reasons.map((reason) => reason.split(' ')[1]!);
  fc.assert(
    fc.property(some, some, (a, b) => {
      const there = modelDifferences(a, b);
      // What the definition of compatibility says, for each parameter alone.
      const expected = ['a', 'b', 'c'].filter((name) => {
        const [here, back] = [a.parameters[name], b.parameters[name]];
        const isOff = (one: DeviceModel): boolean => one.parameters[name] === one.definitions?.[name]?.off;
        if (here === undefined) return back !== undefined && !isOff(b);
        if (back === undefined) return !isOff(a);
        return here !== back;
      });
      t.same(names(there), expected);
      t.same(names(modelDifferences(b, a)), expected);
      t.same(modelDifferences(a, a), []);
    }),
    { numRuns: 300, seed: 2 },
  );
});

t.test('as JSON', async (t) => {
  const definitions: ParameterDefinitions = {
    queues: { ...int, allowed: [1, { minimum: 4, maximum: 8 }] },
    zoned: { ...bool, off: false },
    label: { ...str, off: '', maximumLength: 20, allowed: ['', 'a'] },
    speed: { ...int, initial: 0, off: 0 },
  };
  t.strictSame(modelJson(model({ queues: 8, zoned: true, label: 'a' }, definitions)), {
    models: {
      'example.org/disk': {
        params: {
          queues: { type: 'int', description: 'a count', init_value: 8, allowed_values: [1, '4-8'] },
          zoned: { type: 'bool', description: 'a switch', init_value: true, off_value: false },
          label: {
            type: 'str',
            description: 'a name',
            init_value: 'a',
            off_value: '',
            allowed_values: ['', 'a'],
            maximum_length: 20,
          },
          speed: { type: 'int', description: 'a count', init_value: 0, off_value: 0 },
        },
      },
    },
  });
  t.strictSame(modelJson(model({})), { models: { 'example.org/disk': { params: {} } } });
});
