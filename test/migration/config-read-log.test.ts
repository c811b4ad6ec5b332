// SPDX-License-Identifier: Apache-2.0
/** Which reads of configuration space are remembered, and how they are numbered. */

import t from 'tap';
import { ConfigReadLog } from '../../src/migration/index.js';
import {
  CONFIG_READS_KEPT,
  decodeConfigReads,
  decodeConfigReadsRequest,
  encodeConfigReads,
  encodeConfigReadsRequest,
  WitnessedVmm,
} from '../../src/wire/index.js';

t.test('reads are reported in order, from a number on', async (t) => {
  const log = new ConfigReadLog();
  t.same(log.report(0), { next: 0, reads: [] });
  for (const offset of [4, 5, 6]) log.note(offset, 1);
  t.same(log.report(1), {
    next: 3,
    reads: [
      { offset: 5, length: 1 },
      { offset: 6, length: 1 },
    ],
  });
  t.same(log.report(Number.MAX_SAFE_INTEGER), { next: 3, reads: [] }, 'a number to come');
});

t.test('the last reads are kept', async (t) => {
  const log = new ConfigReadLog();
  for (let index = 0; index < CONFIG_READS_KEPT + 10; index++) log.note(index & 0xfff, 2);
  const { next, reads } = log.report(0);
  t.equal(next, CONFIG_READS_KEPT + 10);
  t.equal(reads.length, CONFIG_READS_KEPT);
  t.same(reads[0], { offset: 10, length: 2 });
  t.same(reads.at(-1), { offset: 9, length: 2 });
});

t.test('what does not fit into 16 bits is not mistaken for another read', async (t) => {
  const log = new ConfigReadLog();
  log.note(0x1_0004, 1);
  log.note(4, 0x1_0001);
  t.same(log.report(0).reads, [
    { offset: 0xffff, length: 1 },
    { offset: 4, length: 0xffff },
  ]);
});

t.test('request and reply keep what they carry', async (t) => {
  const request = { since: 2 ** 40, vmm: WitnessedVmm.OTHER };
  const bytes = encodeConfigReadsRequest(request);
  t.same(decodeConfigReadsRequest(new DataView(bytes.buffer), 0, bytes.length), request);
  new DataView(bytes.buffer).setUint32(8, 2, true);
  t.throws(() => decodeConfigReadsRequest(new DataView(bytes.buffer), 0, bytes.length), /VMM 2/);

  const reads = { next: 7, reads: [{ offset: 0x3c, length: 1 }] };
  const reply = encodeConfigReads(reads);
  const view = new DataView(reply.buffer);
  t.same(decodeConfigReads(view, 0, reply.length), reads);
  t.throws(() => decodeConfigReads(view, 0, reply.length - 1), /DEVSTATE_CONFIG_READS reply/);
  view.setUint32(8, 0xffffffff, true);
  t.throws(() => decodeConfigReads(view, 0, reply.length), /reads in one reply/);
});
