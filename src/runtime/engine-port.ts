// SPDX-License-Identifier: Apache-2.0
/** A device's migration as one connection sees it: its choices, and, for protocol v1, its region. */

import type { MigrationPort, ValuesPort } from '../server/index.js';
import type { DmaLoggingReport, DmaLoggingStart, FormatSelection, WireFormatOffer } from '../wire/index.js';
import { Claim } from './claim.js';
import { ClaimedEngine } from './claimed-engine.js';
import type { MigrationEngine } from './migration-engine.js';
import { MigrationRegion, type MigrationRegionOptions } from './migration-region.js';

/** What a connection can migrate the device by. */
export interface ServedProtocols {
  readonly v2: boolean;
  /** For v1. */
  readonly region?: MigrationRegionOptions | undefined;
}

export class EnginePort extends ClaimedEngine implements MigrationPort {
  readonly servesV2: boolean;
  readonly region: MigrationRegion | undefined;

  constructor(engine: MigrationEngine, { v2, region }: ServedProtocols = { v2: true }) {
    super(engine, new Claim());
    this.servesV2 = v2;
    if (region !== undefined)
      this.region = new MigrationRegion(new ClaimedEngine(engine, this.claim), region);
  }

  startLogging(start: DmaLoggingStart): number {
    return this.engine.log.start(this.claim, start);
  }

  stopLogging(): void {
    this.engine.log.stop(this.claim);
  }

  get logs(): boolean {
    return this.engine.log.isOf(this.claim);
  }

  get drives(): boolean {
    return this.logs || this.engine.isDrivenBy(this.claim);
  }

  writeByMessage(on: boolean): void {
    this.engine.writeByMessage(this.claim, on);
  }

  reportLogging(report: DmaLoggingReport, bitmap: Uint8Array): void | Promise<void> {
    return this.engine.log.report(this.claim, report, bitmap);
  }

  formatOffers(): WireFormatOffer[] {
    return this.engine.formatOffers();
  }

  selectFormat(selection: FormatSelection): void {
    this.engine.selectFormat(this.claim, selection);
  }

  get values(): ValuesPort | undefined {
    return this.engine.valuesFor(this.claim);
  }

  reset(): Promise<void> {
    return this.engine.reset('aborted', this.claim);
  }

  close(): Promise<void> {
    this.region?.close();
    return this.engine.release(this.claim);
  }
}
