// SPDX-License-Identifier: Apache-2.0
/** Scratch devices that offer several formats, or their state value by value. */

import type { Device, DeviceValues, StateFormat } from '../../src/device/index.js';
import { parseUuid, type Uuid } from '../../src/formats/index.js';
import { Errno, RequestError, type StateValue } from '../../src/wire/index.js';
import { ScratchDevice } from '../support/scratch-device.js';

export const SECOND_UUID = parseUuid('0000000c-0000-4000-8000-000000000002');
export const VALUES_UUID = parseUuid('0000000c-0000-4000-8000-00000000000a');

/** The same state under another name. */
export function variant(
  format: StateFormat,
  more: Partial<Pick<StateFormat, 'uuid' | 'name' | 'version' | 'fidelity' | 'estimate' | 'load'>>,
): StateFormat {
  return {
    uuid: format.uuid,
    name: format.name,
    version: format.version,
    begin: () => format.begin?.(),
    save: (round) => format.save(round),
    estimate: () => format.estimate(),
    load: (version) => format.load(version),
    ...more,
  };
}

/** Its own format in versions 2.3 and 1.1, and a second one that does not hold everything. */
export function manyFormats(scratch = new ScratchDevice()): Device & ScratchDevice {
  const { state } = scratch;
  return Object.assign(scratch, {
    formats: [
      variant(state, { version: { major: 2, minor: 3 } }),
      variant(state, { version: { major: 1, minor: 1 }, estimate: () => 77 }),
      variant(state, { uuid: SECOND_UUID, name: 'org.devstate.test.second', fidelity: 'partial' }),
    ] as unknown as ScratchDevice['formats'],
  });
}

/** The first bytes of the memory as values `byte[n]`, and the flavour. */
export function scratchValues(scratch: ScratchDevice, uuid: Uuid = VALUES_UUID): DeviceValues {
  const COUNT = 100;
  return {
    uuid,
    version: { major: 1, minor: 4 },
    capture: () =>
      new Map<string, StateValue>([
        ['byte.length', COUNT],
        ...Array.from({ length: COUNT }, (_, i): [string, StateValue] => [
          `byte[${i}]`,
          scratch.state.memory[i] ?? 0,
        ]),
        ['flavour', scratch.model.parameters.flavour],
      ]),
    restore: (values) => {
      if (values.get('flavour') === 'sour') throw new RequestError(Errno.EINVAL, 'a sour state');
      for (let i = 0; i < COUNT; i++) scratch.state.memory[i] = Number(values.get(`byte[${i}]`));
    },
  };
}

/** Only values, no formats. */
export function onlyValues(scratch = new ScratchDevice()): Device & ScratchDevice {
  return Object.assign(scratch, { formats: [], values: scratchValues(scratch) });
}
