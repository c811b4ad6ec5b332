// SPDX-License-Identifier: Apache-2.0
/**
 * Messages of a `.proto` schema in `formats/`, which is the one home of field numbers: bytes ↔ values, with bounds. A field
 * that the schema does not know is skipped, as proto3 has it, and told of.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import protobuf from 'protobufjs';
import { DevstateError } from '../../errors.js';
import { PACKAGE_ROOT } from '../../package-root.js';
import { Turns } from '../../turns.js';
import type { FieldMap, FieldValue } from '../fields.js';

/** A message larger than this is refused, or one of more messages within it: an empty one costs two bytes here and 2 KiB in memory. */
const MESSAGE_LENGTH_MAX = 1024 * 1024;
const MESSAGES_MAX = 15_000;

/** Bytes shown of a field that is not known. */
const FIRST_BYTES = 16;

/** Lists, nested messages, defaults: everything is there. Integers as numbers, whole ones below 2^53. */
const TO_VALUE = { longs: Number, defaults: true, arrays: true, objects: true } as const;

/** Read and parsed when a message is first coded: a command that codes none starts without it. */
export class Schema {
  readonly #text: () => string;
  #parsed: protobuf.IParserResult | undefined;
  #prepared: Promise<void> | undefined;

  /** @param file name of the schema in `formats/`; `text` in its place is for schemas that are not there */
  constructor(file: string, text?: string) {
    this.#text = () => text ?? readFileSync(join(PACKAGE_ROOT, 'formats', file), 'utf8');
  }

  message(name: string): MessageCodec {
    return new MessageCodec(() => {
      const { root, package: prefix = '' } = this.#parse();
      return root.lookupType(`${prefix}.${name}`);
    });
  }

  #parse(): protobuf.IParserResult {
    this.#parsed ??= protobuf.parse(this.#text());
    return this.#parsed;
  }

  /** Makes what the first messages need: some tens of milliseconds of work, in turns, the first time that it is asked for. */
  prepare(): Promise<void> {
    this.#prepared ??= this.#makeCoders();
    return this.#prepared;
  }

  async #makeCoders(): Promise<void> {
    const turns = new Turns();
    const { root } = this.#parse();
    await turns.next();
    root.resolveAll();
    for (const type of typesOf(root)) {
      if (turns.isOver) await turns.next();
      type.setup();
    }
  }
}

/** A decoded message as the schema's JSON names have it. */
export type MessageValue = { [name: string]: unknown };

export class MessageCodec {
  readonly #find: () => protobuf.Type;
  #found: protobuf.Type | undefined;

  /** @param find called once, when it is first needed */
  constructor(find: () => protobuf.Type) {
    this.#find = find;
  }

  get #type(): protobuf.Type {
    this.#found ??= this.#find();
    return this.#found;
  }

  /** @param value fields by their JSON names; others are left out */
  encode(value: object): Uint8Array {
    // A copy: protobufjs may give a part of a pool.
    return new Uint8Array(this.#type.encode(this.#type.fromObject(value)).finish());
  }

  /** @throws DevstateError DEVSTATE_E_STATE_RECORD */
  decode(bytes: Uint8Array): MessageValue {
    return unsafePaths(this.#type.toObject(this.#decode(bytes), TO_VALUE), this.#type.name);
  }

  /** What the message says, for people: fields that are not known are shown as such. @throws as `decode` */
  describe(bytes: Uint8Array): FieldMap {
    const message = this.#decode(bytes);
    return described(message, this.#type.toObject(message, TO_VALUE));
  }

  #decode(bytes: Uint8Array): protobuf.Message {
    if (bytes.length > MESSAGE_LENGTH_MAX) {
      throw damaged(`${this.#type.name} of ${bytes.length} bytes exceeds ${MESSAGE_LENGTH_MAX}`);
    }
    let message: protobuf.Message;
    try {
      // A plain copy: fields of bytes must not share memory with what they came in.
      const reader = protobuf.Reader.create(Uint8Array.from(bytes));
      reader.discardUnknown = false;
      message = this.#type.decode(reader);
    } catch (cause) {
      throw damaged(`${this.#type.name}: ${cause instanceof Error ? cause.message : String(cause)}`, cause);
    }
    if (countMessages(message) > MESSAGES_MAX) {
      throw damaged(`${this.#type.name} has more than ${MESSAGES_MAX} messages within it`);
    }
    return message;
  }
}

/** The types of a schema, and those within them. */
function* typesOf(namespace: protobuf.NamespaceBase): Generator<protobuf.Type> {
  for (const nested of namespace.nestedArray) {
    if (nested instanceof protobuf.Type) yield nested;
    if (nested instanceof protobuf.Namespace) yield* typesOf(nested);
  }
}

/** Messages within a message, at any depth. */
function countMessages(message: protobuf.Message): number {
  return Object.values(message)
    .flat()
    .reduce((sum, item) => sum + (item instanceof protobuf.Message ? 1 + countMessages(item) : 0), 0);
}

/** Checks that no integer has lost its value. */
function unsafePaths(value: MessageValue, path: string): MessageValue {
  for (const [name, field] of Object.entries(value)) {
    if (typeof field === 'number' && !Number.isSafeInteger(field)) {
      throw damaged(`${path}.${name} is 2^53 or more`);
    }
    if (typeof field === 'object' && field !== null && !(field instanceof Uint8Array)) {
      unsafePaths(field as MessageValue, `${path}.${name}`);
    }
  }
  return value;
}

/** The fields of a message, and of those within it, by what `toObject` makes of it. */
function described(message: protobuf.Message, value: MessageValue): FieldMap {
  const members = message as unknown as MessageValue;
  const known = Object.entries(value).map(([name, item]) => [name, fieldOf(members[name], item)] as const);
  return { ...Object.fromEntries(known), ...unknownFields(message) };
}

function fieldOf(member: unknown, value: unknown): FieldValue {
  if (value instanceof Uint8Array) return Buffer.from(value).toString('hex');
  if (Array.isArray(value)) {
    return value.map((item, index) => fieldOf((member as readonly unknown[])[index], item));
  }
  if (member instanceof protobuf.Message) return described(member, value as MessageValue);
  return value as FieldValue;
}

/** The fields of a message that the schema does not know: number, length with its tag, first bytes. */
function unknownFields(message: protobuf.Message): FieldMap {
  const { $unknowns: raw = [] } = message as { $unknowns?: readonly Uint8Array[] };
  return Object.fromEntries(
    raw.map((bytes) => {
      const tag = protobuf.Reader.create(bytes).uint32();
      const first = Buffer.from(bytes.subarray(0, FIRST_BYTES)).toString('hex');
      return [`unknown field ${tag >>> 3}`, { length: bytes.length, first }];
    }),
  );
}

function damaged(message: string, cause?: unknown): DevstateError {
  return new DevstateError('DEVSTATE_E_STATE_RECORD', `a record is damaged: ${message}`, { cause });
}
