// SPDX-License-Identifier: Apache-2.0
/** The vendor-neutral state: what birch gives is what it takes, and what others give it takes or refuses by name. */

import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import type { Device, StateRecord } from '../../../../src/device/index.js';
import { birchToStandard, standardToBirch } from '../../../../src/devices/nvme/birch/index.js';
import type { NvmeState, NvmeSubmissionQueue } from '../../../../src/formats/index.js';
import { createRig, DATA, Guest, imageFolder, PAGE, type Rig } from '../rig.js';

const FLUSH = 0;
const READ = 2;

interface Standard {
  captureStandard(): NvmeState;
  restoreStandard(state: NvmeState): void;
}

function standardOf(rig: Rig): Standard {
  return rig.device as Device & Standard;
}

/** A quiesced controller with commands, a waiting event request, features and errors; its guest continues. */
async function busyRig(path: string): Promise<Rig> {
  const rig = createRig({ vendor: 'birch', path });
  rig.useMsix(5);
  await rig.enable();
  await rig.createPair(1, 100);
  await rig.createPair(3, 16, { cqEntries: 4, vector: 2 });
  for (let i = 0; i < 130; i++) await rig.run(1, { opcode: READ, nsid: 1, prp1: DATA });
  await rig.admin({ opcode: 0x7f });
  await rig.admin({ opcode: 9, cdw10: 9, cdw11: 0x10003 });
  await rig.admin({ opcode: 9, cdw10: 4, cdw11: 0x100007 });
  await rig.admin({ opcode: 9, cdw10: 6, cdw11: 0 });
  rig.queue(0, { opcode: 0x0c, cid: 0x200 });
  rig.submit(0);
  for (let i = 0; i < 60; i++) rig.queue(1, { opcode: FLUSH, nsid: 1 });
  rig.submitAll(1, 60);
  await rig.device.quiesce();
  return rig;
}

t.test('captured, restored, captured: equal, and the guest continues', async (t) => {
  const path = join(imageFolder(t), 'disk');
  const rig = await busyRig(path);
  const state = standardOf(rig).captureStandard();
  t.ok(state.commands.length > 0, `${state.commands.length} commands in flight`);
  t.match(state.events, { requests: [0x200], pending: [], masked: [] });
  t.match(state.health, { readCommands: 130, errorCount: 1, errors: [{ status: 0x4001, namespace: 0 }] });
  t.match(state.identity, { controllerId: 1, queues: 4, namespaces: [{ id: 1, lbaSize: 512 }] });
  t.match(
    state.submissionQueues.map(({ id, head, tail }) => [id, head !== tail]),
    [
      [0, false],
      [1, Boolean],
      [3, false],
    ],
  );
  t.match(state.completionQueues[1], { id: 1, phase: 0, vector: 1, interruptsEnabled: true });
  const value = (id: number) => state.features.filter((feature) => feature.id === id).map((one) => one.value);
  t.same(value(4), [343, 0x100007]);
  t.same(value(6), [0]);
  t.same(value(7), [0x30003]);
  t.same(value(9), [0, 1, 2, 0x10003, 4]);
  t.same(
    state.features.map(({ id }) => id),
    state.features.map(({ id }) => id).sort((a, b) => a - b),
  );

  const records = await rig.save();
  t.same(birchToStandard(records), state, 'the records say the same');
  t.same(birchToStandard(standardToBirch(state)), state);
  t.same(standardToBirch(state), records, 'and are the same, as no request has been taken anew');

  await rig.device.releaseExclusive?.();
  const other = createRig({ vendor: 'birch', path, guest: rig.guest, lock: false });
  t.teardown(() => other.image.close());
  standardOf(other).restoreStandard(state);
  t.same(standardOf(other).captureStandard(), state);
  await other.device.acquireExclusive?.();
  other.useMsix(5);
  await other.device.resume();
  for (let i = 0; i < 60; i++) t.equal((await other.completion(1)).status, 0);
  t.equal(other.poll(1), undefined);
  t.match(await other.admin({ opcode: 0x0a, cdw10: 9, cdw11: 3 }), { result: 0x10003 });
  other.write(0x1000 + 8 * 4, 1);
  t.match(await other.completion(0), { cid: 0x200, result: 0x010000 });
  await rig.image.close();
});

t.test(
  'what another vendor may have: due completions, commands begun, pending events, a shutdown',
  async (t) => {
    const path = join(imageFolder(t), 'disk');
    const rig = await busyRig(path);
    const state = standardOf(rig).captureStandard();
    await rig.device.releaseExclusive?.();
    await rig.image.close();
    const guest = new Guest();
    const [cq1, cq3] = [state.completionQueues[1]!, state.completionQueues[2]!];
    const entry = (opcode: number, cid: number, prp1 = 0) => {
      const bytes = new Uint8Array(64);
      const view = new DataView(bytes.buffer);
      view.setUint32(0, opcode | (cid << 16), true);
      view.setUint32(4, 1, true);
      view.setBigUint64(24, BigInt(prp1), true);
      return bytes;
    };
    const foreign: NvmeState = {
      ...state,
      // Two entries before its end, and phase 1 comes round to 0.
      completionQueues: state.completionQueues.map((queue) =>
        queue.id === 1 ? { ...queue, head: 98, tail: 98, phase: 1 } : queue,
      ),
      submissionQueues: state.submissionQueues.map((queue) =>
        queue.id === 1 ? { ...queue, head: 7, tail: 7 } : queue,
      ),
      completions: Array.from({ length: 9 }, (_, i) => ({
        submissionQueue: 3,
        commandId: 100 + i,
        status: i === 0 ? 0x4281 : 0,
        result: i,
      })),
      commands: [
        ...Array.from({ length: 90 }, (_, i) => ({
          submissionQueue: 1,
          entry: entry(READ, i, DATA + i * PAGE),
        })),
        { submissionQueue: 0, entry: entry(0x0c, 0x201) },
      ],
      events: { requests: [], pending: [{ type: 1, information: 1, logPage: 2 }], masked: [0] },
    };
    const target = createRig({ vendor: 'birch', path, guest });
    t.teardown(() => target.image.close());
    target.useMsix(5);
    await target.device.quiesce();
    standardOf(target).restoreStandard(foreign);
    t.same(standardOf(target).captureStandard(), foreign);
    for (const { id, base, entries, head, phase } of [...foreign.completionQueues]) {
      const sq = foreign.submissionQueues.find((queue) => queue.id === id)!;
      guest.rings.set(id, {
        sq: sq.base,
        cq: base,
        sqSize: sq.entries,
        cqSize: entries,
        tail: sq.tail,
        head,
        phase,
      });
      // Entries not written yet have the other phase.
      for (let at = 0; at < entries; at++) {
        const old = at >= head ? phase ^ 1 : phase;
        guest.view.setUint32(base - 0x10_0000 + 16 * at + 12, old << 16, true);
      }
    }
    await target.device.resume();
    t.match(await target.completion(0), { cid: 0x201, result: 0x020101 }, 'the event that was pending');
    const got = new Set<number>();
    for (let i = 0; i < 90; i++) {
      const { cid, status } = await target.completion(1);
      t.equal(status, 0);
      got.add(cid);
    }
    t.equal(got.size, 90, 'past the end of the queue');
    for (let i = 0; i < 9; i++) {
      const { cid, status, result, sqid } = await target.completion(3);
      t.match(
        { cid, status, result, sqid },
        { cid: 100 + i, status: i === 0 ? 0x281 : 0, result: i, sqid: 3 },
      );
    }
    t.equal(cq1.entries, 100);
    t.equal(cq3.entries, 4, 'more were due than there was room for');
    await target.device.quiesce();
    const { cc } = foreign.registers;
    const idle = { ...standardOf(target).captureStandard(), commands: [] };
    standardOf(target).restoreStandard({
      ...idle,
      registers: { ...idle.registers, cc: cc | 0x4000, csts: 5 },
    });
    t.equal(target.read(0x1c), 1);
    await target.device.resume();
    await target.until('the shutdown, begun anew', () => target.read(0x1c) === 9);
  },
);

t.test('refused by name', async (t) => {
  const path = join(imageFolder(t), 'disk');
  const rig = await busyRig(path);
  t.teardown(() => rig.image.close());
  const state = standardOf(rig).captureStandard();
  const pristine = await rig.save();
  const { identity, registers, pci, features, events } = state;
  const [namespace] = identity.namespaces;
  const queues = (change: Partial<NvmeSubmissionQueue>) =>
    state.submissionQueues.map((queue) => (queue.id === 1 ? { ...queue, ...change } : queue));
  const feature = (id: number, value: number, more = {}) => [
    ...features.filter((one) => one.id !== id),
    { id, namespace: 0, value, data: new Uint8Array(0), ...more },
  ];
  const cases: [string, Partial<NvmeState>, RegExp][] = [
    [
      'every difference at once',
      {
        identity: {
          ...identity,
          controllerId: 2,
          serial: 'OTHER',
          mdts: 3,
          namespaces: [{ ...namespace!, nguid: new Uint8Array(16) }],
        },
      },
      /mdts is 3 there, 7 here; serial is "OTHER" there, .*; the controller identifier is 2 .*; the NGUID/,
    ],
    ['no such parameter', { identity: { ...identity, queues: 900, mdts: 77 } }, /queues=900 .*; mdts=77/],
    [
      'namespaces',
      { identity: { ...identity, namespaces: [namespace!, { ...namespace!, id: 2 }] } },
      /namespaces \[1, 2\], this controller has \[1\]/,
    ],
    ['not contiguous', { submissionQueues: queues({ physicallyContiguous: false }) }, /CAP\.CQR/],
    [
      'base',
      { submissionQueues: queues({ base: 2 ** 60 }) },
      /base of submission queue 1 is 1152921504606847000, not/,
    ],
    ['index', { submissionQueues: queues({ head: 100 }) }, /submission queue 1 has an index beyond its end/],
    ['id', { submissionQueues: queues({ id: 256 }) }, /submission queue 256 does not exist here/],
    [
      'id here',
      { submissionQueues: queues({ id: 5 }) },
      /submission queue 5 (has no completion|does not exist)/,
    ],
    ['twice', { submissionQueues: queues({ id: 3 }) }, /submission queue 3 is there twice/],
    ['CSTS', { registers: { ...registers, csts: 0x31 } }, /CSTS has bits that do not exist/],
    ['a shutdown that was not requested', { registers: { ...registers, csts: 5 } }, /shutdown is under way/],
    ['CC', { registers: { ...registers, cc: -1 } }, /CC is -1, not a number from 0/],
    ['table', { pci: { ...pci, msixTable: new Uint8Array(16) } }, /MSI-X table of 16 bytes instead of 80/],
    ['pending', { pci: { ...pci, msixPending: Uint8Array.of(0x20) } }, /vector 5, which does not exist/],
    ['config', { pci: { ...pci, config: pci.config.with(0, 1) } }, /config space differs at 0x0/],
    ['short config', { pci: { ...pci, config: new Uint8Array(64) } }, /config space of 64 bytes/],
    [
      'extended config',
      { pci: { ...pci, config: new Uint8Array([...pci.config, 1, 2]) } },
      /config space beyond its first 256 bytes/,
    ],
    ['feature', { features: feature(0x10, 1) }, /feature 0x10 does not exist here/],
    ['feature bits', { features: feature(2, 3) }, /feature 0x02 has the value 0x3, of which .* 0xe0/],
    ['feature of a namespace', { features: feature(5, 0, { namespace: 1 }) }, /0x05 is of namespace 1/],
    ['feature with data', { features: feature(5, 0, { data: new Uint8Array(8) }) }, /0x05 has data/],
    ['feature twice', { features: [...features, features[0]!] }, /feature 0x01 is there twice/],
    ['queues', { features: feature(7, 0x40003) }, /feature 0x07 .* more than the 4 queues/],
    ['vector', { features: feature(9, 5) }, /feature 0x09 .* of a vector/],
    ['sensor', { features: feature(4, 0x10100) }, /feature 0x04 .* of a sensor/],
    ['requests', { events: { ...events, requests: [1, 2, 3, 4, 5] } }, /5 event requests wait/],
    [
      'events',
      { events: { ...events, pending: new Array(9).fill({ type: 0, information: 0, logPage: 1 }) } },
      /9 pending events/,
    ],
    ['masked', { events: { ...events, masked: [8] } }, /masked event type 8/],
    [
      'completion',
      { completions: [{ submissionQueue: 2, commandId: 1, status: 0, result: 0 }] },
      /of submission queue 2, which is not there/,
    ],
    ['command', { commands: [{ submissionQueue: 1, entry: new Uint8Array(32) }] }, /command of 32 bytes/],
    [
      'too many',
      { commands: new Array(4096).fill({ submissionQueue: 1, entry: new Uint8Array(64) }) },
      /4097 commands and completions/,
    ],
  ];
  for (const [what, change, message] of cases) {
    t.throws(
      () => standardOf(rig).restoreStandard({ ...state, ...change }),
      { name: 'RequestError', message },
      what,
    );
  }
  t.same(await rig.save(), pristine, 'unchanged by all of it');
  const bad = pristine.with(1, { ...pristine[1]!, payload: pristine[1]!.payload.with(0x14, 0xff) });
  t.throws(() => birchToStandard(bad), { name: 'RequestError', message: /register CC/ });
  t.throws(() => birchToStandard(pristine.slice(1)), { message: /header record is missing/ });
});

t.test('property: any state is refused or taken as it is', async (t) => {
  const path = join(imageFolder(t), 'disk');
  const rig = await busyRig(path);
  t.teardown(() => rig.image.close());
  const state = standardOf(rig).captureStandard();
  const number = fc.oneof(
    fc.nat(300),
    fc.nat(0xffffffff),
    fc.maxSafeInteger(),
    fc.constantFrom(Number.NaN, 0.5),
  );
  let taken = 0;
  const property = fc.property(fc.infiniteStream(number), fc.nat(), (numbers, seed) => {
    // One number in about forty becomes another.
    let left = seed % 40;
    const changed = JSON.parse(JSON.stringify(state), (_, value) => {
      if (typeof value !== 'number' || left-- > 0) return value;
      left = 40;
      return numbers.next().value;
    }) as NvmeState;
    const spoiled: NvmeState = { ...state, ...pick(changed) };
    let records: StateRecord[];
    try {
      records = standardToBirch(spoiled);
    } catch (error) {
      if ((error as Error).name !== 'RequestError') throw error;
      return;
    }
    taken++;
    const again = birchToStandard(records);
    t.same({ ...again, features: [] }, { ...spoiled, features: [] });
  });
  fc.assert(property, { numRuns: 300 });
  t.ok(taken > 0, `${taken} states were taken`);
});

/** The parts that hold no bytes, which do not survive JSON. */
function pick({ registers, submissionQueues, completionQueues, completions, events, health }: NvmeState) {
  return { registers, submissionQueues, completionQueues, completions, events, health };
}
