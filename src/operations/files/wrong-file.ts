// SPDX-License-Identifier: Apache-2.0
/** What to say of a file that was named as a saved state and is something else. */

import { DevstateError } from '../../errors.js';
import {
  detectContent,
  FOREIGN_KINDS,
  nextStepWith,
  recognise,
  SIGNATURE_LENGTH,
  saysWhat,
} from '../../formats/index.js';

/** Bytes up to the end of a blob's magic. */
const MAGIC_END = 24;

/** Thrown for bytes that are to be loaded and are no state of a device, by who does not know the file's name. */
export class WrongFile extends DevstateError {}

/** What the bytes that a file begins with are, with its article, if certainly no state that a device has saved. */
export function noDeviceState(head: Uint8Array): string | undefined {
  const layer = LAYERS.find((kind) => kind.matches(head.subarray(0, kind.probeLength)));
  if (layer !== undefined) return `a ${layer.title}`;
  const content = detectContent(head);
  if (content !== undefined && !isVmContent(content.name)) return undefined;
  return saysWhat(head, FOREIGN_KINDS);
}

/** Kinds of content that hold a whole VM, not a device. */
export function isVmContent(kind: string): boolean {
  return kind.startsWith('qemu-');
}

/** A file as far as this looks at it. */
interface NamedFile {
  readonly path: string;
  /** Its first bytes, at most so many. */
  head(length: number): Uint8Array;
}

/** Says what the input is, of an error that says what it is not; any other error as it is. */
export function explained(error: unknown, input: NamedFile): unknown {
  if (!(error instanceof DevstateError)) return error;
  if (error instanceof WrongFile) return new DevstateError(error.code, `${input.path} ${error.message}`);
  const why = whatItIs(input.head(SIGNATURE_LENGTH), error.code);
  if (why === undefined) return error;
  return new DevstateError(error.code, `${input.path} ${why}`, { cause: error });
}

/** A sentence on bytes that are no blob; undefined if the error is another, or if it is unknown what they are. */
export function whatItIs(head: Uint8Array, code: string): string | undefined {
  if (head.length === 0 && code === 'DEVSTATE_E_ENVELOPE_TRUNCATED')
    return 'is empty: save or copy the state again';
  // A few bytes may be the beginning of a blob.
  const isShort = code === 'DEVSTATE_E_ENVELOPE_TRUNCATED' && head.length < MAGIC_END;
  if (code !== 'DEVSTATE_E_ENVELOPE_MAGIC' && !isShort) return undefined;
  const what = saysWhat(head, [...FOREIGN_KINDS, ...LAYERS]);
  if (what === undefined) return undefined;
  const known = [...FOREIGN_KINDS, ...LAYERS].some((kind) =>
    kind.matches(head.subarray(0, kind.probeLength)),
  );
  const signature = recognise(head)?.signature;
  const next =
    known || signature === undefined ? 'devstate inspect shows what is in it' : nextStepWith(signature);
  return `is ${what}, not a device state that devstate has saved: ${next}`;
}

/** Files that hold a QEMU stream, which inspect looks into. */
const LAYERS = [
  {
    title: 'libvirt save file',
    probeLength: 16,
    matches: (head: Uint8Array) => /^LibvirtQemud(Save|Part)$/.test(Buffer.from(head).toString('latin1')),
  },
];
