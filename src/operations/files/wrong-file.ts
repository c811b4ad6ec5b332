// SPDX-License-Identifier: Apache-2.0
/** What to say of a file that was named as a saved state and is something else. */

import { DevstateError } from '../../errors.js';
import { FOREIGN_KINDS, nextStepWith, recognise, SIGNATURE_LENGTH, saysWhat } from '../../formats/index.js';
import type { InputFile } from './input.js';

/** Bytes up to the end of a blob's magic. */
const MAGIC_END = 24;

/** Says what the input is, of an error that says what it is not; any other error as it is. */
export function explained(error: unknown, input: InputFile): unknown {
  if (!(error instanceof DevstateError)) return error;
  const why = whatItIs(input.head(SIGNATURE_LENGTH), error.code);
  if (why === undefined) return error;
  return new DevstateError(error.code, `${input.path} ${why}`, { cause: error });
}

/** A sentence on bytes that are no blob; undefined if the error is another, or nobody knows what they are. */
export function whatItIs(head: Uint8Array, code: string): string | undefined {
  if (head.length === 0 && code === 'DEVSTATE_E_ENVELOPE_TRUNCATED')
    return 'is empty: save or copy the state again';
  // Of a few bytes nobody can tell that they are no beginning of a blob.
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
