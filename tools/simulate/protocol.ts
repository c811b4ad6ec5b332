// SPDX-License-Identifier: Apache-2.0
/** What is simulated, as parts that a test may replace by broken ones. */

import {
  beginDestination,
  beginSource,
  type CommitRecord,
  restartDestination,
  restartSource,
  sameToken,
  stepDestination,
  stepSource,
  type Token,
  type WitnessAnswer,
} from '../../src/commit/index.js';

export interface Protocol {
  readonly beginSource: typeof beginSource;
  readonly restartSource: typeof restartSource;
  readonly stepSource: typeof stepSource;
  readonly beginDestination: typeof beginDestination;
  readonly restartDestination: typeof restartDestination;
  readonly stepDestination: typeof stepDestination;
  /** Whether the journal waits for the disk before it says that a record is durable. */
  readonly waitsForDisk: (record: CommitRecord) => boolean;
  /** What the witness does with a request: its answer, and whether the token becomes `next`. */
  readonly compareAndSet: (current: Token, expected: Token) => WitnessAnswer;
  /** Whether an operator fences the other host before saying that it is. */
  readonly operatorFences: boolean;
}

export const PROTOCOL: Protocol = {
  beginSource,
  restartSource,
  stepSource,
  beginDestination,
  restartDestination,
  stepDestination,
  waitsForDisk: () => true,
  compareAndSet: (current, expected) =>
    sameToken(current, expected) ? { type: 'set' } : { type: 'conflict', current },
  operatorFences: true,
};
