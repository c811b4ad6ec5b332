// SPDX-License-Identifier: Apache-2.0
/** Waiting messages as they go to a successor: up to the bound they arrive, and what is not as described is refused. */

import t from 'tap';
import { packDocument, unpackDocument } from '../../src/documents/index.js';
import {
  Bundle,
  type BundleEntry,
  encodeTransferred,
  FdKind,
  sealedMemory,
} from '../../src/handoff/index.js';
import {
  BACKLOG_NAME,
  backlogSchema,
  MAX_BACKLOG_BYTES,
  MAX_BACKLOG_FDS,
  MAX_BACKLOG_MESSAGES,
  packBacklog,
  unpackBacklog,
} from '../../src/server/backlog-bundle.js';
import { MAX_MESSAGE_LENGTH } from '../../src/server/capabilities.js';
import { closeAll, type Fd } from '../../src/transport/index.js';
import { encodeHeader, HEADER_LENGTH, HeaderFlag } from '../../src/wire/index.js';
import { openFds } from '../support/closes.js';
import { eventfd, memfd } from '../support/memory.js';

/** Longest message of the handoff. */
const FRAME = 16 * 1024 * 1024;

function message(length: number, mark: number, fds: Fd[] = []): { bytes: Uint8Array; fds: Fd[] } {
  const bytes = new Uint8Array(length).fill(mark & 0xff);
  encodeHeader(new DataView(bytes.buffer), 0, mark & 0xffff, 9, length, HeaderFlag.TYPE_COMMAND);
  return { bytes, fds };
}

/** What the receiver has, once all of it was packed and went through the checks of a bundle. */
function transferred(entries: readonly BundleEntry[], document: unknown) {
  const bundle = new Bundle();
  bundle.add(
    entries,
    entries.map(({ fd }) => fd.duplicate()),
  );
  return { bundle, document: backlogSchema.parse(unpackDocument(packDocument(document))) };
}

async function roundTrip(backlog: readonly { bytes: Uint8Array; fds: Fd[] }[]) {
  const entries: BundleEntry[] = [];
  const packed = await packBacklog(backlog, (kind, name, fd) => entries.push({ kind, name, fd }));
  t.ok(encodeTransferred(entries.length, packed).length < FRAME / 8, 'the document stays short');
  const { bundle, document } = transferred(entries, packed);
  const unpacked = await unpackBacklog(document, bundle);
  bundle.requireAllTaken();
  closeAll(entries.map(({ fd }) => fd));
  return unpacked;
}

t.test('empty, small, and as many bytes, messages and fds as there may be', async (t) => {
  const before = openFds();
  const full = Math.floor(MAX_BACKLOG_BYTES / MAX_MESSAGE_LENGTH);
  const rest = MAX_BACKLOG_BYTES - full * MAX_MESSAGE_LENGTH;
  const cases = {
    empty: [],
    small: [message(HEADER_LENGTH, 1), message(100, 2, [eventfd(), eventfd()])],
    bytes: [...Array.from({ length: full }, (_, i) => message(MAX_MESSAGE_LENGTH, i)), message(rest, full)],
    messages: Array.from({ length: MAX_BACKLOG_MESSAGES }, (_, i) =>
      message(MAX_BACKLOG_BYTES / MAX_BACKLOG_MESSAGES, i),
    ),
    fds: Array.from({ length: MAX_BACKLOG_FDS / 16 }, (_, i) =>
      message(
        64,
        i,
        Array.from({ length: 16 }, () => eventfd()),
      ),
    ),
  };
  for (const [name, backlog] of Object.entries(cases)) {
    const unpacked = await roundTrip(backlog);
    t.equal(unpacked.length, backlog.length, name);
    t.ok(
      unpacked.every(({ bytes }, i) => Buffer.compare(bytes, backlog[i]!.bytes) === 0),
      `${name}: bytes`,
    );
    t.same(
      unpacked.map(({ fds }) => fds.length),
      backlog.map(({ fds }) => fds.length),
      `${name}: fds`,
    );
    for (const { fds } of [...backlog, ...unpacked]) closeAll(fds);
  }
  t.equal(openFds(), before);
});

t.test('what is not as described is refused, and nothing of it stays open', async (t) => {
  const before = openFds();
  const two = [message(64, 1).bytes, message(64, 2).bytes];
  const lengths = (...all: number[]) => all.map((length) => ({ length, fds: 0 }));
  const sealed = (parts: Uint8Array[]): Promise<Fd> => sealedMemory('test', parts);
  const cases: [string, Fd | undefined, unknown, RegExp][] = [
    ['no file', undefined, lengths(64, 64), /backlog is missing/],
    [
      'a file that is shorter',
      await sealed([two[0]!]),
      lengths(64, 64),
      /128 bytes are said to be in a file of 64/,
    ],
    ['a file that is longer', await sealed([...two, two[0]!]), lengths(64, 64), /in a file of 192/],
    [
      'a message that says another length',
      await sealed(two),
      lengths(32, 96),
      /a waiting message of 32 bytes is none/,
    ],
    [
      'a file of more than is taken',
      await sealed([new Uint8Array(MAX_BACKLOG_BYTES + 1)]),
      lengths(64, 64),
      /at most 16777216/,
    ],
    [
      'more bytes than are taken',
      await sealed(two),
      lengths(...Array(17).fill(MAX_MESSAGE_LENGTH)),
      /16777216 are taken/,
    ],
    [
      'bytes that are no message',
      undefined,
      [{ bytes: new Uint8Array(3), fds: 0 }],
      /a waiting message of 3 bytes is none/,
    ],
    [
      'fds that did not come',
      await sealed(two),
      [
        { length: 64, fds: 1 },
        { length: 64, fds: 0 },
      ],
      /backlog:0 is missing/,
    ],
    ['too many fds', await sealed(two), Array(65).fill({ length: 64, fds: 16 }), /./],
  ];
  for (const [name, fd, document, words] of cases) {
    const entries = fd === undefined ? [] : [{ kind: FdKind.SEALED, name: BACKLOG_NAME, fd }];
    const there = transferred(entries, document);
    await t.rejects(
      unpackBacklog(there.document, there.bundle),
      { code: 'DEVSTATE_E_HANDOFF_BUNDLE', message: words },
      name,
    );
    there.bundle.close();
    fd?.close();
  }
  const open = memfd(4096);
  const entry = { kind: FdKind.SEALED, name: BACKLOG_NAME, fd: open };
  const bundle = new Bundle();
  t.throws(() => bundle.add([entry], [open]), /should be a sealed/, 'a file that is not sealed');
  open.close();
  for (const wrong of [
    lengths(8),
    [{ bytes: 'AAAA', fds: 0 }],
    [{ bytes: new Uint8Array(MAX_MESSAGE_LENGTH + 1), fds: 0 }],
    lengths(MAX_MESSAGE_LENGTH + 1),
    [{ length: 64, fds: 17 }],
    lengths(...Array(MAX_BACKLOG_MESSAGES + 1).fill(64)),
  ])
    t.notOk(backlogSchema.safeParse(wrong).success);
  t.equal(openFds(), before);
});
