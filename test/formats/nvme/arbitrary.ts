// SPDX-License-Identifier: Apache-2.0
/** Any `NvmeState` whose values are in their ranges; what they say about each other is at random. */

import fc from 'fast-check';
import type { NvmeState } from '../../../src/formats/index.js';

const upTo = (max: number, min = 0) => fc.integer({ min, max });
const u8 = upTo(0xff);
const u16 = upTo(0xffff);
const u32 = fc.integer({ min: 0, max: 0xffffffff });
const whole = fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER });
const bytes = (maxLength: number, minLength = 0) => fc.uint8Array({ minLength, maxLength });
const text = fc.string({ maxLength: 20, unit: 'binary-ascii' });
const list = <T>(item: fc.Arbitrary<T>) => fc.array(item, { maxLength: 4 });

const queue = {
  id: u16,
  base: whole,
  entries: upTo(65536, 2),
  head: u16,
  tail: u16,
  physicallyContiguous: fc.boolean(),
};

export const anyNvmeState: fc.Arbitrary<NvmeState> = fc.record({
  identity: fc.record({
    controllerId: u16,
    serial: text,
    modelNumber: text,
    firmware: text,
    queues: u16,
    msixVectors: upTo(2048),
    queueEntries: upTo(65536),
    mdts: u8,
    namespaces: list(
      fc.record({ id: u32, size: whole, lbaSize: u32, nguid: bytes(16, 16), eui64: bytes(8, 8) }),
    ),
  }),
  pci: fc.tuple(fc.constantFrom(256, 4096), upTo(130)).chain(([length, vectors]) =>
    fc.record({
      config: bytes(length, length),
      msixTable: bytes(vectors * 16, vectors * 16),
      msixPending: bytes(Math.ceil(vectors / 64) * 8, Math.ceil(vectors / 64) * 8),
    }),
  ),
  registers: fc.record({ cc: u32, csts: u32, interruptMask: u32, aqa: u32, asq: whole, acq: whole }),
  submissionQueues: list(fc.record({ ...queue, completionQueue: u16, priority: upTo(3) })),
  completionQueues: list(
    fc.record({ ...queue, phase: upTo(1), vector: u16, interruptsEnabled: fc.boolean() }),
  ),
  completions: list(fc.record({ submissionQueue: u16, commandId: u16, status: upTo(0x7fff), result: u32 })),
  commands: list(fc.record({ submissionQueue: u16, entry: bytes(64, 64) })),
  features: list(fc.record({ id: u8, namespace: u32, value: u32, data: bytes(16) })),
  events: fc.record({
    requests: list(u16),
    pending: list(fc.record({ type: upTo(7), information: u8, logPage: u8 })),
    masked: list(upTo(7)),
  }),
  health: fc.record({
    bytesRead: whole,
    bytesWritten: whole,
    readCommands: whole,
    writeCommands: whole,
    mediaErrors: whole,
    errorCount: whole,
    errors: list(
      fc.record({
        count: whole,
        submissionQueue: u16,
        commandId: u16,
        status: u16,
        lba: whole,
        namespace: u32,
      }),
    ),
  }),
});
