// SPDX-License-Identifier: Apache-2.0
/** Format `org.devstate.nvme.birch` 1.0: the controller's image. `records.ts` says how it is cut up. */

import type { SaveRound, StateFormat, StateLoader, StateRecord } from '../../../device/index.js';
import { NVME_BIRCH } from '../../../formats/index.js';
import { Errno, RequestError } from '../../../wire/index.js';
import type { NvmeParameters } from '../spec/index.js';
import { practiceState } from '../standard/practice-state.js';
import type { ControllerImage } from './controller-image.js';
import { standardToImage } from './from-standard.js';
import { identityDifferences, identityOf, readIdentity } from './identity.js';
import { imageToRecords, RecordCollector } from './records.js';
import { refused } from './refused.js';
import { imageProblem } from './validate.js';

/** Envelope headers of the records, with some to spare. */
const ENVELOPE_ESTIMATE = 1024;

/** The controller as its formats need it. */
export interface StatefulBirch {
  readonly parameters: NvmeParameters;
  /** Work is under way: the state cannot be saved or replaced now. */
  readonly busy: boolean;
  /**
   * An image to load into, which means nothing before and after. Kept: half a megabyte of fresh memory takes longer to
   * be touched for the first time than all that is done with it, and a guest may wait for that.
   */
  readonly spare: ControllerImage;
  /** The image, brought up to date with what is kept outside of it. Not to be changed. */
  captureImage(): ControllerImage;
  /** Becomes what a checked image says. @throws RequestError EINVAL, unchanged, when the config space is of another function */
  adoptImage(image: ControllerImage): void;
}

export class BirchStateFormat implements StateFormat {
  readonly uuid = NVME_BIRCH.uuid;
  readonly name = NVME_BIRCH.name;
  readonly version = { major: 1, minor: 0 };

  constructor(readonly controller: StatefulBirch) {}

  /** The state is small: nothing is sent ahead. */
  *save(round: SaveRound): Iterable<StateRecord> {
    if (round !== 'final') return;
    requireQuiet(this.controller);
    yield* imageToRecords(this.controller.captureImage());
  }

  practice(): Iterable<StateRecord> {
    return imageToRecords(standardToImage(practiceState(this.controller.parameters)));
  }

  estimate(): number {
    const records = imageToRecords(this.controller.captureImage());
    return records.reduce((sum, { payload }) => sum + payload.length, ENVELOPE_ESTIMATE);
  }

  load(version: { major: number; minor: number }): StateLoader {
    if (version.major !== this.version.major) {
      throw new RequestError(
        Errno.EINVAL,
        `${this.name} ${version.major}.${version.minor} cannot be read here`,
      );
    }
    const collector = new RecordCollector();
    return {
      record: (record) => collector.add(record),
      commit: () => adoptChecked(this.controller, collector.toImage(this.controller.spare.clear())),
    };
  }
}

/** Makes an image the controller's own if it fits and is sound. @throws RequestError, the controller unchanged */
function adoptChecked(controller: StatefulBirch, image: ControllerImage): void {
  requireSameController(controller, image);
  const problem = imageProblem(image);
  if (problem !== undefined) throw refused(problem);
  requireQuiet(controller);
  controller.adoptImage(image);
}

/** Makes a sound image the controller's own if it fits. @throws RequestError, the controller unchanged */
export function adoptSound(controller: StatefulBirch, image: ControllerImage): void {
  requireSameController(controller, image);
  requireQuiet(controller);
  controller.adoptImage(image);
}

function requireSameController({ parameters }: StatefulBirch, image: ControllerImage): void {
  const differences = identityDifferences(readIdentity(image), identityOf(parameters));
  if (differences.length > 0) throw refused(`it is of another controller: ${differences.join('; ')}`);
}

/** @throws RequestError EBUSY */
export function requireQuiet(controller: StatefulBirch): void {
  if (controller.busy) throw new RequestError(Errno.EBUSY, 'the controller is not quiesced');
}
