// SPDX-License-Identifier: Apache-2.0
/** One loading of a device's state: takes the bytes of an envelope as they come and gives its records to a format. */

import type { StateFormat, StateLoader } from '../device/index.js';
import { EnvelopeDecoder, type EnvelopeHeader, FORMAT_RECORD_TYPES, RecordFlag } from '../formats/index.js';
import { Errno, RequestError } from '../wire/index.js';

/** Chooses the format to load with, or refuses. @throws RequestError with every reason */
export type FormatChooser = (header: EnvelopeHeader) => StateFormat;

export class LoadSession {
  readonly #decoder: EnvelopeDecoder;
  #loader: StateLoader | undefined;

  constructor(choose: FormatChooser) {
    this.#decoder = new EnvelopeDecoder({
      onHeader: (header) => {
        this.#loader = choose(header).load(header.version);
      },
      onRecord: (record) => {
        if (record.type < FORMAT_RECORD_TYPES) {
          if ((record.flags & RecordFlag.optional) !== 0) return;
          throw new RequestError(
            Errno.ENOTSUP,
            `record type ${record.type} of the envelope is not a device's`,
          );
        }
        const optional = (record.flags & RecordFlag.optional) !== 0;
        this.#loader?.record({ type: record.type, optional, payload: record.payload });
      },
    });
  }

  /**
   * Takes the next bytes, in turns with other work; `bytes` must not change until a promise settles.
   * @throws what the decoder or the format finds wrong with them
   */
  push(bytes: Uint8Array): void | Promise<void> {
    return this.#decoder.pushInTurns(bytes);
  }

  /** No more bytes come: the device becomes what was loaded. @throws when something is missing or does not fit */
  async commit(): Promise<void> {
    this.#decoder.finish();
    if (this.#loader === undefined) throw new RequestError(Errno.EINVAL, 'no device state was loaded');
    await this.#loader.commit();
  }
}
