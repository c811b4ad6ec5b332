// SPDX-License-Identifier: Apache-2.0
/**
 * The walk over a stream, element by element.
 *
 *     header         be32 `QEVM`, be32 3
 *     CONFIGURATION  u8 7, see configuration.ts
 *     START, FULL    u8 1 | 4, be32 id, u8 length, name, be32 instance, be32 version, data; footer: u8 0x7e, be32 id
 *     PART, END      u8 2 | 3, be32 id, data; footer
 *     COMMAND        u8 8, be16 number, be16 length, payload
 *     EOF            u8 0
 *     VMDESCRIPTION  u8 6, be32 length, JSON
 *
 * A section's data carries no length. That of `ram`, `dirty-bitmap`, vfio and `dbus-vmstate` says itself where it ends.
 * That of all other devices has its layout in the description at the end of the stream, which therefore is read first:
 * from the file (vm-description.ts), or, when the stream comes through a pipe, after holding everything from the first
 * FULL section on, if that is not too much. Where that does not lead to the section's footer (there is no description,
 * as in a stream that was cut; or it does not fit) the footer is searched, and the section is shown without fields.
 */
import type { FieldMap } from '../fields.js';
import type { Nesting } from '../foreign/nested-content.js';
import { type Pull, PushedInput } from '../foreign/pushed-input.js';
import {
  damaged,
  type SectionContext,
  type StreamProperties,
  unsupported,
} from '../foreign/section-context.js';
import { type OpenSection, SectionTree } from '../foreign/section-tree.js';
import { FIRST_BYTES, firstBytes } from '../foreign/text.js';
import { walkConfiguration } from './configuration.js';
import {
  COMMAND_NAMES,
  COMMAND_PACKAGED,
  COMMAND_POSTCOPY_ADVISE,
  ElementType,
  FILE_HEADER_LENGTH,
  FOOTER_LENGTH,
  QEMU_VM_FILE_MAGIC,
  QEMU_VM_FILE_VERSION,
  SECTION_KINDS,
} from './constants.js';
import { isDbusVmstateSection, walkDbusVmstate } from './dbus-vmstate.js';
import { walkDirtyBitmap } from './dirty-bitmap.js';
import { passToFooter } from './footer-search.js';
import { walkRam } from './ram.js';
import { type FieldBudget, LayoutMismatch, readState } from './state-fields.js';
import type { Structure } from './structure.js';
import { describeVfioConfig, isVfioSection, VfioDevices } from './vfio.js';
import { DESCRIPTION_LENGTH_MAX, descriptionAtEnd, VmDescription } from './vm-description.js';

/** Bytes held of a stream without a known end, for the description that comes with it. */
const HELD_MAX = 8 << 20;
/** Data of a device that is read into fields. */
const STATE_LENGTH_MAX = 4 << 20;
/** Sections with an id of their own. */
const IDS_MAX = 1 << 16;
/** Characters of JSON that all fields of device sections may take. */
const FIELDS_LENGTH = 4 << 20;
/** Names of sections listed that are not as described. */
const DIFFERING_LISTED = 100;

/** A section as START or FULL introduced it. */
interface KnownSection {
  readonly name: string;
  readonly instance: number;
  readonly version: number;
}

export interface WalkOptions {
  /** Offset of the stream in the whole input. */
  readonly offset: number;
  readonly nesting: Nesting;
  /** The description; null: there is none; undefined: it may come at the end. */
  readonly description: VmDescription | null | undefined;
}

export class StreamWalk {
  readonly input: PushedInput;
  readonly tree = new SectionTree();
  readonly stream: StreamProperties = { pageSize: 4096, capabilities: [], postcopy: false };
  /** What is said of the stream as a whole. */
  readonly fields: FieldMap = {};
  readonly #context: SectionContext;
  readonly #known = new Map<number, KnownSection>();
  readonly #vfio = new VfioDevices();
  /** Devices whose description was used. */
  readonly #described = new Set<string>();
  /** Bytes of data of device sections whose footer was searched, by id. */
  readonly #searched = new Map<number, number>();
  readonly #budget: FieldBudget = { left: FIELDS_LENGTH };
  #description: VmDescription | null | undefined;

  constructor({ offset, description, nesting }: WalkOptions) {
    this.input = new PushedInput(offset);
    this.#description = description;
    this.#context = { input: this.input, tree: this.tree, stream: this.stream, nesting };
    if (description?.pageSize) this.stream.pageSize = description.pageSize;
  }

  /** Reads the whole stream. StreamDefect where it cannot be followed. */
  *run(): Pull<void> {
    const { input } = this;
    try {
      yield* this.#header();
      while (yield* this.#element(Number.POSITIVE_INFINITY));
      if ((yield* input.reach(1)) === 0) return;
      if (input.view(1)[0] === ElementType.VMDESCRIPTION) yield* this.#vmDescription();
      if ((yield* input.reach(1)) > 0) throw damaged(input.offset, 'more bytes follow the end of the stream');
    } finally {
      this.#vfio.finish();
    }
  }

  *#header(): Pull<void> {
    const { input } = this;
    this.tree.begin('header', input.offset);
    yield* input.need(FILE_HEADER_LENGTH);
    const offset = input.offset;
    if (input.u32() !== QEMU_VM_FILE_MAGIC) throw damaged(offset, 'the stream does not begin with QEVM');
    const version = input.u32();
    if (version !== QEMU_VM_FILE_VERSION)
      throw unsupported(offset, `the stream is of version ${version}, not 3`);
    this.fields.version = version;
    this.tree.end(input.offset);
  }

  /** Reads one element, which has to end before `limit`; false if it was the last one. */
  *#element(limit: number): Pull<boolean> {
    const { input, tree } = this;
    const offset = input.offset;
    yield* input.need(1);
    const type = input.view(1)[0]!;
    const kind = SECTION_KINDS.get(type);
    if (kind !== undefined) yield* this.#section(type, kind, limit);
    else if (type === ElementType.CONFIGURATION) {
      const section = tree.begin('configuration', offset);
      input.skip(1);
      yield* walkConfiguration(this.#context, section.fields);
      this.fields.machine = section.fields.machine!;
      this.fields.capabilities = [...this.stream.capabilities];
      tree.end(input.offset);
    } else if (type === ElementType.COMMAND) yield* this.#command();
    else if (type === ElementType.EOF) {
      tree.begin('end of stream', offset);
      input.skip(1);
      tree.end(input.offset);
      return false;
    } else
      throw damaged(offset, `no element of a stream begins with 0x${type.toString(16).padStart(2, '0')}`);
    if (input.offset > limit) throw damaged(limit, 'a packaged stream goes beyond its length');
    return true;
  }

  *#section(type: number, kind: string, limit: number): Pull<void> {
    const { input, tree } = this;
    const offset = input.offset;
    const section = tree.begin(null, offset, { section: kind });
    const introduces = type === ElementType.SECTION_START || type === ElementType.SECTION_FULL;
    if (introduces && this.#description === undefined && type === ElementType.SECTION_FULL)
      yield* this.#awaitDescription();
    yield* input.need(5);
    input.skip(1);
    const id = input.u32();
    if (introduces) yield* this.#introduction(id, offset);
    const known = this.#known.get(id);
    if (known === undefined) throw damaged(offset, `the section ${id} continues, but never started`);
    Object.assign(section, { name: known.name });
    Object.assign(section.fields, { id, instance: known.instance, version: known.version });
    yield* this.#data(type, section, id, known, limit);
    const end = input.offset;
    yield* input.need(FOOTER_LENGTH);
    if (input.u8() !== ElementType.SECTION_FOOTER || input.u32() !== id) {
      throw damaged(end, `the data of the section ${known.name} does not end with its footer`);
    }
    tree.end(input.offset, type === ElementType.SECTION_PART);
  }

  /** Name, instance and version of a section. */
  *#introduction(id: number, offset: number): Pull<void> {
    const { input } = this;
    const name = yield* input.countedText();
    yield* input.need(8);
    const instance = input.u32();
    this.#known.set(id, { name, instance, version: input.u32() });
    if (this.#known.size > IDS_MAX) throw unsupported(offset, `there are more than ${IDS_MAX} sections`);
  }

  *#data(type: number, section: OpenSection, id: number, known: KnownSection, limit: number): Pull<void> {
    const { name } = known;
    if (name === 'ram') yield* walkRam(this.#context, section.fields);
    else if (name === 'dirty-bitmap') yield* walkDirtyBitmap(this.#context, section.fields);
    else if (isDbusVmstateSection(name)) yield* walkDbusVmstate(this.#context, section.fields);
    else if (isVfioSection(name) && type !== ElementType.SECTION_FULL)
      yield* this.#vfio.walk(this.#context, section, id);
    else if (type !== ElementType.SECTION_FULL) yield* this.#unknownData(section, id, limit);
    else {
      const structure = this.#structureOf(known);
      if (structure !== undefined && (yield* this.#describedData(section, id, structure))) return;
      const start = this.input.offset;
      yield* this.#unknownData(section, id, limit);
      this.#searched.set(id, this.input.offset - start);
    }
  }

  /** The layout of a device's data. A device has one section: one that repeats must not make us parse for ever. */
  #structureOf({ name, instance }: KnownSection): Structure | undefined {
    const key = `${instance} ${name}`;
    if (this.#description?.sizeOf(name, instance) === undefined || this.#described.has(key)) return undefined;
    this.#described.add(key);
    return this.#description.device(name, instance);
  }

  /** Reads data as it is described; false, and nothing is read, if that does not lead to the section's footer. */
  *#describedData(section: OpenSection, id: number, structure: Structure): Pull<boolean> {
    const { input } = this;
    const { size } = structure;
    if (size > STATE_LENGTH_MAX) {
      yield* input.reach(FIRST_BYTES);
      section.first = firstBytes(input.view(Math.min(FIRST_BYTES, input.available)));
      yield* input.pass(size);
      return true;
    }
    if ((yield* input.reach(size + FOOTER_LENGTH)) < size + FOOTER_LENGTH) return false;
    const footer = input.view(FOOTER_LENGTH, size);
    if (footer[0] !== ElementType.SECTION_FOOTER || footer.readUInt32BE(1) !== id) return false;
    const data = input.view(size);
    if (isVfioSection(section.name ?? '')) describeVfioConfig(this.#context, data, input.offset);
    else {
      try {
        section.fields.state = readState(structure, data, input.offset, this.tree, this.#budget);
      } catch (error) {
        if (!(error instanceof LayoutMismatch)) throw error;
        section.first = firstBytes(data);
      }
    }
    input.skip(size);
    return true;
  }

  /** Reads over data that this version does not know. */
  *#unknownData(section: OpenSection, id: number, limit: number): Pull<void> {
    let first = Buffer.alloc(0);
    let length = 0;
    yield* passToFooter(this.input, { id, known: this.#known, limit }, (bytes) => {
      length += bytes.length;
      if (first.length < FIRST_BYTES) first = Buffer.concat([first, bytes.subarray(0, FIRST_BYTES)]);
    });
    if (length > 0) section.first = firstBytes(first);
    section.fields.length = length;
  }

  *#command(): Pull<void> {
    const { input, tree } = this;
    const section = tree.begin('command', input.offset);
    yield* input.need(5);
    input.skip(1);
    const number = input.u16();
    const length = input.u16();
    const name = COMMAND_NAMES[number];
    section.fields = { command: name ?? number, length };
    const payload = yield* input.take(length);
    if (length > 0) section.first = firstBytes(payload);
    if (number === COMMAND_POSTCOPY_ADVISE) this.stream.postcopy = length > 0;
    if (number === COMMAND_PACKAGED && length === 4) yield* this.#packaged(payload.readUInt32BE(), section);
    tree.end(input.offset);
  }

  /** Elements that the destination reads at once, to continue with memory while it loads them. */
  *#packaged(length: number, section: OpenSection): Pull<void> {
    const { input, tree } = this;
    if (tree.outermost !== section) throw unsupported(section.offset, 'a packaged stream is in another one');
    section.fields.packaged = length;
    const end = input.offset + length;
    while (input.offset < end && (yield* this.#element(end)));
    yield* input.pass(end - input.offset);
  }

  /** Holds what is left of the stream, if it is not too much, and takes the description from its end. */
  *#awaitDescription(): Pull<void> {
    const { input } = this;
    const held = yield* input.reach(HELD_MAX);
    const text = held < HELD_MAX ? descriptionAtEnd(input.view(held)) : undefined;
    this.#description = (text && VmDescription.parse(Buffer.from(text))) ?? null;
  }

  /** The description itself; what was found without it is compared with it. */
  *#vmDescription(): Pull<void> {
    const { input, tree } = this;
    const section = tree.begin('vmdescription', input.offset);
    yield* input.need(5);
    input.skip(1);
    const length = input.u32();
    section.fields = { length };
    let description = this.#description;
    if (description || length > DESCRIPTION_LENGTH_MAX) yield* input.pass(length);
    else description = VmDescription.parse(Buffer.from(yield* input.take(length)));
    if (description) section.fields.devices = description.devices;
    const differing = [...this.#searched].flatMap(([id, size]) => {
      const { name, instance } = this.#known.get(id)!;
      return description?.sizeOf(name, instance) === size ? [] : [name];
    });
    if (description && differing.length > 0) section.fields.differing = differing.slice(0, DIFFERING_LISTED);
    tree.end(input.offset);
  }
}
