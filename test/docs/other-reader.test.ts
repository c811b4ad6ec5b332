// SPDX-License-Identifier: Apache-2.0
/**
 * `formats/README.md` is enough to write a reader from: `docs/examples/read-blob.py`, which shares no code with ours, says of every
 * blob, sound or damaged, what ours says.
 */

import { execFile } from 'node:child_process';
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import t from 'tap';
import { DevstateError } from '../../src/errors.js';
import { RecordKeeper } from '../../src/formats/conversion/kept-record.js';
import { decodeEnvelope, EnvelopeRecord, NVME_STANDARD } from '../../src/formats/index.js';
import { PACKAGE_ROOT } from '../../src/package-root.js';
import { encodeBlob, fixture, MINIMAL_HEADER } from '../formats/blobs.js';
import { socketFolder, type Test } from '../support/served.js';

t.setTimeout(900_000);

const run = promisify(execFile);

interface Said {
  error?: string;
  format?: string;
  version?: string;
  records?: { type: number; flags: number; payload: string; kept?: object }[];
  metadata?: { [key: string]: unknown };
}

/** What the Python reader says of each blob. */
async function otherReader(t: Test, blobs: readonly Uint8Array[]): Promise<Said[]> {
  const folder = join(socketFolder(t), 'blobs');
  mkdirSync(folder);
  const paths = blobs.map((blob, index) => {
    const path = join(folder, String(index));
    writeFileSync(path, blob);
    return path;
  });
  const program = join(PACKAGE_ROOT, 'docs/examples/read-blob.py');
  const { stdout } = await run('python3', [program, ...paths], { maxBuffer: 1 << 28 });
  return stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
}

function ourCode(blob: Uint8Array): string | undefined {
  try {
    decodeEnvelope(blob);
    return undefined;
  } catch (error) {
    if (error instanceof DevstateError) return error.code;
    throw error;
  }
}

/** Compressed, kept and plain records, and metadata that readers do not know. */
function richBlob(): Uint8Array {
  const kept = {
    type: 0x20000,
    optional: true,
    formatFlags: 0x30000,
    payload: Buffer.from('a vendor’s own'),
  };
  return encodeBlob(
    [
      { type: 0x10000, flags: 0, payload: Buffer.alloc(1000, 'state ') },
      { type: 0x10001, flags: 0x10001, payload: Buffer.from('short') },
      ...Array.from(new RecordKeeper().keep(kept, { uuid: NVME_STANDARD.uuid, major: 1 }), (payload) => ({
        type: EnvelopeRecord.kept,
        flags: 1,
        payload,
      })),
    ],
    {
      ...MINIMAL_HEADER,
      features: ['deflate'],
      parameters: { queues: 4, big: 2 ** 40, less: -70_000, on: true, serial: 'Ü'.repeat(40) },
      other: { note: ['from', { the: 'future' }], raw: Uint8Array.of(1, 2, 3) },
    },
  );
}

const hasPython = process.env.PATH?.split(':').some((folder) => existsSync(join(folder, 'python3')));
const skip = hasPython === true ? false : 'there is no python3';

t.test('sound blobs', { skip }, async (t) => {
  const blobs = [fixture('minimal.bin'), fixture('newer-writer.bin'), richBlob()];
  for (const [index, said] of (await otherReader(t, blobs)).entries()) {
    const { header, records } = decodeEnvelope(blobs[index]!);
    t.equal(said.format, header.format);
    t.equal(said.version, `${header.version.major}.${header.version.minor}`);
    const { parameters, features } = header;
    t.match({ parameters: {}, features: [], ...said.metadata }, { parameters, features });
    t.same(
      said.records?.map(({ type, flags, payload }) => ({ type, flags, payload })),
      records.map(({ type, flags, payload }) => ({
        type,
        flags,
        payload: Buffer.from(payload).toString('hex'),
      })),
    );
    if (index === 2) {
      t.same(said.records?.at(-1)?.kept, {
        format: NVME_STANDARD.uuid,
        major: 1,
        type: 0x20000,
        original: false,
        continues: false,
      });
    }
  }
});

t.test('every byte changed, every length cut, something behind', { skip }, async (t) => {
  const rich = richBlob();
  const damaged = [fixture('minimal.bin'), rich].flatMap((blob) => [
    ...Array.from(blob, (byte, at) => {
      const changed = Uint8Array.from(blob);
      changed[at] = byte ^ (1 << (at % 8));
      return changed;
    }),
    ...Array.from(blob, (_, length) => blob.subarray(0, length)),
    Buffer.concat([blob, Buffer.alloc(1)]),
  ]);
  const said = await otherReader(t, damaged);
  t.equal(said.length, damaged.length);
  const differences = damaged.flatMap((blob, index) => {
    const [ours, theirs] = [ourCode(blob), said[index]?.error];
    return ours !== undefined && ours === theirs ? [] : [{ index, ours, theirs }];
  });
  t.same(differences, [], `${damaged.length} damaged blobs`);
});
