// SPDX-License-Identifier: Apache-2.0
/** DEVICE_FEATURE as its client sends it, and what is made of the answers. */

import { asDevstateError, DevstateError } from '../errors.js';
import type { Fd, Frame } from '../transport/index.js';
import {
  Command,
  Errno,
  encodeFeatureHeader,
  errnoName,
  FEATURE_LENGTH,
  Feature,
  FeatureFlag,
  HEADER_LENGTH,
  MAX_EXPLANATION_BYTES,
  readU64,
  requireBytes,
} from '../wire/index.js';
import type * as z from '../zod.js';
import type { Client } from './client.js';
import type { Requester } from './requester.js';

/** Largest GET reply that we ask for. */
export const MAX_FEATURE_LENGTH = 1024 * 1024;

/** @typeParam Through what its requests go through */
export class FeatureClient<Through extends Requester = Client> {
  readonly client: Through;

  constructor(client: Through) {
    this.client = client;
  }

  close(): void {
    this.client.close();
  }

  /** Reads a feature's data. `data` are the request's own, `length` what the reply may have. */
  getFeature(
    feature: number,
    length: number,
    data: Uint8Array = new Uint8Array(0),
    options: { timeoutMs?: number } = {},
  ): Promise<Uint8Array> {
    const head = new Uint8Array(FEATURE_LENGTH);
    encodeFeatureHeader(new DataView(head.buffer), 0, FEATURE_LENGTH + length, feature | FeatureFlag.GET);
    const take = (frame: Frame): Uint8Array => {
      const start = HEADER_LENGTH + FEATURE_LENGTH;
      requireBytes(frame.view, HEADER_LENGTH, frame.length, FEATURE_LENGTH, 'DEVICE_FEATURE reply');
      return frame.bytes.slice(start, frame.length);
    };
    return this.explained(this.client.request(Command.DEVICE_FEATURE, [head, data], take, options));
  }

  /** Reads a feature that comes with fds, which are the caller's. */
  protected getFeatureWithFds(
    feature: number,
    length: number,
    request: Uint8Array,
  ): Promise<{ data: Uint8Array; fds: Fd[] }> {
    const head = new Uint8Array(FEATURE_LENGTH);
    encodeFeatureHeader(new DataView(head.buffer), 0, FEATURE_LENGTH + length, feature | FeatureFlag.GET);
    const read = this.client.request(Command.DEVICE_FEATURE, [head, request], (frame) => {
      requireBytes(frame.view, HEADER_LENGTH, frame.length, FEATURE_LENGTH, 'DEVICE_FEATURE reply');
      const data = frame.bytes.slice(HEADER_LENGTH + FEATURE_LENGTH, frame.length);
      return { data, fds: frame.fds.map((fd) => fd.take()) };
    });
    return this.explained(read);
  }

  /** Sets a feature; returns its data as the server changed them. */
  setFeature(feature: number, data: Uint8Array): Promise<Uint8Array> {
    const head = new Uint8Array(FEATURE_LENGTH);
    encodeFeatureHeader(
      new DataView(head.buffer),
      0,
      FEATURE_LENGTH + data.length,
      feature | FeatureFlag.SET,
    );
    const set = this.client.request(Command.DEVICE_FEATURE, [head, data], (frame) =>
      frame.bytes.slice(HEADER_LENGTH + FEATURE_LENGTH, frame.length),
    );
    return this.explained(set);
  }

  /** Whether the server has this feature with these operations (`FeatureFlag.GET`, `SET`). */
  async probeFeature(feature: number, operations: number): Promise<boolean> {
    const head = new Uint8Array(FEATURE_LENGTH);
    encodeFeatureHeader(
      new DataView(head.buffer),
      0,
      FEATURE_LENGTH,
      feature | operations | FeatureFlag.PROBE,
    );
    try {
      await this.client.request(Command.DEVICE_FEATURE, [head], () => {});
      return true;
    } catch (error) {
      const refusals: (number | undefined)[] = [Errno.ENOTTY, Errno.EINVAL, Errno.ENOTSUP];
      if (
        error instanceof DevstateError &&
        error.code === 'DEVSTATE_E_REFUSED' &&
        refusals.includes(error.errno)
      )
        return false;
      throw error;
    }
  }

  /** Adds the server's own words to a refusal, if it is one of ours and has any. */
  protected async explained<T>(request: Promise<T>): Promise<T> {
    if (this.client.explainsRefusals) return request;
    try {
      return await request;
    } catch (error) {
      if (!(error instanceof DevstateError) || error.code !== 'DEVSTATE_E_REFUSED') throw error;
      const words = await this.lastError();
      if (words === undefined) throw error;
      const options = error.errno === undefined ? {} : { errno: error.errno };
      // The errno has been named; the server's words end with it too.
      const why = words.replaceAll(` (${errnoName(error.errno ?? 0)})`, '');
      throw new DevstateError(error.code, `${error.message}: ${why}`, options);
    }
  }

  /** Why the server refused the last command of this connection, in its own words, if it has any. */
  protected async lastError(): Promise<string | undefined> {
    const head = new Uint8Array(FEATURE_LENGTH);
    const flags = Feature.DEVSTATE_LAST_ERROR | FeatureFlag.GET;
    encodeFeatureHeader(viewOf(head), 0, FEATURE_LENGTH + MAX_EXPLANATION_BYTES, flags);
    const words = await this.client
      .request(Command.DEVICE_FEATURE, [head], ({ bytes, length }) =>
        new TextDecoder().decode(bytes.subarray(HEADER_LENGTH + FEATURE_LENGTH, length)),
      )
      .catch(() => '');
    return words === '' ? undefined : words;
  }
}

/** JSON that a server has answered. @throws DEVSTATE_E_PROTOCOL */
export function parsed<Schema extends z.ZodType>(
  schema: Schema,
  bytes: Uint8Array,
  what: string,
): z.infer<Schema> {
  try {
    return schema.parse(JSON.parse(new TextDecoder().decode(bytes)));
  } catch (cause) {
    const message = `the device ${what} in a way we do not understand`;
    throw new DevstateError('DEVSTATE_E_PROTOCOL', message, { cause });
  }
}

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

/** Decodes what a server has answered. @throws DEVSTATE_E_PROTOCOL when it cannot be decoded: the server is at fault */
export function decoded<T>(decode: () => T): T {
  try {
    return decode();
  } catch (error) {
    throw asDevstateError(error, 'DEVSTATE_E_PROTOCOL');
  }
}

/** The u64 that a reply's data begin with. @throws DEVSTATE_E_PROTOCOL when they do not */
export function numberOf(data: Uint8Array, what: string): number {
  return decoded(() => {
    requireBytes(viewOf(data), 0, data.length, 8, what);
    return readU64(viewOf(data), 0);
  });
}
