// SPDX-License-Identifier: Apache-2.0
/**
 * What an end makes durable, and how it finds its attempt again after a restart. Records are appended, and an earlier one is
 * never changed.
 */

import * as z from '../zod.js';
import { type Attempt, attemptSchema, isOfItsAttempt, OF_ITS_ATTEMPT } from './attempt.js';
import { arbiterSchema } from './messages.js';
import { generationSchema, nameSchema } from './token.js';

const of = { vm: nameSchema, generation: generationSchema };

/** Why the source runs the VM again: the destination's word, the token, an operator, or the grant was never sent. */
export const whyBackSchema = z.enum(['refused', 'token', 'operator', 'unsent']);
export type WhyBack = z.infer<typeof whyBackSchema>;

/** What gives the destination the right to run: the source's grant, or an operator. */
export const whyTakenSchema = z.enum(['grant', 'operator']);
export type WhyTaken = z.infer<typeof whyTakenSchema>;

export const outcomeSchema = z.enum([
  /** The destination has the VM. */
  'moved',
  /** The source has it. */
  'returned',
  /** It is at neither end any more: it ended, or its machine did. */
  'lost',
]);
export type Outcome = z.infer<typeof outcomeSchema>;

export const sourceRecordSchema = z.discriminatedUnion('type', [
  z
    .strictObject({ type: z.literal('begun'), ...of, attempt: attemptSchema })
    .refine(isOfItsAttempt, OF_ITS_ATTEMPT),
  /** The promise of rule 2. A second one, with `none`, gives up the way by the witness too. */
  z.strictObject({ type: z.literal('granted'), ...of, arbiter: arbiterSchema }),
  /** The promise is void, and the VM may run here. */
  z.strictObject({ type: z.literal('back'), ...of, why: whyBackSchema }),
  /** The destination has the VM; this end's copy of it is of no use. */
  z.strictObject({ type: z.literal('moved'), ...of }),
  /** Nothing is left to do. */
  z.strictObject({ type: z.literal('closed'), ...of, outcome: outcomeSchema }),
]);
export type SourceRecord = z.infer<typeof sourceRecordSchema>;

export const destinationRecordSchema = z.discriminatedUnion('type', [
  z
    .strictObject({ type: z.literal('incoming'), ...of, attempt: attemptSchema })
    .refine(isOfItsAttempt, OF_ITS_ATTEMPT),
  /** The grant. With `none` the VM may run from here on, with `witness` once the token is taken. */
  z.strictObject({ type: z.literal('taken'), ...of, arbiter: arbiterSchema, why: whyTakenSchema }),
  /** The VM has run here. Written while it does, so it may be missing. */
  z.strictObject({ type: z.literal('ran'), ...of }),
  /** The VM never runs here in this attempt. */
  z.strictObject({ type: z.literal('gaveUp'), ...of }),
  z.strictObject({ type: z.literal('finished'), ...of, outcome: outcomeSchema }),
]);
export type DestinationRecord = z.infer<typeof destinationRecordSchema>;

export const recordSchema = z.union([sourceRecordSchema, destinationRecordSchema]);
export type CommitRecord = z.infer<typeof recordSchema>;

/** This host's last attempt with a VM, as a journal has it. */
export type LastAttempt =
  | { readonly role: 'source'; readonly attempt: Attempt; readonly records: readonly SourceRecord[] }
  | {
      readonly role: 'destination';
      readonly attempt: Attempt;
      readonly records: readonly DestinationRecord[];
    };

/**
 * Only the last attempt counts: one that was given up says nothing about who may run the VM once another has begun.
 * @param journal all that is durable of one VM on this host, in order
 */
export function lastAttempt(journal: readonly CommitRecord[]): LastAttempt | undefined {
  const first = journal.findLastIndex(({ type }) => type === 'begun' || type === 'incoming');
  const begin = journal[first];
  if (begin?.type === 'begun') {
    const records = journal.slice(first).filter((record) => isOf(begin, record, isSourceRecord));
    return { role: 'source', attempt: begin.attempt, records: records as SourceRecord[] };
  }
  if (begin?.type === 'incoming') {
    const records = journal.slice(first).filter((record) => isOf(begin, record, isDestinationRecord));
    return { role: 'destination', attempt: begin.attempt, records: records as DestinationRecord[] };
  }
  return undefined;
}

/** The highest generation in a journal, of whatever attempt. */
export function highestGeneration(journal: readonly CommitRecord[]): number {
  return Math.max(0, ...journal.map(({ generation }) => generation));
}

function isOf(
  begin: CommitRecord,
  record: CommitRecord,
  isOfRole: (record: CommitRecord) => boolean,
): boolean {
  return record.vm === begin.vm && record.generation === begin.generation && isOfRole(record);
}

const SOURCE_RECORDS: readonly string[] = sourceRecordSchema.options.map(({ shape }) => shape.type.value);

function isSourceRecord({ type }: CommitRecord): boolean {
  return SOURCE_RECORDS.includes(type);
}

function isDestinationRecord(record: CommitRecord): boolean {
  return !isSourceRecord(record);
}
