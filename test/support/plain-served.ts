// SPDX-License-Identifier: Apache-2.0
/** Something to serve without the SDK and without migration: regions as a test declares them, memory that is kept. */

import type {
  DmaPeer,
  ManagementPort,
  ServedDevice,
  ServedIrq,
  ServedRegion,
} from '../../src/server/index.js';
import { Errno, RequestError } from '../../src/wire/index.js';

export class PlainServed implements ServedDevice {
  readonly name = 'plain';
  readonly flags = 0;
  readonly irqs: readonly ServedIrq[] = [];
  readonly management: ManagementPort = {
    resets: 0,
    intxAssigned: false,
    note: new Uint8Array(0),
    describe: () => '{"this": "is not a description"}',
    dmaMaps: () => [],
    dmaFiles: () => ({ entries: [], files: [] }),
    readMemory: () => {},
    writeMemory: () => {},
  };
  peer: DmaPeer | undefined;
  visits = 0;
  /** Waited for by `disconnected`. */
  leaving: () => Promise<void> | void = () => {};

  constructor(readonly regions: readonly (ServedRegion | undefined)[]) {}

  dmaMap(): void {}
  dmaUnmap(): void {}
  setIrqs(): void {
    throw new RequestError(Errno.EINVAL, 'no interrupts');
  }
  readRegion(_region: number, _offset: number, target: Uint8Array): void {
    target.fill(0x42);
  }
  writeRegion(): void {}
  reset(): void {}
  connected(peer: DmaPeer): void {
    this.peer = peer;
    this.visits++;
  }
  disconnected(): Promise<void> | void {
    this.peer = undefined;
    return this.leaving();
  }
  openMigration(): undefined {
    return undefined;
  }
}
