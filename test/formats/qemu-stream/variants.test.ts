// SPDX-License-Identifier: Apache-2.0
/** Streams that capabilities make different, streams that cannot be followed, streams that want too much of us. */
import t from 'tap';
import { markKind, read, sumOfSizes } from './reading.js';
import {
  be32,
  be64,
  blocks,
  capabilities,
  command,
  configuration,
  counted,
  dbusVmstate,
  description,
  device,
  EOF,
  end,
  field,
  footer,
  full,
  HEADER,
  helperState,
  join,
  machine,
  PAGE,
  part,
  RAM,
  RAM_EOS,
  start,
  subsection,
  u8,
  VFIO,
  vfioData,
  vfioTag,
} from './streams.js';

const RAM_SECTION = { id: 2, name: 'ram', version: 4 };
/** A stream of these elements, whole. */
const stream = (...elements: Uint8Array[]) => join(HEADER, ...elements, EOF);

t.test('mapped-ram: pages lie in the file behind their block', async (t) => {
  const before = join(HEADER, configuration('pc', capabilities('mapped-ram')));
  const opening = join(u8(1), be32(2), counted('ram'), be32(0), be32(4));
  const block = (name: string, length: number, from: number) => {
    const header = from + 1 + name.length + 8 + 28;
    const pages = Math.ceil((header + 1) / PAGE) * PAGE;
    const mapped = join(be32(1), be64(PAGE), be64(header), be64(pages));
    return join(counted(name), be64(length), mapped, Buffer.alloc(pages - header + length, 0x7e));
  };
  const total = be64(3 * PAGE + RAM.MEM_SIZE);
  // Offsets in the stream are those of the file, which may hold something else first.
  for (const [base, chunks] of [
    [0, []],
    [0, [100, 3000, 5000]],
    [0x2345, []],
  ] as const) {
    const first = block('pc.ram', 2 * PAGE, base + before.length + opening.length + total.length);
    const second = block('pc.rom', PAGE, base + before.length + opening.length + total.length + first.length);
    const bytes = join(before, opening, total, first, second, RAM_EOS, footer(2), end(2, RAM_EOS), EOF);
    const report = read(bytes, { chunks, offset: base });
    t.equal(report.error, null);
    t.match(report.sections[2], {
      name: 'ram',
      fields: { blocks: { 'pc.ram': 2 * PAGE, 'pc.rom': PAGE } },
      sections: [
        { name: 'pc.ram', size: first.length, fields: { pageSize: PAGE, length: 2 * PAGE } },
        { name: 'pc.rom', size: second.length },
      ],
    });
    t.equal(sumOfSizes(report.sections), bytes.length);
  }
  const shared = join(be32(1), be64(PAGE), be64(0), be64(0));
  const both = configuration('pc', capabilities('mapped-ram', 'x-ignore-shared'));
  const unmapped = stream(both, start(RAM_SECTION, blocks(['mem', PAGE, join(be64(0), shared)]), RAM_EOS));
  t.equal(read(unmapped).error, null);
});

t.test('memory blocks with more about them', async (t) => {
  const ignoring = stream(
    configuration('pc', capabilities('x-ignore-shared')),
    start(RAM_SECTION, blocks(['mem', PAGE, be64(0xfffc0000)], ['rom', PAGE, be64(0)]), RAM_EOS),
  );
  t.equal(read(ignoring).error, null);
  const advise = command(3, join(be64(0x201000), be64(PAGE)));
  const huge = blocks(['mem', 2 << 20, Buffer.alloc(0)], ['rom', PAGE, be64(PAGE)], ['more', 2 << 20]);
  const postcopy = stream(advise, start(RAM_SECTION, huge, RAM_EOS), end(2, RAM_EOS));
  t.match(read(postcopy), {
    error: null,
    sections: [{}, {}, { fields: { blocks: { mem: 2 << 20, rom: PAGE, more: 2 << 20 } } }, {}, {}],
  });
});

t.test('pages of another size', async (t) => {
  const large = 16384;
  const pages = part(2, join(be64(large + RAM.PAGE), counted('mem'), Buffer.alloc(large)), RAM_EOS);
  const memory = [start(RAM_SECTION, blocks(['mem', large]), RAM_EOS), pages];
  const bits = configuration('virt', subsection('configuration/target-page-bits', 1, be32(14)));
  t.match(read(stream(bits, ...memory)), {
    error: null,
    sections: [{}, {}, {}, { fields: { pages: 1 } }, {}],
  });
  const described = join(stream(...memory), description({ page_size: large, devices: [] }));
  t.equal(read(described).error, null, 'the description says the size, in a file');
});

t.test('a packaged stream', async (t) => {
  const disk = full({ id: 7, name: 'disk' }, Buffer.alloc(50, 1));
  const inner = join(command(4), disk, full({ id: 8, name: 'net' }, Buffer.alloc(9)), command(5));
  const bytes = stream(
    start(RAM_SECTION, blocks(['mem', PAGE]), RAM_EOS),
    command(7, be32(inner.length)),
    inner,
    end(2, RAM_EOS),
  );
  for (const pipe of [false, true]) {
    t.match(read(bytes, { pipe }), {
      error: null,
      sections: [
        { name: 'header' },
        { name: 'ram' },
        {
          fields: { command: 'PACKAGED', packaged: inner.length },
          sections: [
            { name: 'command' },
            { name: 'disk', size: disk.length },
            { name: 'net' },
            { name: 'command' },
          ],
        },
        { name: 'ram' },
        { name: 'end of stream' },
      ],
    });
  }
  const nested = stream(command(7, be32(9)), command(7, be32(0)));
  t.match(read(nested).error, { code: 'DEVSTATE_E_CONTENT_UNSUPPORTED', offset: 17 });
  const tooShort = stream(command(7, be32(20)), disk);
  t.match(read(tooShort).error, { code: 'DEVSTATE_E_CONTENT_DAMAGED', message: /packaged stream/ });
});

t.test('a description that does not fit is not followed', async (t) => {
  const devices = [full({ id: 1, name: 'a' }, Buffer.alloc(8)), full({ id: 2, name: 'b' }, Buffer.alloc(8))];
  const layout = machine(
    device('a', [field('x', 'uint64', 8)]),
    device('b', [field('x', 'uint32', 4)], { subsections: [] }),
  );
  const report = read(join(stream(...devices), description(layout)));
  t.match(report, {
    error: null,
    sections: [
      {},
      { fields: { state: { x: 0 } } },
      { name: 'b', fields: { length: 8 }, first: '0000000000000000' },
      {},
      { fields: { devices: 2, differing: ['b'] } },
    ],
  });
  const moved = machine(device('a', [], { subsections: [{ vmsd_name: 'xx', fields: [] }] }));
  const wrong = read(join(stream(full({ id: 1, name: 'a' }, Buffer.alloc(8))), description(moved)));
  t.match(wrong, { error: null, sections: [{}, { name: 'a', first: '0000000000000000' }, {}, {}] });
});

t.test('a description of any content', async (t) => {
  const disk = full({ id: 1, name: 'disk' }, Buffer.alloc(8));
  const deep = `${'{"struct":{"fields":['.repeat(2000)}${']}}'.repeat(2000)}`;
  const cases: [what: string, json: object | string][] = [
    ['no JSON', '{"devices": ['],
    ['no list', { devices: 5 }],
    ['not objects', { devices: [1, 2] }],
    ['no names', machine({ instance_id: 0, fields: [] })],
    ['endless lists', machine(device('disk', [field('x', 'uint8', 0, { array_len: 2 ** 52 })]))],
    ['too large', machine(device('disk', [field('x', 'uint8', 2 ** 52, { array_len: 2 ** 52 })]))],
    ['wrong sizes', machine(device('disk', [field('x', 'uint64', 8, { array_len: -1 })]))],
    ['odd sizes', machine(device('disk', [field('x', 'uint64', 5), field('y', 'int64', 3)]))],
    ['deep', `{"devices":[{"name":"disk","instance_id":0,"fields":[${deep}]}]}`],
    ['names of its own', machine(device('disk', [field('__proto__', 'uint64', 8)]))],
    ['brackets in names', machine(device('disk', [field('}]"{[\\', 'uint64', 8)]))],
    ['text behind', `{"page_size":4096.5,"devices":[]}${' '.repeat(100)}`],
  ];
  for (const [what, json] of cases) {
    const bytes = join(stream(disk), description(json));
    const report = read(bytes);
    t.equal(report.error, null, what);
    t.equal(sumOfSizes(report.sections), bytes.length, what);
    t.same(read(bytes, { pipe: true }), report, what);
  }
  const own = read(join(stream(disk), description(cases[9]![1])));
  t.equal(JSON.stringify(own.sections[1]?.fields.state), '{"__proto__":0}');
  t.equal({}.toString(), '[object Object]');
});

t.test('what cannot be followed is refused by name, and the rest is shown as unknown', async (t) => {
  const memory = start(RAM_SECTION, blocks(['mem', 2 * PAGE]), RAM_EOS);
  const vfio = start({ id: 5, name: 'x/vfio' }, VFIO.SETUP, VFIO.END);
  const helpers = { id: 6, name: 'dbus-vmstate/dbus-vmstate' };
  const mapped = (...header: Buffer[]) => [
    configuration('pc', capabilities('mapped-ram')),
    start(RAM_SECTION, blocks(['mem', PAGE, join(...header)])),
  ];
  const cases: [pattern: RegExp, code: 'DAMAGED' | 'UNSUPPORTED', ...elements: Uint8Array[]][] = [
    [/RDMA/, 'UNSUPPORTED', memory, part(2, be64(RAM.HOOK))],
    [/flags 0x1,/, 'DAMAGED', memory, part(2, be64(1))],
    [
      /larger than all/,
      'DAMAGED',
      start(RAM_SECTION, be64(PAGE + RAM.MEM_SIZE), counted('mem'), be64(2 * PAGE)),
    ],
    [/XBZRLE/, 'DAMAGED', memory, part(2, be64(RAM.XBZRLE), counted('mem'), u8(2), u8(0), u8(0))],
    [/layout of version 2/, 'UNSUPPORTED', ...mapped(be32(2), Buffer.alloc(24))],
    [/cannot be/, 'DAMAGED', ...mapped(be32(1), be64(PAGE), be64(1), be64(PAGE))],
    [/cannot be/, 'DAMAGED', ...mapped(be32(1), be64(PAGE), be64(2 ** 52), be64(-1))],
    [/does not end with its footer/, 'DAMAGED', join(memory.subarray(0, -1), u8(9)), command(11)],
    [/never started/, 'DAMAGED', part(3)],
    [/begins with 0x09/, 'DAMAGED', u8(9)],
    [/configuration\/new/, 'UNSUPPORTED', configuration('pc', subsection('configuration/new', 1, be32(1)))],
    [
      /pages of 2\^3 /,
      'DAMAGED',
      configuration('pc', subsection('configuration/target-page-bits', 1, be32(3))),
    ],
    [
      /4294967295 capabilities/,
      'DAMAGED',
      configuration('pc', subsection('configuration/capabilities', 1, be32(-1 >>> 0))),
    ],
    [/name is 4294967295 bytes/, 'DAMAGED', u8(7), be32(-1 >>> 0)],
    [/tag 0xffffffffef100007|tag 0xffffffffef1/, 'DAMAGED', vfio, part(5, vfioTag(7))],
    [/Id is 300 bytes/, 'DAMAGED', full(helpers, be32(400), be32(1), be32(300), Buffer.alloc(392))],
    [
      /goes beyond the section/,
      'DAMAGED',
      full(helpers, be32(18), be32(1), be32(1), Buffer.from('a'), be32(99), Buffer.alloc(5)),
    ],
    [/within the list/, 'DAMAGED', full(helpers, be32(10), be32(1), be32(200), Buffer.alloc(2))],
    [/within the list/, 'DAMAGED', full(helpers, be32(3), Buffer.alloc(3))],
    [/more bytes follow/, 'DAMAGED', EOF],
  ];
  for (const [pattern, code, ...elements] of cases) {
    const bytes = join(stream(...elements), Buffer.alloc(100, 0x55));
    for (const chunks of [[], Array(bytes.length).fill(1)]) {
      const { error, sections } = read(bytes, { chunks });
      t.match(error, { code: `DEVSTATE_E_CONTENT_${code}`, message: pattern }, String(pattern));
      t.ok((error?.offset ?? -1) >= 8 && (error?.offset ?? Infinity) < bytes.length, 'says where');
      t.equal(sumOfSizes(sections), bytes.length, 'the rest is a section of its own');
      t.match(sections.at(-1), { name: null, first: /^.{32}$/ });
    }
  }
  t.match(read(Buffer.from('QEVM\0\0\0\x04')).error, { code: 'DEVSTATE_E_CONTENT_UNSUPPORTED', offset: 0 });
  t.match(read(Buffer.from('NOPE\0\0\0\x03')).error, { code: 'DEVSTATE_E_CONTENT_DAMAGED', offset: 0 });
});

t.test('padding that is not zero is shown', async (t) => {
  const state = dbusVmstate(1, [helperState('a', u8(7)), Buffer.from('left over')]);
  const report = read(stream(full({ id: 6, name: 'dbus-vmstate' }, state)));
  t.match(report.sections[1]?.sections[1], {
    name: 'padding',
    size: 9,
    fields: { zero: false },
    first: /^6c656674/,
  });
});

t.test('devices whose data comes interleaved', async (t) => {
  const small = join('MARK', Buffer.alloc(100));
  const large = join('MARK', Buffer.alloc(2 << 20));
  const devices = [large, large, ...Array(16).fill(small)].map((data, id) => ({
    id,
    name: `${id}/vfio`,
    data,
  }));
  const report = read(
    stream(
      join(...devices.map((what) => start(what, VFIO.SETUP, VFIO.END))),
      join(...devices.map(({ id, data }) => part(id, vfioData(data.subarray(0, 50)), VFIO.END))),
      join(...devices.map(({ id, data }) => end(id, vfioData(data.subarray(50)), VFIO.END))),
    ),
    { kinds: [markKind] },
  );
  t.equal(report.error, null);
  const found = report.sections
    .filter(({ fields }) => fields.section === 'END')
    .map(({ content, extract }) => [extract, content?.size]);
  t.same(
    found,
    devices.map(({ id, data }) => [
      `${id}-vfio.bin`,
      id === 0 || (data === small && id < 16) ? data.length : undefined,
    ]),
    'the first one, and small ones, are looked into',
  );
});

t.test('streams within streams are not looked into', async (t) => {
  const inner = read(
    stream(full({ id: 6, name: 'dbus-vmstate' }, dbusVmstate(1, [helperState('a', HEADER)]))),
    {
      kinds: [{ ...markKind, name: 'qemu-stream', matches: () => true }, markKind],
    },
  );
  t.match(inner.sections[1]?.sections[0], { content: null, first: HEADER.toString('hex') });
});

t.test('what is kept is bounded', async (t) => {
  const many = Array.from({ length: 25_000 }, () => command(2, be32(7)));
  const report = read(stream(...many));
  t.equal(report.error, null);
  t.equal(sumOfSizes(report.sections), report.size);
  t.match(report.sections.at(-1), { name: 'further sections', fields: { sections: 15_002 } });

  const iterations = Array.from({ length: 25_000 }, () => part(2, RAM_EOS));
  const long = stream(
    start(RAM_SECTION, RAM_EOS),
    ...iterations,
    end(2, RAM_EOS),
    full({ id: 3, name: 'cpu' }),
  );
  t.match(read(long).sections.slice(2001), [
    { name: 'ram', fields: { section: 'PART' } },
    { name: 'further sections', size: 23_000 * 18, fields: { sections: 23_000 } },
    { name: 'ram', fields: { section: 'END' } },
    { name: 'cpu' },
    { name: 'end of stream' },
  ]);

  const pieces = Array.from({ length: 25_000 }, () => vfioData(Buffer.from('MARK')));
  const vfio = stream(start({ id: 5, name: 'vfio' }, ...pieces, VFIO.END), end(5, VFIO.END));
  const gathered = read(vfio, { kinds: [markKind] });
  t.equal(gathered.error, null);
  t.equal(gathered.sections[1]?.sections.length, 1001);
  t.match(gathered.sections[1]?.content, { kind: 'mark', size: 100_000 });
  t.equal(sumOfSizes(gathered.sections[1]?.sections ?? []), 25_000 * 20 + 8);

  const ids = Array.from({ length: 70_000 }, (_, id) => full({ id, name: 'a' }));
  t.match(read(stream(join(...ids))).error, {
    code: 'DEVSTATE_E_CONTENT_UNSUPPORTED',
    message: /more than 65536/,
  });

  const words = field('word', 'uint64', 8, { array_len: 32 });
  const wide = Array.from({ length: 400 }, (_, index) => ({ ...words, name: `a word ${index}`.repeat(4) }));
  const devices = Array.from({ length: 150 }, (_, index) => device(`d${index}`, wide));
  const sections = devices.map(({ name }, id) => full({ id, name }, Buffer.alloc(400 * 32 * 8, 0xff)));
  const fields = read(join(stream(...sections), description(machine(...devices))));
  t.equal(fields.error, null);
  const { length } = JSON.stringify(fields);
  t.ok(length > 3 << 20 && length < 6 << 20, `${length} characters`);
  t.match(fields.sections.at(-3)?.fields.state, { fieldsOmitted: 400 });
});

t.test('more than is held of a pipe', async (t) => {
  const data = Buffer.alloc(10 << 20, 0x7e);
  const layout = machine(
    device('large', [field('data', 'buffer', data.length)]),
    device('small', [field('x', 'uint8', 1)]),
  );
  const bytes = join(
    stream(full({ id: 1, name: 'large' }, data), full({ id: 2, name: 'small' }, u8(5))),
    description(layout),
  );
  const chunks = Array(Math.floor(bytes.length / 65536)).fill(65536);
  const file = read(bytes, { chunks });
  t.match(file, {
    error: null,
    sections: [
      {},
      { name: 'large', first: '7e'.repeat(16) },
      { fields: { state: { x: 5 } } },
      {},
      { fields: { devices: 2 } },
    ],
  });
  const pipe = read(bytes, { chunks, pipe: true });
  t.match(pipe, {
    error: null,
    sections: [
      {},
      { fields: { length: data.length } },
      { fields: { length: 1 }, first: '05' },
      {},
      { fields: { devices: 2 } },
    ],
  });
  t.equal(pipe.sections[4]?.fields.differing, undefined, 'what was searched is as described');
});
