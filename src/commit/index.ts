// SPDX-License-Identifier: Apache-2.0
/** The hand-over of a VM between two hosts: who may run it, at any time, whatever fails. No I/O: inputs in, outputs out. */

export { type Attempt, attemptSchema, isOwnedSince, nextGeneration, tokenFor } from './attempt.js';
export { beginDestination, restartDestination, stepDestination } from './destination.js';
export type {
  DestinationInput,
  DestinationKind,
  DestinationOutput,
  DestinationState,
  DestinationStep,
} from './destination-states.js';
export type { AskOutput, CommitSettings, RefusalCode, TimerName, VmFound } from './machine.js';
export {
  type Arbiter,
  type DestinationMessage,
  destinationMessageSchema,
  type SourceMessage,
  sourceMessageSchema,
} from './messages.js';
export {
  type CommitRecord,
  type DestinationRecord,
  highestGeneration,
  type LastAttempt,
  lastAttempt,
  type Outcome,
  recordSchema,
  type SourceRecord,
} from './records.js';
export { beginSource, restartSource, stepSource } from './source.js';
export type { SourceInput, SourceKind, SourceOutput, SourceState, SourceStep } from './source-states.js';
export { sameToken, type Token, tokenSchema, type WitnessAnswer } from './token.js';
