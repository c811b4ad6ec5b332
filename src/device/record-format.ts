// SPDX-License-Identifier: Apache-2.0
/** A format for state that is a few records, all saved at the end: the whole of a small device. */

import { parseUuid, type Uuid } from '../formats/index.js';
import { Errno, RequestError } from '../wire/index.js';
import type { SaveRound, StateFormat, StateLoader, StateRecord } from './state.js';

export interface RecordShape {
  /** The format's own number for it, from 0x10000. */
  readonly type: number;
  /** Bytes; any if absent. */
  readonly length?: number;
  /** May be absent, and a reader that does not know it may skip it. */
  readonly optional?: boolean;
}

type Shapes = Readonly<Record<string, RecordShape>>;

/** The payload of each record; undefined for an optional one that is not there. */
export type Payloads<S extends Shapes> = {
  readonly [Name in keyof S]: S[Name] extends { readonly optional: true }
    ? Uint8Array | undefined
    : Uint8Array;
};

export interface RecordFormatOptions<S extends Shapes> {
  /** Made once for this format, by `uuidgen` for instance. */
  readonly uuid: string;
  /** For instance `org.example.adder`. */
  readonly name: string;
  readonly version: { readonly major: number; readonly minor: number };
  /** What it consists of, by names that errors have. Saved in this order. */
  readonly records: S;
  /** The state. Called quiesced; the payloads are copied. */
  save(): Payloads<S>;
  /**
   * Becomes what was saved. All records that must be there are, and have their length; the bytes may be anything.
   * @throws when they do not make a state: with a sentence that says why
   */
  load(payloads: Payloads<S>): void | Promise<void>;
}

/** About what an envelope adds, bytes. */
const ENVELOPE_LENGTH = 256;

export class RecordFormat<const S extends Shapes> implements StateFormat {
  readonly uuid: Uuid;
  readonly name: string;
  readonly version: { readonly major: number; readonly minor: number };
  readonly #options: RecordFormatOptions<S>;

  constructor(options: RecordFormatOptions<S>) {
    this.uuid = parseUuid(options.uuid);
    this.name = options.name;
    this.version = options.version;
    this.#options = options;
  }

  *save(round: SaveRound): Iterable<StateRecord> {
    if (round === 'pre-copy') return;
    const payloads = this.#options.save();
    for (const [name, { type, optional = false }] of Object.entries(this.#options.records)) {
      const payload = payloads[name];
      if (payload !== undefined) yield { type, optional, payload: payload.slice() };
    }
  }

  estimate(): number {
    const lengths = Object.values(this.#options.records).map(({ length = 0 }) => length);
    return lengths.reduce((sum, length) => sum + length, ENVELOPE_LENGTH);
  }

  load(): StateLoader {
    const shapes = Object.entries(this.#options.records);
    const payloads = new Map<string, Uint8Array>();
    return {
      record: ({ type, optional, payload }) => {
        const [name, shape] = shapes.find(([, one]) => one.type === type) ?? [];
        if (name === undefined) {
          if (optional === true) return;
          throw refused(`record type 0x${type.toString(16)} is unknown`);
        }
        if (payloads.has(name)) throw refused(`the record "${name}" came twice`);
        if (shape?.length !== undefined && payload.length !== shape.length)
          throw refused(`the record "${name}" has ${payload.length} bytes, not ${shape.length}`);
        payloads.set(name, payload.slice());
      },
      commit: () => {
        for (const [name, { optional }] of shapes)
          if (optional !== true && !payloads.has(name)) throw refused(`the record "${name}" is missing`);
        return this.#options.load(Object.fromEntries(payloads) as Payloads<S>);
      },
    };
  }
}

function refused(problem: string): RequestError {
  return new RequestError(Errno.EINVAL, problem);
}
