// SPDX-License-Identifier: Apache-2.0
/**
 * One saving of a device's state: pulls records from a format, wraps them in an envelope, and hands out bytes in
 * chunks of the size the reader asks for. Holds at most one chunk and one record more than it was asked for.
 */

import type { StateFormat, StateRecord } from '../device/index.js';
import { EnvelopeEncoder, type EnvelopeHeader, RecordFlag } from '../formats/index.js';
import { Turns } from '../turns.js';

type Records = Iterator<StateRecord> | AsyncIterator<StateRecord>;

/** Where records come from. */
export type RecordSource = Pick<StateFormat, 'begin' | 'save' | 'estimate'>;

/** Longer payloads are compressed on another thread. */
const AT_ONCE_MAX = 256 * 1024;

export class SaveSession {
  readonly #format: RecordSource;
  readonly #encoder: EnvelopeEncoder;
  readonly #compresses: boolean;
  /** Bytes that are encoded and not yet read, oldest first. */
  readonly #queue: Uint8Array[] = [];
  #queued = 0;
  #records: Records | undefined;
  #final = false;
  #ended = false;
  /** What a round failed with: the stream has a hole from there on, and must never get an end. */
  #failure: { error: unknown } | undefined;

  constructor(format: RecordSource, header: EnvelopeHeader) {
    format.begin?.();
    this.#format = format;
    this.#encoder = new EnvelopeEncoder(header);
    this.#compresses = header.features.length > 0;
    this.#push(this.#encoder.header());
  }

  /** The device is quiesced: what follows is the last round. A pre-copy round under way is given up. */
  async finish(): Promise<void> {
    await this.close();
    this.#final = true;
  }

  /** Gives up the round under way. */
  async close(): Promise<void> {
    const records = this.#records;
    this.#records = undefined;
    await records?.return?.();
  }

  /** The whole stream has been read. */
  get ended(): boolean {
    return this.#ended && this.#queued === 0;
  }

  /** About how many bytes are still to come if the device stopped now. */
  get pending(): number {
    return this.#ended ? this.#queued : this.#queued + this.#format.estimate();
  }

  /**
   * The next bytes, `size` of them unless the stream (or, in pre-copy, the present round) ends before.
   * Returned as parts that will not be changed any more. One call at a time.
   * @throws what the format threw, now and on every later call
   */
  async read(size: number): Promise<Uint8Array[]> {
    if (this.#failure !== undefined) throw this.#failure.error;
    try {
      await this.#fill(size);
    } catch (error) {
      this.#failure = { error };
      throw error;
    }
    return this.#take(size);
  }

  /**
   * Encodes the next `size` bytes of the last round ahead, while the reader is busy with those it has. What goes wrong
   * is reported by the next `read`. Not at the same time as another call.
   */
  async prepare(size: number): Promise<void> {
    if (!this.#final || this.#failure !== undefined) return;
    try {
      await this.#fill(size);
    } catch (error) {
      this.#failure = { error };
    }
  }

  /** Others have a turn every few milliseconds: much may be compressed to little, and a record may be empty. */
  async #fill(size: number): Promise<void> {
    const turns = new Turns();
    while (this.#queued < size && !this.#ended) {
      if (turns.isOver) await turns.next();
      this.#records ??= this.#startRound();
      const result = await this.#records.next();
      if (result.done !== true) await this.#encode(result.value);
      else {
        this.#records = undefined;
        if (!this.#final) break;
        this.#push(this.#encoder.end());
        this.#ended = true;
      }
    }
  }

  #startRound(): Records {
    const records = this.#format.save(this.#final ? 'final' : 'pre-copy');
    return Symbol.asyncIterator in records ? records[Symbol.asyncIterator]() : records[Symbol.iterator]();
  }

  async #encode({ type, optional, payload }: StateRecord): Promise<void> {
    const flags = optional === true ? RecordFlag.optional : 0;
    const isLong = this.#compresses && payload.length > AT_ONCE_MAX;
    const parts = isLong
      ? await this.#encoder.recordLater(type, flags, payload)
      : this.#encoder.record(type, flags, payload);
    for (const part of parts) this.#push(part);
  }

  #push(part: Uint8Array): void {
    this.#queue.push(part);
    this.#queued += part.length;
  }

  #take(size: number): Uint8Array[] {
    const parts: Uint8Array[] = [];
    let wanted = Math.min(size, this.#queued);
    this.#queued -= wanted;
    while (wanted > 0) {
      const part = this.#queue[0]!;
      if (part.length <= wanted) {
        parts.push(part);
        this.#queue.shift();
        wanted -= part.length;
      } else {
        parts.push(part.subarray(0, wanted));
        this.#queue[0] = part.subarray(wanted);
        wanted = 0;
      }
    }
    return parts;
  }
}
