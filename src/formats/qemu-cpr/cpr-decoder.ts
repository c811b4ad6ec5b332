// SPDX-License-Identifier: Apache-2.0
/**
 * Decodes a CprState as it comes over a channel, where descriptors travel beside the bytes.
 *
 *     while (bytes come)  decoder.push(at most decoder.wanted bytes, count of descriptors that came with them)
 *     decoder.end()
 *
 * No one can tell which byte of a read a descriptor came with. So no more is read at once than the next element has:
 * then the place of a descriptor is exact, and one that is out of place is noticed.
 */
import { DevstateError } from '../../errors.js';
import { StreamDefect } from '../foreign/defect.js';
import { type Pull, PushedInput } from '../foreign/pushed-input.js';
import { damaged } from '../foreign/section-context.js';
import { SectionTree } from '../foreign/section-tree.js';
import { CPR_DESCRIPTORS_MAX, type CprState, emptyCprState, PASSED, walkCprState } from './cpr-state.js';

/** Longest state, in bytes. */
const LENGTH_MAX = 4 << 20;

/** The part of a state that is not known here. */
export interface UnknownCprPart {
  /** What is not known. */
  readonly reason: string;
  /** Where it begins, in bytes. */
  readonly offset: number;
  /** Descriptors in it. */
  descriptors: number;
}

export interface CprDecoderOptions {
  /** Take what is of a version that is not known here: from there on nothing is decoded. Default: refuse it. */
  readonly passUnknown?: boolean;
}

/** Every method throws DEVSTATE_E_CONTENT_TRUNCATED, _DAMAGED or _UNSUPPORTED for a state that is not one. */
export class CprStateDecoder {
  /** What was found so far. */
  readonly state: CprState = emptyCprState();
  readonly #input = new PushedInput(0);
  readonly #steps: Pull<void>;
  readonly #passUnknown: boolean;
  #unknown: UnknownCprPart | undefined;
  #atDescriptor = false;
  #descriptors = 0;
  #ended = false;

  constructor({ passUnknown = false }: CprDecoderOptions = {}) {
    this.#passUnknown = passUnknown;
    this.#steps = walkCprState(this.#input, new SectionTree(), this.state, (input) =>
      this.#descriptor(input),
    );
    this.#steps.next();
  }

  /** From where on nothing could be decoded; undefined if all is known. */
  get unknown(): UnknownCprPart | undefined {
    return this.#unknown;
  }

  /** Bytes that may be pushed next, at most; at least 1. */
  get wanted(): number {
    return this.#unknown === undefined ? this.#input.wanted : 1;
  }

  /** @param descriptors how many came with these bytes */
  push(bytes: Uint8Array, descriptors: number): void {
    if (bytes.length > this.wanted)
      throw new RangeError(`${bytes.length} bytes are more than ${this.wanted}`);
    try {
      this.#count(bytes.length, descriptors);
      this.#input.feed(bytes);
      if (this.#unknown === undefined) this.#step();
      else this.#input.skip(bytes.length);
      this.#input.settle();
    } catch (error) {
      throw asContentError(error);
    }
  }

  /** No more bytes come. */
  end(): void {
    this.#ended = true;
    this.#input.end();
    try {
      if (this.#unknown === undefined) this.#step();
    } catch (error) {
      throw asContentError(error);
    }
  }

  #count(bytes: number, descriptors: number): void {
    const { fedEnd } = this.#input;
    this.#descriptors += descriptors;
    if (fedEnd + bytes > LENGTH_MAX) throw damaged(fedEnd, `it is longer than ${LENGTH_MAX} bytes`);
    if (this.#descriptors > CPR_DESCRIPTORS_MAX)
      throw damaged(fedEnd, `there are more than ${CPR_DESCRIPTORS_MAX} descriptors`);
    if (this.#unknown !== undefined) this.#unknown.descriptors += descriptors;
    else if (descriptors !== (this.#atDescriptor ? 1 : 0)) {
      const expected = this.#atDescriptor ? 'one belongs' : 'none belongs';
      throw damaged(fedEnd, `${descriptors} descriptors came where ${expected}`);
    }
  }

  #step(): void {
    try {
      this.#steps.next();
    } catch (error) {
      const passes = this.#passUnknown && !this.#ended;
      if (!(error instanceof StreamDefect) || error.code !== 'DEVSTATE_E_CONTENT_UNSUPPORTED' || !passes)
        throw error;
      this.#unknown = { reason: error.message, offset: error.offset, descriptors: 0 };
    }
  }

  *#descriptor(input: PushedInput): Pull<null> {
    this.#atDescriptor = true;
    yield* input.need(1);
    this.#atDescriptor = false;
    if (input.u8() !== PASSED)
      throw damaged(input.offset - 1, 'a descriptor came with a byte that is not its own');
    return null;
  }
}

function asContentError(error: unknown): unknown {
  if (!(error instanceof StreamDefect)) return error;
  const message = `QEMU's CPR state cannot be followed: ${error.message} (offset ${error.offset})`;
  return new DevstateError(error.code, message, { cause: error });
}
