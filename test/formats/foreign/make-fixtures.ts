// SPDX-License-Identifier: Apache-2.0
/**
 * Writes `formats/fixtures/foreign/*.bin` from the samples, and what is read in them as `.json`, for somebody to look
 * through before it is committed: `node dist/test/formats/foreign/make-fixtures.js`
 */
import { writeFileSync } from 'node:fs';
import { FOREIGN_KINDS } from '../../../src/formats/foreign/index.js';
import { readWith } from './reading.js';
import { SAMPLES } from './samples.js';

const FOLDER = new URL('../../../../formats/fixtures/foreign/', import.meta.url);

for (const [name, bytes] of SAMPLES) {
  const kind = FOREIGN_KINDS.find((one) => one.name === name);
  if (kind === undefined) throw new Error(`no kind ${name}`);
  writeFileSync(new URL(`${name}.bin`, FOLDER), bytes);
  writeFileSync(new URL(`${name}.json`, FOLDER), `${JSON.stringify(readWith(kind, bytes), null, 2)}\n`);
}
