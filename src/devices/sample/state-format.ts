// SPDX-License-Identifier: Apache-2.0
/**
 * Format `org.devstate.sample` 1.0. Pages of BAR 1 are sent while the device runs, and again when they have changed; a VMM
 * that has mapped them writes without our seeing it, so they are compared with what was sent.
 */

import type { SaveRound, StateFormat, StateLoader, StateRecord } from '../../device/index.js';
import { SAMPLE } from '../../formats/index.js';
import {
  BAR1_SIZE,
  CONFIG_SIZE,
  decodePage,
  decodeTimer,
  encodePage,
  encodeTimer,
  PAGE_SIZE,
  refused,
  SampleRecord,
  type StatefulSample,
  type TimerState,
} from './state.js';

const PAGES = BAR1_SIZE / PAGE_SIZE;

export class SampleStateFormat implements StateFormat {
  readonly uuid = SAMPLE.uuid;
  readonly name = SAMPLE.name;
  readonly version = { major: 1, minor: 0 };
  readonly #device: StatefulSample;
  /** Pages as they were sent in this saving. */
  readonly #sent = new Map<number, Uint8Array>();

  constructor(device: StatefulSample) {
    this.#device = device;
  }

  begin(): void {
    this.#sent.clear();
  }

  *save(round: SaveRound): Iterable<StateRecord> {
    for (let index = 0; index < PAGES; index++) {
      const content = this.#device.bar1.slice(index * PAGE_SIZE, (index + 1) * PAGE_SIZE);
      const sent = this.#sent.get(index);
      if (sent !== undefined && Buffer.compare(sent, content) === 0) continue;
      yield { type: SampleRecord.PAGE, payload: encodePage(index, content) };
      this.#sent.set(index, content);
    }
    if (round !== 'final') return;
    yield { type: SampleRecord.TIMER, payload: encodeTimer(this.#device.captureTimer()) };
    yield { type: SampleRecord.CONFIG, payload: this.#device.configBytes.slice() };
  }

  estimate(): number {
    return BAR1_SIZE + 1024;
  }

  load(): StateLoader {
    return new SampleStateLoader(this.#device);
  }
}

class SampleStateLoader implements StateLoader {
  readonly #device: StatefulSample;
  readonly #bar1 = new Uint8Array(BAR1_SIZE);
  readonly #pages = new Set<number>();
  #timer: TimerState | undefined;
  #config: Uint8Array | undefined;

  constructor(device: StatefulSample) {
    this.#device = device;
  }

  record({ type, optional, payload }: StateRecord): void {
    if (type === SampleRecord.PAGE) {
      const { index, content } = decodePage(payload);
      this.#bar1.set(content, index * PAGE_SIZE);
      this.#pages.add(index);
    } else if (type === SampleRecord.TIMER) this.#timer = decodeTimer(payload);
    else if (type === SampleRecord.CONFIG) {
      if (payload.length !== CONFIG_SIZE) throw refused(`a config space of ${payload.length} bytes`);
      this.#config = new Uint8Array(payload);
    } else if (optional !== true) throw refused(`record type 0x${type.toString(16)} is unknown`);
  }

  commit(): void {
    if (this.#pages.size !== PAGES) throw refused(`${PAGES - this.#pages.size} pages of BAR 1 are missing`);
    if (this.#timer === undefined) throw refused('the timer is missing');
    if (this.#config === undefined) throw refused('the config space is missing');
    this.#device.restore(this.#bar1, this.#timer, this.#config);
  }
}
