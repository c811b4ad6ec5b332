// SPDX-License-Identifier: Apache-2.0
/**
 * The chain of capabilities behind the fixed part of an INFO structure: id u16, version u16, next u32, then by id. `next`
 * counts from the start of the structure; 0 ends the chain.
 */

import { Errno, RequestError } from '../../wire/index.js';

const HEADER_LENGTH = 8;

export interface Capability {
  readonly id: number;
  readonly version: number;
  /** Where its own fields begin. */
  readonly at: number;
}

/** Walks the chain from `first` on. @throws RequestError EPROTO when it goes backwards or out of the structure */
export function* capabilities(view: DataView, first: number): Generator<Capability> {
  let last = 0;
  for (let at = first; at !== 0; at = view.getUint32(at + 4, true)) {
    if (at <= last || at + HEADER_LENGTH > view.byteLength)
      throw new RequestError(Errno.EPROTO, 'a chain of capabilities leaves its structure');
    last = at;
    yield { id: view.getUint16(at, true), version: view.getUint16(at + 2, true), at: at + HEADER_LENGTH };
  }
}
