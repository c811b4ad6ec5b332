// SPDX-License-Identifier: Apache-2.0
/** The ranges of the values in an `NvmeState`. What values say about each other is for the controller that takes them. */

import { DevstateError } from '../../errors.js';
import * as z from '../../zod.js';
import type { PciFunctionState } from '../pci/state.js';
import { pciFunctionDefect } from '../pci/validate.js';
import type { NvmeState } from './state.js';

const integer = (maximum: number) => z.number().int().min(0).max(maximum);
const u8 = integer(0xff);
const u16 = integer(0xffff);
const u32 = integer(0xffffffff);
const whole = integer(Number.MAX_SAFE_INTEGER);
const bytes = (maximum: number, minimum = 0) =>
  z.custom<Uint8Array>(
    (value) => value instanceof Uint8Array && value.length >= minimum && value.length <= maximum,
    `is not ${minimum === maximum ? minimum : `${minimum} to ${maximum}`} bytes`,
  );
const text = z.string().max(64);

const queue = {
  id: u16,
  base: whole,
  entries: integer(65536).min(2),
  head: u16,
  tail: u16,
  physicallyContiguous: z.boolean(),
};

const state = z.object({
  identity: z.object({
    controllerId: u16,
    serial: text,
    modelNumber: text,
    firmware: text,
    queues: u16,
    msixVectors: integer(2048),
    queueEntries: integer(65536),
    mdts: u8,
    namespaces: z
      .array(z.object({ id: u32, size: whole, lbaSize: u32, nguid: bytes(16, 16), eui64: bytes(8, 8) }))
      .max(1024),
  }),
  pci: z.custom<PciFunctionState>().superRefine((pci, context) => {
    const defect = pciFunctionDefect(pci);
    if (defect !== undefined) context.addIssue({ code: 'custom', message: defect });
  }),
  registers: z.object({ cc: u32, csts: u32, interruptMask: u32, aqa: u32, asq: whole, acq: whole }),
  submissionQueues: z.array(z.object({ ...queue, completionQueue: u16, priority: integer(3) })).max(65536),
  completionQueues: z
    .array(z.object({ ...queue, phase: integer(1), vector: u16, interruptsEnabled: z.boolean() }))
    .max(65536),
  completions: z.array(
    z.object({ submissionQueue: u16, commandId: u16, status: integer(0x7fff), result: u32 }),
  ),
  commands: z.array(z.object({ submissionQueue: u16, entry: bytes(64, 64) })),
  features: z.array(z.object({ id: u8, namespace: u32, value: u32, data: bytes(4096) })).max(65536),
  events: z.object({
    requests: z.array(u16).max(256),
    pending: z.array(z.object({ type: integer(7), information: u8, logPage: u8 })).max(256),
    masked: z.array(integer(7)).max(8),
  }),
  health: z.object({
    bytesRead: whole,
    bytesWritten: whole,
    readCommands: whole,
    writeCommands: whole,
    mediaErrors: whole,
    errorCount: whole,
    errors: z
      .array(
        z.object({
          count: whole,
          submissionQueue: u16,
          commandId: u16,
          status: u16,
          lba: whole,
          namespace: u32,
        }),
      )
      .max(256),
  }),
});

/** Reasons shown of a state that has many. */
const REASONS_SHOWN = 16;

/** @throws DevstateError DEVSTATE_E_STATE_RECORD that names what is out of its range */
export function checkNvmeState(value: unknown): NvmeState {
  const result = state.safeParse(value);
  if (result.success) return result.data;
  const reasons = result.error.issues.map(({ path, message }) => `${path.join('.')}: ${message}`);
  const more = reasons.length > REASONS_SHOWN ? ` and ${reasons.length - REASONS_SHOWN} more` : '';
  throw new DevstateError(
    'DEVSTATE_E_STATE_RECORD',
    `the NVMe state is not sound: ${reasons.slice(0, REASONS_SHOWN).join('; ')}${more}`,
  );
}
