// SPDX-License-Identifier: Apache-2.0
/** Format `org.devstate.nvme` as a controller of any vendor saves and loads it: its records ↔ the controller's own `NvmeState`. */

import type {
  DeviceValues,
  SaveRound,
  StateFormat,
  StateLoader,
  StateRecord,
} from '../../../device/index.js';
import { asDevstateError } from '../../../errors.js';
import {
  checkNvmeState,
  flattenTree,
  NVME_STANDARD,
  NVME_STANDARD_VERSION,
  type NvmeState,
  NvmeStateDecoder,
  nvmeRecords,
  prepareNvmeRecords,
  unflattenTree,
} from '../../../formats/index.js';
import { Errno, RequestError } from '../../../wire/index.js';
import type { NvmeParameters } from '../spec/index.js';
import { practiceState } from './practice-state.js';

/** Bytes of all but the queues, about: the configuration space is half of it. */
const FIXED_ESTIMATE = 8192;
/** Bytes of one queue pair with its interrupt vector. */
const QUEUE_ESTIMATE = 256;

/** A controller that can give and take the vendor-neutral state. */
export interface StandardNvmeController {
  readonly parameters: NvmeParameters;
  /** Work is under way: the state cannot be saved or replaced now. */
  readonly busy: boolean;
  captureStandard(): NvmeState;
  /** @throws RequestError with every reason why it cannot be; nothing is changed then */
  restoreStandard(state: NvmeState): void;
}

export class NvmeStandardFormat implements StateFormat {
  readonly uuid = NVME_STANDARD.uuid;
  readonly name = NVME_STANDARD.name;
  readonly version = NVME_STANDARD_VERSION;

  constructor(readonly controller: StandardNvmeController) {}

  /** The state is small: nothing is sent ahead. But the last round, for which the guest waits, is prepared. */
  async *save(round: SaveRound): AsyncIterable<StateRecord> {
    if (round === 'final') yield* nvmeRecords(captured(this.controller));
    else await prepareNvmeRecords();
  }

  async *practice(): AsyncIterable<StateRecord> {
    await prepareNvmeRecords();
    yield* nvmeRecords(practiceState(this.controller.parameters));
  }

  /** Asked for while the controller runs, when there is no state to measure. */
  estimate(): number {
    return FIXED_ESTIMATE + QUEUE_ESTIMATE * (this.controller.parameters.queues + 1);
  }

  load(): StateLoader {
    const decoder = new NvmeStateDecoder();
    return {
      record: (record) => {
        const known = asRefusal(() => decoder.record(record));
        if (known || record.optional === true) return;
        throw new RequestError(
          Errno.EINVAL,
          `${this.name}: record type 0x${record.type.toString(16)} is not known here`,
        );
      },
      commit: () => this.controller.restoreStandard(asRefusal(() => decoder.finish())),
    };
  }
}

/** The same state value by value, named by the fields of `NvmeState`. */
export function nvmeStandardValues(controller: StandardNvmeController): DeviceValues {
  return {
    uuid: NVME_STANDARD.uuid,
    version: NVME_STANDARD_VERSION,
    capture: () => flattenTree(captured(controller)),
    restore: (values) => controller.restoreStandard(asRefusal(() => checkNvmeState(unflattenTree(values)))),
  };
}

/** @throws RequestError EBUSY */
function captured(controller: StandardNvmeController): NvmeState {
  if (controller.busy) throw new RequestError(Errno.EBUSY, 'the controller is not quiesced');
  return controller.captureStandard();
}

/** What is wrong with a state is the peer's to hear. */
function asRefusal<T>(work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw new RequestError(Errno.EINVAL, asDevstateError(error).message);
  }
}
