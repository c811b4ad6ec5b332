// SPDX-License-Identifier: Apache-2.0
/** The life cycle of a device's migration, as who has a certain claim to it drives it. */

import type { LifeCycle } from '../migration/index.js';
import type { MigrationState } from '../wire/index.js';
import type { Claim } from './claim.js';
import type { MigrationEngine } from './migration-engine.js';

export class ClaimedEngine implements LifeCycle {
  constructor(
    protected readonly engine: MigrationEngine,
    protected readonly claim: Claim,
  ) {}

  get flags(): number {
    return this.engine.flags;
  }

  get state(): MigrationState {
    return this.engine.state;
  }

  get dataSize(): number {
    return this.engine.dataSize;
  }

  get generation(): number {
    return this.engine.generation;
  }

  setState(target: number): Promise<void> {
    return this.engine.setState(this.claim, target);
  }

  breakDown(): Promise<void> {
    return this.engine.breakDown(this.claim);
  }

  read(size: number): Promise<Uint8Array[]> {
    return this.engine.read(this.claim, size);
  }

  write(bytes: Uint8Array): void | Promise<void> {
    return this.engine.write(this.claim, bytes);
  }
}
