// SPDX-License-Identifier: Apache-2.0
/** The state of a controller in use, imagined: what a rehearsal encodes and loads, as no guest has used the controller yet. */

import type { NvmeState } from '../../../formats/index.js';
import {
  Cc,
  CQES,
  Csts,
  FeatureId,
  IoOpcode,
  MIN_PAGE_SIZE,
  MSIX_ENTRY_SIZE,
  NSID,
  type NvmeParameters,
  nvmeConfigSpace,
  SQ_ENTRY_SIZE,
  SQES,
  Status,
} from '../spec/index.js';
import { standardIdentity } from './identity.js';

/** Entries of each queue. */
const ENTRIES = 2;

/** Sound, and of this model. There is something in every list, so that whatever reads a list does so once. */
export function practiceState(parameters: NvmeParameters): NvmeState {
  const ids = [0, 1];
  const queue = (id: number) => ({
    id,
    base: MIN_PAGE_SIZE * (1 + id),
    entries: ENTRIES,
    head: 0,
    tail: 0,
    physicallyContiguous: true,
  });
  const entry = new Uint8Array(SQ_ENTRY_SIZE);
  entry[0] = IoOpcode.FLUSH;
  return {
    identity: standardIdentity(parameters),
    pci: {
      config: nvmeConfigSpace(parameters).bytes.slice(),
      msixTable: new Uint8Array(parameters.msix_vectors * MSIX_ENTRY_SIZE),
      msixPending: new Uint8Array(8 * Math.ceil(parameters.msix_vectors / 64)),
    },
    registers: {
      cc: Cc.EN | (SQES << Cc.IOSQES_SHIFT) | (CQES << Cc.IOCQES_SHIFT),
      csts: Csts.RDY,
      interruptMask: 0,
      aqa: (ENTRIES - 1) * 0x10001,
      asq: queue(0).base,
      acq: queue(0).base,
    },
    submissionQueues: ids.map((id) => ({ ...queue(id), completionQueue: id, priority: 0 })),
    completionQueues: ids.map((id) => ({ ...queue(id), phase: 1, vector: 0, interruptsEnabled: true })),
    completions: [{ submissionQueue: 1, commandId: 1, status: Status.INVALID_FIELD, result: 0 }],
    commands: [{ submissionQueue: 1, entry }],
    features: [{ id: FeatureId.ARBITRATION, namespace: 0, value: 0, data: new Uint8Array(0) }],
    events: { requests: [1], pending: [{ type: 1, information: 0, logPage: 2 }], masked: [1] },
    health: {
      bytesRead: 0,
      bytesWritten: 0,
      readCommands: 0,
      writeCommands: 0,
      mediaErrors: 0,
      errorCount: 1,
      errors: [
        {
          count: 1,
          submissionQueue: 1,
          commandId: 1,
          status: Status.INVALID_FIELD,
          lba: 0,
          namespace: NSID,
        },
      ],
    },
  };
}
