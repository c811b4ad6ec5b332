// SPDX-License-Identifier: Apache-2.0
/** What the controller knows about its own health: SMART counters, temperature, the log of errors; and the log pages. */

import {
  CRITICAL_WARNING_TEMPERATURE,
  changedNamespacesLog,
  commandsSupportedLog,
  Dword,
  ERROR_LOG_ENTRIES,
  type ErrorEntry,
  errorLog,
  firmwareLog,
  LogPage,
  nextErrorCount,
  type SmartCounters,
  smartLog,
} from '../spec/index.js';
import type { Command } from './command.js';
import type { FeatureValues } from './features.js';

/** Kelvin; it never changes. */
export const COMPOSITE_TEMPERATURE = 303;

export interface HealthState {
  counters: SmartCounters;
  /** Errors logged since the controller was made. */
  errorCount: number;
  /** The newest ones, newest first. */
  errors: ErrorEntry[];
}

export class Health {
  #state: HealthState = emptyHealth();

  get counters(): SmartCounters {
    return this.#state.counters;
  }

  /** Logs a command's error. `status` without phase. */
  logError(command: Command, status: number): void {
    this.#log({
      sqid: command.sq.id,
      cid: command.cid,
      status,
      lba: Math.min(command.qword(Dword.CDW10), Number.MAX_SAFE_INTEGER),
      nsid: command.nsid,
    });
  }

  /** Logs an error that belongs to no command. */
  logGeneral(status: number): void {
    this.#log({ sqid: 0xffff, cid: 0xffff, status, lba: 0, nsid: 0 });
  }

  #log(entry: Omit<ErrorEntry, 'count'>): void {
    const { errors, errorCount } = this.#state;
    const count = nextErrorCount(errorCount);
    this.#state.errorCount = count;
    errors.unshift({ count, ...entry });
    if (errors.length > ERROR_LOG_ENTRIES) errors.pop();
  }

  /** Critical warnings (byte 0 of the SMART log). */
  criticalWarning(features: FeatureValues): number {
    const { temperatureOver, temperatureUnder } = features;
    const outside = COMPOSITE_TEMPERATURE >= temperatureOver || COMPOSITE_TEMPERATURE <= temperatureUnder;
    return outside ? CRITICAL_WARNING_TEMPERATURE : 0;
  }

  /** The bytes of a log page; undefined if it does not exist. */
  logPage(id: number, features: FeatureValues, firmware: string): Uint8Array | undefined {
    switch (id) {
      case LogPage.ERROR_INFORMATION:
        return errorLog(this.#state.errors, ERROR_LOG_ENTRIES);
      case LogPage.SMART:
        return smartLog(this.#state.counters, {
          criticalWarning: this.criticalWarning(features),
          temperature: COMPOSITE_TEMPERATURE,
          errorEntries: this.#state.errorCount,
        });
      case LogPage.FIRMWARE_SLOT:
        return firmwareLog(firmware);
      case LogPage.CHANGED_NAMESPACES:
        return changedNamespacesLog();
      case LogPage.COMMANDS_SUPPORTED:
        return commandsSupportedLog();
      default:
        return undefined;
    }
  }

  clear(): void {
    this.#state = emptyHealth();
  }

  save(): HealthState {
    return structuredClone(this.#state);
  }

  load(state: HealthState): void {
    this.#state = structuredClone(state);
  }
}

function emptyHealth(): HealthState {
  return {
    counters: { bytesRead: 0, bytesWritten: 0, readCommands: 0, writeCommands: 0, mediaErrors: 0 },
    errorCount: 0,
    errors: [],
  };
}
