// SPDX-License-Identifier: Apache-2.0
/** Features (NVMe 1.4, section 5.21): current values, defaults, Set and Get. Values last until the controller is reset. */

import {
  ARBITRATION_WRITABLE,
  FEATURE_CHANGEABLE,
  FeatureId,
  FeatureSelect,
  SET_FEATURES_SAVE,
  Status,
  WARNING_TEMPERATURE,
} from '../spec/index.js';
import { CommandError } from './command.js';

/** Values as dword 11 of Set Features has them. */
export interface FeatureValues {
  arbitration: number;
  powerManagement: number;
  /** Over and under temperature threshold of the composite temperature, Kelvin. */
  temperatureOver: number;
  temperatureUnder: number;
  errorRecovery: number;
  volatileWriteCache: number;
  interruptCoalescing: number;
  writeAtomicity: number;
  asyncEvents: number;
  /** Vectors for which coalescing is disabled. */
  coalescingDisabled: number[];
}

/** Features that are one dword, with the bits that exist. */
const SIMPLE = new Map<number, { key: Exclude<keyof FeatureValues, 'coalescingDisabled'>; mask: number }>([
  [FeatureId.ARBITRATION, { key: 'arbitration', mask: ARBITRATION_WRITABLE }],
  [FeatureId.ERROR_RECOVERY, { key: 'errorRecovery', mask: 0x0000ffff }],
  [FeatureId.VOLATILE_WRITE_CACHE, { key: 'volatileWriteCache', mask: 0x1 }],
  [FeatureId.INTERRUPT_COALESCING, { key: 'interruptCoalescing', mask: 0xffff }],
  [FeatureId.WRITE_ATOMICITY, { key: 'writeAtomicity', mask: 0x1 }],
  [FeatureId.ASYNC_EVENT_CONFIGURATION, { key: 'asyncEvents', mask: 0xff }],
]);

/** Temperature sensors that a threshold is for (TMPSEL). */
const COMPOSITE = 0;
const ALL_SENSORS = 0xf;

export class Features {
  values: FeatureValues = defaultFeatures();

  constructor(
    readonly queues: number,
    readonly vectors: number,
    /** Whether an I/O queue exists: the number of queues can no longer be set. */
    readonly hasIoQueues: () => boolean,
  ) {}

  reset(): void {
    this.values = defaultFeatures();
  }

  /** Set Features with dwords 10 and 11. @returns dword 0 of the completion. @throws CommandError */
  set(cdw10: number, value: number): number {
    const id = cdw10 & 0xff;
    if (!this.#exists(id)) throw new CommandError(Status.INVALID_FIELD);
    if ((cdw10 & SET_FEATURES_SAVE) !== 0) throw new CommandError(Status.FEATURE_NOT_SAVEABLE);
    const simple = SIMPLE.get(id);
    if (simple !== undefined) {
      this.values[simple.key] = (value & simple.mask) >>> 0;
      return 0;
    }
    if (id === FeatureId.POWER_MANAGEMENT) {
      // Power state 0 is the only one.
      if ((value & 0x1f) !== 0) throw new CommandError(Status.INVALID_FIELD);
      this.values.powerManagement = value & 0xe0;
    } else if (id === FeatureId.TEMPERATURE_THRESHOLD) this.#setTemperature(value);
    else if (id === FeatureId.NUMBER_OF_QUEUES) {
      if (this.hasIoQueues()) throw new CommandError(Status.COMMAND_SEQUENCE_ERROR);
      if ((value & 0xffff) === 0xffff || value >>> 16 === 0xffff)
        throw new CommandError(Status.INVALID_FIELD);
      return this.#queueCount();
    } else this.#setVector(value);
    return 0;
  }

  /** Get Features with dwords 10 and 11. @returns dword 0 of the completion. @throws CommandError */
  get(cdw10: number, cdw11: number): number {
    const id = cdw10 & 0xff;
    const select = (cdw10 >>> 8) & 0x7;
    if (!this.#exists(id) || select > FeatureSelect.CAPABILITIES)
      throw new CommandError(Status.INVALID_FIELD);
    if (select === FeatureSelect.CAPABILITIES) return FEATURE_CHANGEABLE;
    // Nothing is saveable, so the saved value is the default.
    const values = select === FeatureSelect.CURRENT ? this.values : defaultFeatures();
    const simple = SIMPLE.get(id);
    if (simple !== undefined) return values[simple.key];
    if (id === FeatureId.POWER_MANAGEMENT) return values.powerManagement;
    if (id === FeatureId.NUMBER_OF_QUEUES) return this.#queueCount();
    if (id === FeatureId.TEMPERATURE_THRESHOLD) {
      const { under } = temperatureSelection(cdw11, [COMPOSITE]);
      return under ? values.temperatureUnder : values.temperatureOver;
    }
    const vector = cdw11 & 0xffff;
    if (vector >= this.vectors) throw new CommandError(Status.INVALID_FIELD);
    return vector | (values.coalescingDisabled.includes(vector) ? 0x10000 : 0);
  }

  #exists(id: number): boolean {
    return (Object.values(FeatureId) as number[]).includes(id);
  }

  #queueCount(): number {
    return ((this.queues - 1) << 16) | (this.queues - 1);
  }

  #setTemperature(value: number): void {
    const { under } = temperatureSelection(value, [COMPOSITE, ALL_SENSORS]);
    if (under) this.values.temperatureUnder = value & 0xffff;
    else this.values.temperatureOver = value & 0xffff;
  }

  #setVector(value: number): void {
    const vector = value & 0xffff;
    if (vector >= this.vectors) throw new CommandError(Status.INVALID_FIELD);
    const others = this.values.coalescingDisabled.filter((other) => other !== vector);
    this.values.coalescingDisabled =
      (value & 0x10000) === 0 ? others : [...others, vector].sort((a, b) => a - b);
  }
}

/** Checks sensor and kind of a temperature threshold. */
function temperatureSelection(value: number, sensors: readonly number[]): { under: boolean } {
  const kind = (value >>> 20) & 0x3;
  if (!sensors.includes((value >>> 16) & 0xf) || kind > 1) throw new CommandError(Status.INVALID_FIELD);
  return { under: kind === 1 };
}

/** Values after a reset. */
export function defaultFeatures(): FeatureValues {
  return {
    arbitration: 0,
    powerManagement: 0,
    temperatureOver: WARNING_TEMPERATURE,
    temperatureUnder: 0,
    errorRecovery: 0,
    volatileWriteCache: 1,
    interruptCoalescing: 0,
    writeAtomicity: 0,
    asyncEvents: 0,
    coalescingDisabled: [],
  };
}
