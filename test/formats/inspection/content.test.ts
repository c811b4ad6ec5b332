// SPDX-License-Identifier: Apache-2.0
/** The text and the JSON of content that holds content: bytes are those of the file, what is too much is left out, and said to be. */

import t from 'tap';
import {
  type ContentSection,
  envelopeKind,
  FOREIGN_KINDS,
  inspect,
  renderInspection,
  withHex,
} from '../../../src/formats/index.js';
import { encodeBlob, fixture } from '../blobs.js';
import {
  dbusVmstate,
  EOF,
  end,
  full,
  HEADER,
  helperState,
  join,
  part,
  start,
  VFIO,
  vfioData,
} from '../qemu-stream/streams.js';

/** Sections of the file that have none within. */
function leaves(sections: readonly ContentSection[]): ContentSection[] {
  return sections.flatMap((section) => (section.sections.length > 0 ? leaves(section.sections) : [section]));
}

t.test('bytes shown are those of the file, however the content within came', async (t) => {
  const state = fixture('foreign/mtty.bin');
  const vfio = { id: 3, name: '0000:00:03.0/vfio' };
  const stream = join(
    HEADER,
    start(vfio, VFIO.SETUP, VFIO.END),
    part(3, vfioData(state.subarray(0, 40)), VFIO.END),
    end(3, vfioData(state.subarray(40)), VFIO.END),
    full({ id: 4, name: 'dbus-vmstate/dbus-vmstate' }, dbusVmstate(1, [helperState('a', encodeBlob([]))])),
    EOF,
  );
  const found = await inspect([stream], { kinds: FOREIGN_KINDS });
  if (found.kind !== 'content') throw new Error(found.kind);
  t.equal(found.error, null);
  const within = found.content.sections.flatMap(({ content, sections }) => [
    content,
    ...sections.map((s) => s.content),
  ]);
  t.same(within.flatMap((content) => content?.kind ?? []).sort(), ['envelope', 'mtty']);
  const asked: number[] = [];
  const bytes = (offset: number, length: number) => {
    asked.push(offset);
    return stream.subarray(offset, offset + length);
  };
  const text = renderInspection(found, { bytes });
  const offsets = leaves(found.content.sections).map(({ offset }) => offset);
  t.same(asked, offsets, 'each once, and nothing else');
  t.match(text, /is mtty\n.*port 0 .*36 B @24\n.*port 1 /s, 'what is within is described by its own offsets');
  const { content } = withHex(found, bytes) as {
    content: { sections: (ContentSection & { hex?: string })[] };
  };
  const hexes = (sections: readonly (ContentSection & { hex?: string })[]): string[] =>
    sections.flatMap((section) =>
      section.sections.length > 0 ? hexes(section.sections) : [section.hex ?? 'none'],
    );
  t.same(
    hexes(content.sections),
    leaves(found.content.sections).map(({ offset, size }) => stream.toString('hex', offset, offset + size)),
  );
});

t.test('many pieces of content: the first are told of in full, of all the sizes', async (t) => {
  const none = new Uint8Array(0);
  const blob = encodeBlob(
    Array.from({ length: 3000 }, (_, index) => ({ type: 0x10000 + index, flags: 1, payload: none })),
  );
  const helpers = Array.from({ length: 80 }, (_, index) => helperState(`h${index}`, blob));
  const stream = join(
    HEADER,
    full({ id: 4, name: 'dbus-vmstate/dbus-vmstate' }, dbusVmstate(80, helpers)),
    EOF,
  );
  const found = await inspect([stream], { kinds: FOREIGN_KINDS });
  if (found.kind !== 'content') throw new Error(found.kind);
  const reports = (found.content.sections[1]?.sections ?? []).map(({ content }) => content);
  t.equal(reports.length, 80);
  for (const report of reports) {
    t.match(report, { kind: 'envelope', size: blob.length, error: null });
    t.equal(
      report?.sections.reduce((sum, { size }) => sum + size, 0),
      blob.length,
    );
  }
  const counts = reports.map((report) => report?.sections.length ?? 0);
  t.equal(counts[0], 1002, 'header, records up to the bound, rest');
  t.same(
    [counts.at(-1), reports.at(-1)?.sections[0]],
    [
      1,
      {
        name: 'further sections',
        offset: reports.at(-1)!.sections[0]!.offset,
        size: blob.length,
        fields: { sections: 1002 },
        first: null,
        sections: [],
        extract: null,
        content: null,
      },
    ],
  );
  t.ok(JSON.stringify(found).length < 6_000_000);
});

t.test('more sections than text shows: the first and the last', async (t) => {
  const found = await inspect([fixture('newer-writer.bin')], { kinds: FOREIGN_KINDS });
  const section = (index: number) => ({
    name: `part ${index}`,
    offset: index * 8,
    size: 8,
    fields: {},
    first: null,
    sections: [],
    extract: null,
    content: null,
  });
  const content = {
    kind: 'parts',
    size: 8 * 700,
    fields: {},
    error: null,
    sections: Array.from({ length: 700 }, (_, index) => section(index)),
  };
  const text = renderInspection({ ...found, kind: 'content', content } as never);
  t.match(text, /├─ part 299 .*\n.*├─ … 200 further rows .*\n.*├─ part 500 /);
  t.match(text, /└─ part 699 /);
  t.notMatch(text, /part (300|499)/);
});

t.test('a blob as content: its sections are all of it', async (t) => {
  const blob = fixture('newer-writer.bin');
  const kind = envelopeKind([]);
  t.ok(kind.matches(blob.subarray(0, kind.probeLength)));
  const reader = kind.read({ offset: 1000 });
  for (const byte of blob) reader.push(Uint8Array.of(byte));
  const { sections, size } = reader.finish();
  t.equal(size, blob.length);
  t.equal(sections[0]?.offset, 1000, 'offsets count from the start of the whole input');
  t.equal(
    sections.reduce((sum, section) => sum + section.size, 0),
    blob.length,
  );
});
