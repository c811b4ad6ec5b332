// SPDX-License-Identifier: Apache-2.0
/** A device's migration as one connection sees it: its choices, and, for protocol v1, its region. */

import type { MigrationPort, ValuesPort } from '../server/index.js';
import type {
  DmaLoggingReport,
  DmaLoggingStart,
  FormatSelection,
  MigrationState,
  WireFormatOffer,
} from '../wire/index.js';
import type { FormatChoice } from './format-choice.js';
import type { MigrationEngine } from './migration-engine.js';
import { MigrationRegion, type MigrationRegionOptions } from './migration-region.js';

/** What a connection can migrate the device by. */
export interface ServedProtocols {
  readonly v2: boolean;
  /** For v1. */
  readonly region?: MigrationRegionOptions | undefined;
}

export class EnginePort implements MigrationPort {
  readonly #engine: MigrationEngine;
  readonly choice: FormatChoice = {};
  readonly servesV2: boolean;
  readonly region: MigrationRegion | undefined;

  constructor(engine: MigrationEngine, { v2, region }: ServedProtocols) {
    this.#engine = engine;
    this.servesV2 = v2;
    if (region !== undefined) this.region = new MigrationRegion(this, region);
  }

  get flags(): number {
    return this.#engine.flags;
  }

  get state(): MigrationState {
    return this.#engine.state;
  }

  get dataSize(): number {
    return this.#engine.dataSize;
  }

  get generation(): number {
    return this.#engine.generation;
  }

  setState(target: number): Promise<void> {
    return this.#engine.setState(this, target);
  }

  breakDown(): Promise<void> {
    return this.#engine.breakDown(this);
  }

  read(size: number): Promise<Uint8Array[]> {
    return this.#engine.read(this, size);
  }

  write(bytes: Uint8Array): void | Promise<void> {
    return this.#engine.write(this, bytes);
  }

  startLogging(start: DmaLoggingStart): number {
    return this.#engine.log.start(this, start);
  }

  stopLogging(): void {
    this.#engine.log.stop(this);
  }

  get logs(): boolean {
    return this.#engine.log.isOf(this);
  }

  writeByMessage(on: boolean): void {
    this.#engine.writeByMessage(this, on);
  }

  reportLogging(report: DmaLoggingReport, bitmap: Uint8Array): void | Promise<void> {
    return this.#engine.log.report(this, report, bitmap);
  }

  formatOffers(): WireFormatOffer[] {
    return this.#engine.formatOffers();
  }

  selectFormat(selection: FormatSelection): void {
    this.#engine.selectFormat(this, selection);
  }

  get values(): ValuesPort | undefined {
    return this.#engine.valuesFor(this);
  }

  reset(): Promise<void> {
    return this.#engine.reset('aborted', this);
  }

  close(): Promise<void> {
    this.region?.close();
    return this.#engine.release(this);
  }
}
