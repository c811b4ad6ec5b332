// SPDX-License-Identifier: Apache-2.0
/**
 * A file within a file: what an operator has may be compressed, or have libvirt's header before QEMU's stream. Each layer
 * is one report with the next one inside, down to what holds a state; `MAX_LAYERS` of them, streamed.
 */

import { DevstateError } from '../../errors.js';
import {
  type ContentFile,
  type ContentReport,
  type ContentSection,
  detectContent,
  type FieldMap,
  hasMagic,
  type Inspection,
  type InspectOptions,
  inspect,
  recognise,
  reportOf,
  SIGNATURE_LENGTH,
} from '../../formats/index.js';
import { decompressed, isCompression, TooMuchOutput } from './decompress.js';
import {
  describeLibvirtData,
  isReadable,
  LIBVIRT_HEADER_LENGTH,
  type LibvirtFormat,
  parseLibvirtHeader,
} from './libvirt-save.js';
import { PeekedStream } from './peek.js';

/** Layers that are taken off. */
const MAX_LAYERS = 4;
/** What may come out of a compressed file unless told otherwise: so much, or so many times what went in. */
const OUTPUT_MIN = 256 * 1024 * 1024;
const RATIO = 64;
/** Zeros before a stream that are passed over: QEMU's `file:PATH,offset=N` leaves room there. */
const PADDING_MIN = 16;
const QEMU_MAGIC = Buffer.from('QEVM');

export interface LayersOptions extends InspectOptions {
  /** Most bytes that are decompressed; by default what is sane for the size of the file. */
  readonly limit?: number | undefined;
}

/** As `inspect`, through compression and libvirt's header. Rejects with what `chunks` throws. */
export function inspectLayers(
  chunks: AsyncIterable<Uint8Array>,
  options: LayersOptions,
): Promise<Inspection> {
  return inspectLayer(chunks, options, 0);
}

async function inspectLayer(
  chunks: AsyncIterable<Uint8Array>,
  options: LayersOptions,
  depth: number,
): Promise<Inspection> {
  const stream = new PeekedStream(chunks);
  const head = await stream.peek(SIGNATURE_LENGTH);
  const own = hasMagic(head) || detectContent(head, options.kinds) !== undefined;
  if (own || depth >= MAX_LAYERS) return inspect(stream.rest(), options);
  const header = parseLibvirtHeader(head);
  if (header !== undefined) return inspectLibvirt(stream, options, depth);
  const padding = zerosBeforeStream(head);
  if (padding > 0) return inspectPadded(stream, padding, options, depth);
  const name = recognise(head)?.signature.name ?? '';
  if (!isCompression(name)) return inspect(stream.rest(), options);
  const layer = new Layer(name, `compressed with ${name}`);
  await layer.inspectInside(stream, name, 0, options, depth);
  return layer.finish();
}

async function inspectLibvirt(
  stream: PeekedStream,
  options: LayersOptions,
  depth: number,
): Promise<Inspection> {
  const head = await stream.take(LIBVIRT_HEADER_LENGTH);
  const header = parseLibvirtHeader(head)!;
  const { version, wasRunning, format, formatNumber, partial, dataLength } = header;
  const layer = new Layer('libvirt-save', 'libvirt save file');
  layer.fields = {
    version,
    complete: !partial,
    was_running: wasRunning,
    compression: format ?? `unknown (${formatNumber})`,
  };
  layer.section('header', head, { ...layer.fields });
  if (!isReadable(header)) {
    layer.fail(
      'DEVSTATE_E_CONTENT_DAMAGED',
      `its data are ${dataLength} bytes long, more than libvirt writes`,
    );
    return layer.finishUnread(stream);
  }
  const data = await stream.take(dataLength);
  const domain = describeLibvirtData(data, header);
  layer.fields = { ...layer.fields, domain: domain.domain ?? null, uuid: domain.uuid ?? null };
  layer.section('domain XML', data, domain);
  if (data.length < dataLength) {
    layer.fail(
      'DEVSTATE_E_CONTENT_TRUNCATED',
      'it stops within the XML of the domain: copy or save it again',
    );
    return layer.finish();
  }
  if (format === undefined) {
    const why = `its stream is compressed in a way unknown here (number ${formatNumber})`;
    layer.fail('DEVSTATE_E_CONTENT_UNSUPPORTED', why);
    return layer.finishUnread(stream);
  }
  const offset = LIBVIRT_HEADER_LENGTH + dataLength;
  if (partial) {
    const why = 'libvirt has not finished it: the saving has failed or is still under way';
    layer.fail('DEVSTATE_E_CONTENT_TRUNCATED', why);
  }
  await layer.inspectInside(stream, format, offset, options, depth);
  return layer.finish();
}

/** Bytes of zeros before a QEMU stream; 0 where there is none. */
function zerosBeforeStream(head: Buffer): number {
  if (head.length < PADDING_MIN || !head.subarray(0, PADDING_MIN).every((byte) => byte === 0)) return 0;
  const at = head.findIndex((byte) => byte !== 0);
  return at > 0 && head.subarray(at, at + QEMU_MAGIC.length).equals(QEMU_MAGIC) ? at : 0;
}

async function inspectPadded(
  stream: PeekedStream,
  padding: number,
  options: LayersOptions,
  depth: number,
): Promise<Inspection> {
  const layer = new Layer('padded', 'file that begins with zeros');
  layer.section('zeros', await stream.take(padding), {});
  await layer.inspectInside(stream, 'raw', padding, options, depth);
  return layer.finish();
}

/** What is put together of one layer. */
class Layer {
  fields: FieldMap = {};
  readonly #kind: string;
  #title: string;
  readonly #sections: ContentSection[] = [];
  #size = 0;
  #error: ContentReport['error'] = null;

  constructor(kind: string, title: string) {
    this.#kind = kind;
    this.#title = title;
  }

  section(name: string | null, bytes: Uint8Array, fields: FieldMap): void {
    const first = Object.keys(fields).length > 0 ? null : Buffer.from(bytes.subarray(0, 16)).toString('hex');
    this.#add({ name, size: bytes.length, fields, first, content: null });
  }

  #add(part: Pick<ContentSection, 'name' | 'size' | 'fields' | 'first' | 'content'>): void {
    this.#sections.push({ ...part, offset: this.#size, sections: [], extract: null });
    this.#size += part.size;
  }

  /** The first that is wrong counts. */
  fail(code: DevstateError['code'], message: string): void {
    this.#error ??= { code, message, offset: null };
  }

  /** @param offset where what is left begins in the file, if it is one */
  async inspectInside(
    stream: PeekedStream,
    format: LibvirtFormat | Parameters<typeof decompressed>[1],
    offset: number,
    { file, limit, ...options }: LayersOptions,
    depth: number,
  ): Promise<void> {
    let size = 0;
    const counted = async function* (): AsyncGenerator<Uint8Array> {
      for await (const chunk of stream.rest()) {
        size += chunk.length;
        yield chunk;
      }
    };
    const inner: { decompressedSize?: number } = {};
    const plain = format === 'raw' || format === 'sparse';
    const chunks = plain
      ? counted()
      : this.#measured(
          decompressed(counted(), format, {
            limit: (bytesIn) => limit ?? Math.max(OUTPUT_MIN, RATIO * bytesIn),
          }),
          inner,
        );
    const within = plain && file !== undefined ? { file: behind(file, offset) } : {};
    const found = await inspectLayer(chunks, { ...options, ...within, limit }, depth + 1);
    const { title, report } = reportOf(found);
    this.#title += `: ${title}`;
    // What is compressed must be read to its end, or it is not known how long it is.
    this.#add({
      name: plain ? 'content' : `compressed with ${format}`,
      size,
      fields: plain ? {} : { decompressed_size: inner.decompressedSize ?? 0 },
      first: report === null && found.kind === 'unknown' ? found.first : null,
      content: report,
    });
    if ((plain ? size : inner.decompressedSize) === 0)
      this.fail('DEVSTATE_E_CONTENT_TRUNCATED', 'nothing is in it: save or copy it again');
    else if (found.error !== null) {
      const { code, message } = found.error;
      this.fail(code as DevstateError['code'], plain ? message : `in what is compressed: ${message}`);
    }
  }

  /** Ends where the decompressor fails; why becomes the error. */
  async *#measured(
    pieces: AsyncIterable<Uint8Array>,
    inner: { decompressedSize?: number },
  ): AsyncGenerator<Uint8Array> {
    let size = 0;
    try {
      for await (const piece of pieces) {
        size += piece.length;
        yield piece;
      }
    } catch (error) {
      if (error instanceof TooMuchOutput) {
        const why = `more than ${size} bytes come out of it, far more than it is long`;
        this.fail('DEVSTATE_E_CONTENT_UNSUPPORTED', `${why}: it was read so far; --limit SIZE reads on`);
      } else if (error instanceof DevstateError && error.code.startsWith('DEVSTATE_E_CONTENT_')) {
        this.fail(error.code, error.message);
      } else throw error;
    } finally {
      inner.decompressedSize = size;
    }
  }

  /** What follows is passed over. */
  async finishUnread(stream: PeekedStream): Promise<Inspection> {
    const first = await stream.peek(16);
    const shown = Buffer.from(first).toString('hex');
    let size = 0;
    for await (const chunk of stream.rest()) size += chunk.length;
    if (size > 0) this.#add({ name: null, size, fields: {}, first: shown, content: null });
    return this.finish();
  }

  finish(): Inspection {
    const content: ContentReport = {
      kind: this.#kind,
      size: this.#size,
      fields: this.fields,
      sections: this.#sections,
      error: this.#error,
    };
    const error = this.#error === null ? null : { ...this.#error, record: null };
    return { kind: 'content', size: this.#size, title: this.#title, content, error };
  }
}

function behind(file: ContentFile, offset: number): ContentFile {
  return {
    size: Math.max(0, file.size - offset),
    read: (at, length) => file.read(offset + at, length),
  };
}
