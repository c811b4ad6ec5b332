// SPDX-License-Identifier: Apache-2.0
/**
 * One process asks another one something, over a channel. Each request is answered once, in any order:
 *
 *     REQUEST    id u32, document: the request           ids are the asker's, from 1 on
 *     RESPONSE   id u32, document: { answer } or { error: { code, message, errno } }
 *
 * A response to request 0 is to none, and says why no request of the connection is answered. Fds may come with both.
 */

import { asDevstateError, DevstateError, ERROR_CODES, type ErrorCode } from '../errors.js';
import { closeAll, type Fd } from '../transport/index.js';
import * as z from '../zod.js';
import type { Channel, ReceivedMessage } from './channel.js';
import {
  FIRST_VERSION,
  HANDOFF_HEADER_LENGTH,
  HANDOFF_VERSION,
  HandoffMessage,
  handoffMessageName,
  MAX_REQUEST_MESSAGE,
  otherVersion,
} from './messages.js';
import { MAX_REQUEST_VALUES, malformed, packDocument, unpackDocument } from './packed.js';

const ID_LENGTH = 4;
const MAX_ID = 0xffff_ffff;
const NO_REQUEST = 0;
/** Requests of one connection that are not answered. */
const MAX_UNANSWERED = 1024;
/** The type of a RESPONSE of a station that speaks the first version. */
const FIRST_RESPONSE = 33;

const failure = z.object({
  code: z.string(),
  message: z.string(),
  errno: z.number().int().exactOptional(),
});
const response = z.union([z.object({ error: failure }), z.object({ answer: z.unknown() })]);

function errorDocument(error: unknown): z.infer<typeof failure> {
  const { code, message, errno } = asDevstateError(error);
  return { code, message, ...(errno === undefined ? {} : { errno }) };
}

/** A code that is not known here is of a newer version. */
function remoteError({ code, message, errno }: z.infer<typeof failure>): DevstateError {
  const known = Object.hasOwn(ERROR_CODES, code) ? (code as ErrorCode) : 'DEVSTATE_E_REFUSED';
  return new DevstateError(known, message, errno === undefined ? {} : { errno });
}

function encodeAsked(id: number, document: unknown): Uint8Array {
  const packed = packDocument(document);
  const bytes = new Uint8Array(ID_LENGTH + packed.length);
  new DataView(bytes.buffer).setUint32(0, id, true);
  bytes.set(packed, ID_LENGTH);
  return bytes;
}

/** @throws DEVSTATE_E_HANDOFF_BUNDLE */
function idOf(payload: Uint8Array): number {
  if (payload.length < ID_LENGTH) throw malformed('a request or response has no number');
  return new DataView(payload.buffer, payload.byteOffset).getUint32(0, true);
}

/** @throws DEVSTATE_E_HANDOFF_BUNDLE */
function documentOf(payload: Uint8Array): unknown {
  return unpackDocument(payload.subarray(ID_LENGTH), MAX_REQUEST_VALUES);
}

function fits(payload: Uint8Array): boolean {
  return HANDOFF_HEADER_LENGTH + payload.length <= MAX_REQUEST_MESSAGE;
}

/** An answer; the fds are its receiver's. */
export interface Answer<Document = unknown> {
  readonly document: Document;
  readonly fds?: readonly Fd[];
}

export interface AskOptions {
  /** Longest that the answer may take, ms. Default: for ever. */
  readonly timeoutMs?: number | undefined;
  /** They go along, and stay the caller's. */
  readonly fds?: readonly Fd[];
}

interface Waiter {
  resolve(answer: { document: unknown; fds: Fd[] }): void;
  reject(error: DevstateError): void;
}

/** Asks; takes the channel. */
export class Asker {
  readonly #channel: Channel;
  readonly #what: string;
  readonly #waiting = new Map<number, Waiter>();
  /** Requests whose time was over, and that may be answered still. */
  readonly #late = new Set<number>();
  #lastId = NO_REQUEST;
  #end: DevstateError | undefined;

  /** @param what is at the other end, as errors call it */
  constructor(channel: Channel, what: string) {
    this.#channel = channel;
    this.#what = what;
    void this.#readAll();
  }

  /**
   * Asks, and checks the answer. Fds that come with it are closed.
   * @throws what the other end answers; DEVSTATE_E_REQUEST_TIMEOUT, DEVSTATE_E_CONNECTION_CLOSED; DEVSTATE_E_PROTOCOL when the
   * answer is none, which ends the connection, or is not what `schema` says
   */
  async ask<Schema extends z.ZodType>(
    request: unknown,
    schema: Schema,
    options: AskOptions = {},
  ): Promise<z.infer<Schema>> {
    const { document, fds } = await this.askForFds(request, schema, options);
    closeAll(fds);
    return document;
  }

  /** The same with the fds, which are the caller's. */
  async askForFds<Schema extends z.ZodType>(
    request: unknown,
    schema: Schema,
    { timeoutMs, fds = [] }: AskOptions = {},
  ): Promise<{ document: z.infer<Schema>; fds: Fd[] }> {
    if (this.#end !== undefined) throw this.#end;
    if (this.#waiting.size + this.#late.size >= MAX_UNANSWERED) {
      const message = `${this.#what} has not answered ${MAX_UNANSWERED} requests; connect again`;
      throw new DevstateError('DEVSTATE_E_REQUEST_LIMIT', message);
    }
    const id = this.#lastId === MAX_ID ? 1 : this.#lastId + 1;
    const payload = encodeAsked(id, request);
    if (!fits(payload)) throw malformed(`a request of ${payload.length} bytes cannot be sent`);
    this.#lastId = id;
    const answered = new Promise<{ document: unknown; fds: Fd[] }>((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
    });
    const timer =
      timeoutMs === undefined ? undefined : setTimeout(() => this.#giveUp(id, timeoutMs), timeoutMs);
    // What it could not be sent for is what the connection has ended with.
    this.#channel.send(HandoffMessage.REQUEST, payload, fds).catch(() => {});
    let answer: { document: unknown; fds: Fd[] };
    try {
      answer = await answered;
    } finally {
      clearTimeout(timer);
    }
    const parsed = schema.safeParse(answer.document);
    if (parsed.success) return { document: parsed.data, fds: answer.fds };
    closeAll(answer.fds);
    throw this.#notUnderstood(parsed.error);
  }

  #notUnderstood(cause: unknown): DevstateError {
    const message = `what ${this.#what} answers is not understood: it is something else, or of another version`;
    return new DevstateError('DEVSTATE_E_PROTOCOL', message, { cause });
  }

  #giveUp(id: number, timeoutMs: number): void {
    const waiter = this.#waiting.get(id);
    this.#waiting.delete(id);
    this.#late.add(id);
    const message = `${this.#what} did not answer within ${timeoutMs} ms; see whether it runs`;
    waiter?.reject(new DevstateError('DEVSTATE_E_REQUEST_TIMEOUT', message));
  }

  async #readAll(): Promise<void> {
    try {
      let refusal: DevstateError | undefined;
      while (refusal === undefined) refusal = this.#take(await this.#channel.next());
      this.#close(refusal);
    } catch (error) {
      this.#ends(error);
    }
  }

  /** @returns why no request of the connection is answered, if that came @throws when it is no response of ours */
  #take({ version, type, payload, fds }: ReceivedMessage): DevstateError | undefined {
    try {
      if (version !== HANDOFF_VERSION) throw otherVersion(version);
      if (type !== HandoffMessage.RESPONSE) throw malformed(`${handoffMessageName(type)} is no response`);
      const id = idOf(payload);
      const said = response.parse(documentOf(payload));
      if (id === NO_REQUEST && 'error' in said) return remoteError(said.error);
      if (this.#late.delete(id)) return undefined;
      const waiter = this.#waiting.get(id);
      if (waiter === undefined) throw malformed(`a response to request ${id}, which none waits for`);
      this.#waiting.delete(id);
      if ('error' in said) waiter.reject(remoteError(said.error));
      else waiter.resolve({ document: said.answer, fds: fds.splice(0) });
      return undefined;
    } finally {
      closeAll(fds);
    }
  }

  #ends(error: unknown): void {
    const { cause } = error as { cause?: unknown };
    // Closed by the other end, or because of what came from there.
    if ((error as DevstateError).code !== 'DEVSTATE_E_CONNECTION_CLOSED')
      this.#close(this.#notUnderstood(error));
    else if (cause instanceof DevstateError && cause.code.startsWith('DEVSTATE_E_MESSAGE_'))
      this.#close(this.#notUnderstood(error));
    else {
      const message = `${this.#what} closed the connection without an answer`;
      this.#close(new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', message, { cause: error }));
    }
  }

  #close(error: DevstateError): void {
    this.#end ??= error;
    this.#channel.abort();
    for (const { reject } of this.#waiting.values()) reject(this.#end);
    this.#waiting.clear();
  }

  /** Closes the connection. Requests that are not answered fail. */
  close(): void {
    this.#close(
      new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', `the connection to ${this.#what} was closed`),
    );
  }
}

/** What a process does with the requests of one connection. */
export interface Answering {
  /** Carries a request out. Its fds are closed afterwards, unless taken; those of the answer, when it has been sent. @throws what the other end is told */
  carryOut(request: unknown, fds: readonly Fd[]): Promise<Answer> | Answer;
  /** Wraps the wait for the other end: for its next request, or until it reads. */
  readonly wait?: <T>(wait: Promise<T>) => Promise<T>;
  /** A request has come; `false`: its answer has been sent, or cannot be. */
  readonly busy?: (busy: boolean) => void;
}

/**
 * Answers what comes, one request after the other. Settles when nothing does any more. @param first has come already
 * @throws DEVSTATE_E_CONNECTION_CLOSED, and DEVSTATE_E_HANDOFF_BUNDLE when the other end is of another version
 */
export async function answerAll(
  channel: Channel,
  { carryOut, wait = (promise) => promise, busy }: Answering,
  first?: ReceivedMessage,
): Promise<never> {
  for (let message = first; ; message = undefined) {
    message ??= await wait(channel.next());
    busy?.(true);
    let answer: Answer = { document: null };
    try {
      if (message.version !== HANDOFF_VERSION) await refuseVersion(channel, message.version);
      let payload: Uint8Array;
      try {
        answer = await carryOutMessage(message, carryOut);
        payload = encodeAsked(idOf(message.payload), { answer: answer.document });
        if (!fits(payload)) throw malformed(`an answer of ${payload.length} bytes cannot be sent`);
      } catch (error) {
        closeAll(answer.fds ?? []);
        answer = { document: null };
        payload = encodeAsked(idIfAny(message), { error: errorDocument(error) });
      }
      // The other end may not read for a while.
      closeAll(message.fds);
      await wait(channel.send(HandoffMessage.RESPONSE, payload, answer.fds));
    } finally {
      closeAll([...message.fds, ...(answer.fds ?? [])]);
      busy?.(false);
    }
  }
}

function carryOutMessage(
  { type, payload, fds }: ReceivedMessage,
  carryOut: Answering['carryOut'],
): Promise<Answer> | Answer {
  if (type !== HandoffMessage.REQUEST) throw malformed(`a message of type ${type} is not known here`);
  idOf(payload);
  return carryOut(documentOf(payload), fds);
}

function idIfAny({ type, payload }: ReceivedMessage): number {
  return type === HandoffMessage.REQUEST && payload.length >= ID_LENGTH ? idOf(payload) : NO_REQUEST;
}

async function refuseVersion(channel: Channel, version: number): Promise<never> {
  const error = otherVersion(version);
  await channel.sendDocument(FIRST_RESPONSE, { error: errorDocument(error) }, FIRST_VERSION);
  throw error;
}

/** Tells a connection that no request of it is answered, and ends it. */
export function refuseRequests(channel: Channel, error: DevstateError): void {
  const said = encodeAsked(NO_REQUEST, { error: errorDocument(error) });
  channel.send(HandoffMessage.RESPONSE, said).catch(() => {});
  channel.end();
}
