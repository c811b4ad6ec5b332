// SPDX-License-Identifier: Apache-2.0
/** Set and Get Features (NVMe 1.4, section 5.21) on the image. Values last until the controller is reset. */

import {
  FEATURE_CHANGEABLE,
  FeatureId,
  FeatureSelect,
  SET_FEATURES_SAVE,
  Status,
  WARNING_TEMPERATURE,
} from '../spec/index.js';
import type { Birch } from './birch.js';
import { type ControllerImage, featureDefault } from './controller-image.js';
import {
  COALESCING_DISABLED_AT,
  COMPLETION_AT,
  FEATURE_WORDS,
  OVER_TEMPERATURE_AT,
  QUEUE_SIZE,
  QueueSlot,
  SUBMISSION_AT,
  UNDER_TEMPERATURE_AT,
} from './layout.js';

/** What a feature command ends with; `result` is dword 0 of the completion. */
export interface FeatureReply {
  readonly status: number;
  readonly result: number;
}

const invalid: FeatureReply = { status: Status.INVALID_FIELD, result: 0 };
const done: FeatureReply = { status: Status.SUCCESS, result: 0 };
const reply = (result: number): FeatureReply => ({ status: Status.SUCCESS, result });

/** Bits of dword 11 that select or set. */
export const FeatureBit = {
  /** THSEL 1 of Temperature Threshold, for the composite temperature. */
  UNDER_TEMPERATURE: 0x100000,
  /** CD of Interrupt Vector Configuration. */
  COALESCING_DISABLED: 0x10000,
} as const;

/** TMPSEL: the composite temperature, and all sensors there are. */
const COMPOSITE_SENSOR = 0x0;
const ALL_SENSORS = 0xf;

export function getFeature(birch: Birch, cdw10: number, cdw11: number): FeatureReply {
  const { image, parameters } = birch;
  const id = cdw10 & 0xff;
  const select = (cdw10 >>> 8) & 0x7;
  if (!exists(id) || select > FeatureSelect.CAPABILITIES) return invalid;
  if (select === FeatureSelect.CAPABILITIES) return reply(FEATURE_CHANGEABLE);
  // Nothing can be saved, so the saved value is the default.
  const current = select === FeatureSelect.CURRENT;
  const word = FEATURE_WORDS.find((feature) => feature.id === id);
  if (word !== undefined) return reply(current ? image.u32(word.at) : featureDefault(id));
  switch (id) {
    case FeatureId.NUMBER_OF_QUEUES:
      return reply(queueCount(parameters.queues));
    case FeatureId.TEMPERATURE_THRESHOLD: {
      const at = thresholdAt(cdw11);
      if (at === undefined || sensor(cdw11) !== COMPOSITE_SENSOR) return invalid;
      if (current) return reply(image.u32(at));
      return reply(at === OVER_TEMPERATURE_AT ? WARNING_TEMPERATURE : 0);
    }
    default: {
      const vector = cdw11 & 0xffff;
      if (vector >= parameters.msix_vectors) return invalid;
      return reply(
        vector | (current && coalescingDisabled(image, vector) ? FeatureBit.COALESCING_DISABLED : 0),
      );
    }
  }
}

export function setFeature(birch: Birch, cdw10: number, cdw11: number): FeatureReply {
  const { image, parameters } = birch;
  const id = cdw10 & 0xff;
  if (!exists(id)) return invalid;
  if ((cdw10 & SET_FEATURES_SAVE) !== 0) return { status: Status.FEATURE_NOT_SAVEABLE, result: 0 };
  // Power state 0 is the only one.
  if (id === FeatureId.POWER_MANAGEMENT && (cdw11 & 0x1f) !== 0) return invalid;
  const word = FEATURE_WORDS.find((feature) => feature.id === id);
  if (word !== undefined) {
    image.setU32(word.at, cdw11 & word.mask);
    return done;
  }
  switch (id) {
    case FeatureId.NUMBER_OF_QUEUES:
      if (hasIoQueues(image, parameters.queues)) return { status: Status.COMMAND_SEQUENCE_ERROR, result: 0 };
      if ((cdw11 & 0xffff) === 0xffff || cdw11 >>> 16 === 0xffff) return invalid;
      return reply(queueCount(parameters.queues));
    case FeatureId.TEMPERATURE_THRESHOLD: {
      const at = thresholdAt(cdw11);
      if (at === undefined || ![COMPOSITE_SENSOR, ALL_SENSORS].includes(sensor(cdw11))) return invalid;
      image.setU32(at, cdw11 & 0xffff);
      return done;
    }
    default: {
      const vector = cdw11 & 0xffff;
      if (vector >= parameters.msix_vectors) return invalid;
      setCoalescingDisabled(image, vector, (cdw11 & FeatureBit.COALESCING_DISABLED) !== 0);
      return done;
    }
  }
}

function exists(id: number): boolean {
  return (Object.values(FeatureId) as number[]).includes(id);
}

/** Number of Queues as Get and Set Features report it: both counts 0-based. */
export function queueCount(queues: number): number {
  return ((queues - 1) << 16) | (queues - 1);
}

export function coalescingDisabled(image: ControllerImage, vector: number): boolean {
  return (image.u8(COALESCING_DISABLED_AT + (vector >>> 3)) & (1 << (vector & 7))) !== 0;
}

export function setCoalescingDisabled(image: ControllerImage, vector: number, disabled: boolean): void {
  const at = COALESCING_DISABLED_AT + (vector >>> 3);
  const bit = 1 << (vector & 7);
  image.setU8(at, disabled ? image.u8(at) | bit : image.u8(at) & ~bit);
}

function sensor(cdw11: number): number {
  return (cdw11 >>> 16) & 0xf;
}

/** By THSEL; undefined for a kind of threshold that does not exist. */
function thresholdAt(cdw11: number): number | undefined {
  return [OVER_TEMPERATURE_AT, UNDER_TEMPERATURE_AT][(cdw11 >>> 20) & 0x3];
}

function hasIoQueues(image: ControllerImage, queues: number): boolean {
  for (let id = 1; id <= queues; id++) {
    for (const at of [SUBMISSION_AT, COMPLETION_AT]) {
      if (image.u8(at + id * QUEUE_SIZE + QueueSlot.STATE) !== 0) return true;
    }
  }
  return false;
}
