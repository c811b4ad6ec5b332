// SPDX-License-Identifier: Apache-2.0
/** Format `org.devstate.counter` 1.0. */

import type { SaveRound, StateFormat, StateLoader, StateRecord } from '../../device/index.js';
import { COUNTER } from '../../formats/index.js';
import {
  CONFIG_LENGTH,
  CounterRecord,
  type CounterState,
  decodeState,
  encodeState,
  refused,
  STATE_LENGTH,
} from './state.js';

/** The device as its format sees it. Quiesced. */
export interface StatefulCounter {
  readonly config: { readonly bytes: Uint8Array };
  captureState(): CounterState;
  /** @throws RequestError EINVAL, unchanged, for another's config space */
  restoreState(state: CounterState, config: Uint8Array): void;
}

export class CounterStateFormat implements StateFormat {
  readonly uuid = COUNTER.uuid;
  readonly name = COUNTER.name;
  readonly version = { major: 1, minor: 0 };
  readonly #device: StatefulCounter;

  constructor(device: StatefulCounter) {
    this.#device = device;
  }

  *save(round: SaveRound): Iterable<StateRecord> {
    if (round !== 'final') return;
    yield { type: CounterRecord.STATE, payload: encodeState(this.#device.captureState()) };
    yield { type: CounterRecord.CONFIG, payload: this.#device.config.bytes.slice() };
  }

  estimate(): number {
    return STATE_LENGTH + 1024;
  }

  load(): StateLoader {
    return new CounterStateLoader(this.#device);
  }
}

class CounterStateLoader implements StateLoader {
  readonly #device: StatefulCounter;
  #state: CounterState | undefined;
  #config: Uint8Array | undefined;

  constructor(device: StatefulCounter) {
    this.#device = device;
  }

  record({ type, optional, payload }: StateRecord): void {
    if (type === CounterRecord.STATE) this.#state = decodeState(payload);
    else if (type === CounterRecord.CONFIG) {
      if (payload.length !== CONFIG_LENGTH) throw refused(`a config space of ${payload.length} bytes`);
      this.#config = new Uint8Array(payload);
    } else if (optional !== true) throw refused(`record type 0x${type.toString(16)} is unknown`);
  }

  commit(): void {
    if (this.#state === undefined) throw refused('the counter is missing');
    if (this.#config === undefined) throw refused('the config space is missing');
    this.#device.restoreState(this.#state, this.#config);
  }
}
