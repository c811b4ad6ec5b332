// SPDX-License-Identifier: Apache-2.0
/**
 * The description at the end of a stream: a JSON text of all device sections. It can be many MiB of a large machine, or
 * of somebody who wants to fill our memory, so it stays text; a device's part is parsed when its section is read.
 *
 *     { "configuration": {…}, "page_size": 4096, "devices": [ { "name": …, "instance_id": …, "fields": […] }, … ] }
 */
import type { ContentFile } from '../foreign/content.js';
import { ElementType } from './constants.js';
import { isObject, type Structure, structureOf } from './structure.js';

/** Bytes of a description that is read. */
export const DESCRIPTION_LENGTH_MAX = 8 << 20;
/** Bytes of the part for one device, and of all that is not for devices. */
const PART_LENGTH_MAX = 256 << 10;
const DEVICES_MAX = 1 << 16;
/** Type and length before the text. */
export const DESCRIPTION_HEADER_LENGTH = 5;
/** What is read of a file's end at first. */
const FIRST_TAIL = 1 << 20;

interface Part {
  readonly start: number;
  readonly end: number;
}

/** A device's part, and how many bytes it says the device's section has; undefined if it cannot be followed. */
interface DevicePart extends Part {
  readonly size: number | undefined;
}

export class VmDescription {
  /** Bytes of guest memory in one page, in the stream; null if it is not said. */
  readonly pageSize: number | null;
  readonly #text: Buffer;
  readonly #parts: ReadonlyMap<string, DevicePart>;

  private constructor(text: Buffer, pageSize: number | null, parts: ReadonlyMap<string, DevicePart>) {
    this.#text = text;
    this.pageSize = pageSize;
    this.#parts = parts;
  }

  /** Indexes a description's text, which is kept; undefined if it is none, or beyond the bounds above. */
  static parse(text: Uint8Array): VmDescription | undefined {
    const buffer = Buffer.from(text.buffer, text.byteOffset, text.length);
    const devices = text.length > DESCRIPTION_LENGTH_MAX ? undefined : deviceParts(buffer);
    const rest = devices && parseJson(withoutParts(buffer, devices));
    if (devices === undefined || !isObject(rest) || !Array.isArray(rest.devices)) return undefined;
    const parts = new Map<string, DevicePart>();
    for (const part of devices) {
      const json = parseJson(buffer.subarray(part.start, part.end));
      if (!isObject(json) || typeof json.name !== 'string' || typeof json.instance_id !== 'number')
        return undefined;
      parts.set(keyOf(json.name, json.instance_id), { ...part, size: structureOf(json)?.size });
    }
    const pageSize = typeof rest.page_size === 'number' && isPageSize(rest.page_size) ? rest.page_size : null;
    return new VmDescription(buffer, pageSize, parts);
  }

  /** Bytes of the text. */
  get length(): number {
    return this.#text.length;
  }

  /** Number of devices. */
  get devices(): number {
    return this.#parts.size;
  }

  /** Bytes of the data of a device's section; undefined if that cannot be told. */
  sizeOf(name: string, instance: number): number | undefined {
    return this.#parts.get(keyOf(name, instance))?.size;
  }

  /** The layout of a device's section, parsed anew; undefined if the description has none that can be followed. */
  device(name: string, instance: number): Structure | undefined {
    const part = this.#parts.get(keyOf(name, instance));
    return part && structureOf(parseJson(this.#text.subarray(part.start, part.end)));
  }
}

/**
 * Reads the description at the end of a file that holds a migration stream; undefined if there is none, as in a stream
 * that was cut.
 */
export function readVmDescription(file: ContentFile): VmDescription | undefined {
  for (let length = FIRST_TAIL; ; length *= 4) {
    const take = Math.min(length, file.size, DESCRIPTION_LENGTH_MAX + DESCRIPTION_HEADER_LENGTH);
    const tail = file.read(file.size - take, take);
    if (tail.lastIndexOf(0) >= DESCRIPTION_HEADER_LENGTH || take < length) {
      const text = descriptionAtEnd(tail);
      return text && VmDescription.parse(Buffer.from(text));
    }
  }
}

/**
 * The text of the description that `tail` ends with. Its length, above zero and below 2^24, makes a zero byte the last
 * one of the stream, as there is none in the text.
 */
export function descriptionAtEnd(tail: Uint8Array): Uint8Array | undefined {
  const zero = tail.lastIndexOf(0);
  const view = new DataView(tail.buffer, tail.byteOffset, tail.length);
  for (let at = Math.max(0, zero - 4); at < zero; at++) {
    const start = at + DESCRIPTION_HEADER_LENGTH;
    if (tail[at] !== ElementType.VMDESCRIPTION || start > tail.length) continue;
    if (view.getUint32(at + 1) === tail.length - start) return tail.subarray(start);
  }
  return undefined;
}

/** Whether a page can be so large: a power of two between 1 KiB, as the flags need, and 1 MiB. */
export function isPageSize(size: number): boolean {
  return Number.isInteger(size) && size >= 1 << 10 && size <= 1 << 20 && (size & (size - 1)) === 0;
}

function keyOf(name: string, instance: number): string {
  return `${instance} ${name}`;
}

function parseJson(text: Buffer): unknown {
  if (text.length > PART_LENGTH_MAX) return undefined;
  try {
    return JSON.parse(text.toString('utf8'));
  } catch {
    return undefined;
  }
}

/** Where the objects directly within the list `devices` lie; undefined if there are too many. */
function deviceParts(text: Buffer): Part[] | undefined {
  const parts: Part[] = [];
  let depth = 0;
  let start = 0;
  let key = '';
  let inDevices = false;
  for (let at = 0; at < text.length; at++) {
    switch (text[at]) {
      case 0x22: {
        const end = endOfString(text, at);
        if (depth === 1) key = text.toString('latin1', at + 1, Math.min(end, at + 16));
        at = end;
        break;
      }
      case 0x5b: // [
        depth++;
        if (depth === 2) inDevices = key === 'devices';
        break;
      case 0x7b: // {
        depth++;
        if (depth === 2) inDevices = false;
        if (depth === 3 && inDevices) start = at;
        break;
      case 0x7d: // }
        if (depth === 3 && inDevices) parts.push({ start, end: at + 1 });
        depth--;
        break;
      case 0x5d: // ]
        depth--;
        break;
    }
    if (parts.length > DEVICES_MAX) return undefined;
  }
  return parts;
}

/** Index of the quote that ends the string which begins at `start`. */
function endOfString(text: Buffer, start: number): number {
  let at = start + 1;
  while (at < text.length && text[at] !== 0x22) at += text[at] === 0x5c ? 2 : 1;
  return at;
}

/** The text with a `0` in place of each part; nothing, if that is too long. */
function withoutParts(text: Buffer, parts: readonly Part[]): Buffer {
  if (text.length - parts.reduce((sum, { start, end }) => sum + end - start, 0) > PART_LENGTH_MAX)
    return Buffer.alloc(0);
  const pieces: Buffer[] = [];
  let from = 0;
  for (const { start, end } of parts) {
    pieces.push(text.subarray(from, start), Buffer.from('0'));
    from = end;
  }
  return Buffer.concat([...pieces, text.subarray(from)]);
}
