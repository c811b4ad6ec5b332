// SPDX-License-Identifier: Apache-2.0
/** What a device offers, what can be chosen of it, and with what a blob is loaded; every refusal. */

import t from 'tap';
import {
  type EnvelopeHeader,
  newUuid,
  type Uuid,
  uuidFromBytes,
  uuidToBytes,
} from '../../src/formats/index.js';
import {
  chooseFormat,
  type FormatChoice,
  formatFor,
  formatOffers,
  stateOffer,
} from '../../src/runtime/format-choice.js';
import { Errno, FormatFlag, type FormatSelection } from '../../src/wire/index.js';
import { refusal } from '../support/hex.js';
import { ScratchDevice } from '../support/scratch-device.js';
import { manyFormats, onlyValues, SECOND_UUID, scratchValues } from './many-formats.js';

const { SAVE, LOAD, PARTIAL } = FormatFlag;
const SCRATCH = 'org.devstate.test.scratch';
const SECOND = 'org.devstate.test.second';

/** `name major.minor` of what is offered. */
const names = ({ formats }: ReturnType<typeof stateOffer>): string[] =>
  formats.map(({ name, version }) => `${name} ${version.major}.${version.minor}`);

t.test('all that a device has, or what an operator wants of it', async (t) => {
  const device = manyFormats();
  const all = [`${SCRATCH} 2.3`, `${SCRATCH} 1.1`, `${SECOND} 1.0`];
  t.strictSame(names(stateOffer(device)), all);
  const cases: [string[], string[]][] = [
    [[SCRATCH], [all[0]!]],
    [[`${SCRATCH}@1`], [all[1]!]],
    [
      [SECOND, `${SCRATCH}@2`],
      [all[2]!, all[0]!],
    ],
    [[SECOND_UUID], [all[2]!]],
    [[`${SECOND_UUID.toUpperCase()}@1`], [all[2]!]],
    [[], []],
    [
      [SECOND, SCRATCH, SECOND, SECOND_UUID, `${SCRATCH}@2`],
      [all[2]!, all[0]!],
    ],
  ];
  for (const [wanted, expected] of cases) {
    t.strictSame(names(stateOffer(device, wanted)), expected, wanted.join(' '));
    t.equal(stateOffer(device, wanted).values, undefined);
  }
  for (const wrong of [
    'org.devstate.test.third',
    `${SCRATCH}@3`,
    `${SECOND}@`,
    `${SECOND}@1.0`,
    newUuid(),
    '',
  ])
    t.throws(() => stateOffer(device, [SECOND, wrong]), {
      code: 'DEVSTATE_E_FORMAT_UNKNOWN',
      message: new RegExp(`${wrong.replace(/[@.]/g, '.')}: it has ${SCRATCH}@2, ${SCRATCH}@1, ${SECOND}@1`),
    });

  const valued = onlyValues();
  t.equal(stateOffer(valued).values, valued.values, 'no formats: the values');
  const both = Object.assign(manyFormats(), { values: scratchValues(new ScratchDevice()) });
  t.equal(stateOffer(both).values, undefined, 'formats are better');
  t.equal(stateOffer(both, ['values', SECOND]).values, both.values, 'unless they are asked for');
  t.strictSame(names(stateOffer(both, ['values', SECOND])), [all[2]]);
  t.strictSame(names(stateOffer(both, ['values'])), []);
  t.throws(() => stateOffer(device, ['values']), {
    code: 'DEVSTATE_E_FORMAT_UNKNOWN',
    message: /value by value/,
  });

  const rawState = {} as never;
  t.equal(stateOffer({ ...valued, rawState }).raw, rawState);
  t.equal(stateOffer({ ...device, rawState }, [SECOND]).raw, undefined, 'who pins a format gets it');
});

t.test('as a manager sees it', async (t) => {
  const offer = stateOffer(manyFormats());
  const told = formatOffers(offer);
  t.strictSame(
    told.map(({ uuid, ...one }) => ({ ...one, uuid: uuidFromBytes(uuid) })),
    [
      { uuid: offer.formats[0]?.uuid, major: 2, minor: 3, flags: SAVE | LOAD, estimate: 4112, name: SCRATCH },
      { uuid: offer.formats[0]?.uuid, major: 1, minor: 1, flags: SAVE | LOAD, estimate: 77, name: SCRATCH },
      { uuid: SECOND_UUID, major: 1, minor: 0, flags: SAVE | LOAD | PARTIAL, estimate: 4112, name: SECOND },
    ].map((one) => ({ ...one, features: told[0]?.features, limit: 0 })),
  );
  t.strictSame(formatOffers(stateOffer(onlyValues())), []);
});

t.test('a selection', async (t) => {
  const offer = stateOffer(manyFormats());
  const [v2, v1, second] = offer.formats;
  const select = (
    uuid: Uuid,
    major: number,
    minor: number,
    flags: number,
    features = 0,
  ): FormatSelection => ({
    uuid: uuidToBytes(uuid),
    major,
    minor,
    flags,
    features,
  });
  const uuid = v1!.uuid;
  const taken: [string, FormatSelection, FormatChoice][] = [
    ['to save', select(uuid, 2, 3, SAVE), { save: { format: v2!, features: [] } }],
    ['to save, an older minor version', select(uuid, 2, 0, SAVE), { save: { format: v2!, features: [] } }],
    ['to load', select(uuid, 2, 3, LOAD), { load: v2! }],
    ['to load, a newer minor version', select(uuid, 2, 9, LOAD), { load: v2! }],
    ['an older major version', select(uuid, 1, 1, SAVE), { save: { format: v1!, features: [] } }],
    ['an older major version to load', select(uuid, 1, 0, LOAD), { load: v1! }],
    [
      'for both',
      select(SECOND_UUID, 1, 0, SAVE | LOAD),
      { save: { format: second!, features: [] }, load: second! },
    ],
  ];
  for (const [what, selection, expected] of taken) {
    const choice: FormatChoice = {};
    chooseFormat(offer, choice, selection);
    t.equal(choice.save?.format, expected.save?.format, what);
    t.strictSame(choice.save?.features, expected.save?.features, what);
    t.equal(choice.load, expected.load, what);
  }
  const refused: [string, FormatSelection, number, RegExp][] = [
    ['nothing', select(uuid, 2, 3, 0), Errno.EINVAL, /to save, to load, or both/],
    ['partial', select(uuid, 2, 3, SAVE | PARTIAL), Errno.EINVAL, /to save/],
    ['a flag of later versions', select(uuid, 2, 3, 0x80000001), Errno.EINVAL, /to save/],
    ['an unknown format', select(newUuid(), 1, 0, SAVE), Errno.ENOTSUP, /not offered here/],
    [
      'a newer major version',
      select(uuid, 3, 0, LOAD),
      Errno.ENOTSUP,
      /scratch 3\.0 is not offered here, but 2\.3/,
    ],
    ['version 0', select(SECOND_UUID, 0, 0, SAVE), Errno.ENOTSUP, /second 0\.0 .*but 1\.0/],
    ['a newer minor version to save', select(uuid, 2, 4, SAVE), Errno.ENOTSUP, /2\.4 is newer/],
    ['the same to load as well', select(uuid, 2, 4, SAVE | LOAD), Errno.ENOTSUP, /2\.4 is newer/],
    ['of the older version too', select(uuid, 1, 2, SAVE), Errno.ENOTSUP, /1\.2 is newer/],
    ['an unknown feature', select(uuid, 2, 3, SAVE, 2 ** 40), Errno.ENOTSUP, /features 0x10000000000/],
    ['an unknown feature to load', select(uuid, 2, 3, LOAD, 2 ** 52), Errno.ENOTSUP, /features/],
  ];
  for (const [what, selection, errno, message] of refused) {
    const choice: FormatChoice = { save: { format: second!, features: [] }, load: second! };
    t.equal(
      refusal(() => chooseFormat(offer, choice, selection)),
      errno,
      what,
    );
    t.throws(() => chooseFormat(offer, choice, selection), { message }, what);
    t.equal(choice.save?.format, second, `${what}: changes nothing`);
    t.equal(choice.load, second, `${what}: changes nothing`);
  }
  const one = stateOffer(manyFormats(), [SECOND]);
  t.equal(
    refusal(() => chooseFormat(one, {}, select(uuid, 2, 3, SAVE))),
    Errno.ENOTSUP,
    'one that is not offered',
  );
});

t.test('the format for a blob', async (t) => {
  const device = manyFormats();
  const offer = stateOffer(device);
  const [v2, v1, second] = offer.formats;
  const header = (more: Partial<EnvelopeHeader>): EnvelopeHeader => ({
    format: v2!.uuid,
    version: { major: 2, minor: 3 },
    model: device.model.uri,
    parameters: { ...device.model.parameters },
    producer: { name: 'a', version: '1' },
    stream: newUuid(),
    features: [],
    other: {},
    ...more,
  });
  const choose = (more: Partial<EnvelopeHeader>, choice: FormatChoice = {}) =>
    formatFor(device.model, offer, choice, header(more));
  t.equal(choose({}), v2);
  t.equal(choose({ version: { major: 2, minor: 99 } }), v2, 'a newer minor version');
  t.equal(choose({ version: { major: 1, minor: 0 } }), v1, 'an older major version');
  t.equal(choose({ format: SECOND_UUID, version: { major: 1, minor: 0 } }), second, 'not the preferred one');
  t.equal(choose({}, { load: v2! }), v2, 'the selected one');
  t.equal(
    choose({}, { save: { format: second!, features: [] } }),
    v2,
    'what is selected to save says nothing',
  );

  const refused = (more: Partial<EnvelopeHeader>, message: RegExp, choice: FormatChoice = {}): void => {
    t.equal(
      refusal(() => choose(more, choice)),
      Errno.EINVAL,
    );
    t.throws(() => choose(more, choice), { message });
  };
  refused({ version: { major: 3, minor: 0 } }, /^org\.devstate\.test\.scratch version 3 is not known here/);
  const uuid = newUuid();
  refused({ format: uuid }, new RegExp(`^format ${uuid} is not known here`));
  refused({}, /^the state is org\.devstate\.test\.scratch, but org\.devstate\.test\.second was selected/, {
    load: second!,
  });
  refused({ version: { major: 1, minor: 0 } }, /was selected/, { load: v2! });
  refused(
    { model: 'example.org/other' },
    /^model is example\.org\/other at the source, devstate\.org\/scratch/,
  );
  refused(
    { format: uuid, parameters: { size: 1, flavour: 'sour', extra: true } },
    new RegExp(
      'parameter extra is true at the source, not known at the destination; ' +
        'parameter flavour is "sour" at the source, "plain" at the destination; ' +
        `parameter size is 1 at the source, 4096 at the destination; format ${uuid} is not known here`,
    ),
  );
});
