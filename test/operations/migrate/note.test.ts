// SPDX-License-Identifier: Apache-2.0
/** A manager's note: what is written is read, what an older manager wrote is read too, and anything else is no note. */

import t from 'tap';
import type { MigrationClient } from '../../../src/client/index.js';
import { packDocument } from '../../../src/documents/index.js';
import { clearNote, type Note, readNote, writeNote } from '../../../src/operations/migrate/note.js';

/** The bytes that a device server keeps. */
class Keeper {
  bytes: Uint8Array = new Uint8Array(0);

  get device(): MigrationClient {
    return {
      note: async () => this.bytes,
      setNote: async (bytes: Uint8Array) => {
        this.bytes = bytes;
      },
    } as unknown as MigrationClient;
  }
}

const note: Note = {
  id: 'nvme0',
  devices: ['nvme0', 'nvme1'],
  running: true,
  destination: { nvme0: '/run/nvme0.sock' },
  mayRunThere: false,
};

t.test('what is written is read', async (t) => {
  const keeper = new Keeper();
  t.equal(await readNote(keeper.device), undefined, 'there is none');
  await writeNote(keeper.device, note);
  t.strictSame(await readNote(keeper.device), note);
  t.not(keeper.bytes[0], 0x7b, 'no JSON');
  await clearNote(keeper.device);
  t.equal(await readNote(keeper.device), undefined);
});

t.test('a note of an older manager is read', async (t) => {
  const keeper = new Keeper();
  keeper.bytes = new TextEncoder().encode(
    JSON.stringify({ id: 'nvme0', devices: ['nvme0'], running: false }),
  );
  t.strictSame(await readNote(keeper.device), { id: 'nvme0', devices: ['nvme0'], running: false });
});

t.test('what another program has left is no note', async (t) => {
  const keeper = new Keeper();
  const texts = ['{', '{}', 'a note', '\0'].map((text) => new TextEncoder().encode(text));
  for (const bytes of [...texts, packDocument({ id: 1 }), packDocument([note]), Uint8Array.of(0xc1)]) {
    keeper.bytes = bytes;
    t.equal(await readNote(keeper.device), undefined, Buffer.from(bytes).toString('latin1'));
  }
});
