// SPDX-License-Identifier: Apache-2.0
/** What a front of migration v1 needs of the device behind it: the life cycle of v2, as one connection sees it. */

import type { MigrationState } from '../../wire/index.js';

export interface LifeCycle {
  /** `MigrationFlag` bits. */
  readonly flags: number;
  readonly state: MigrationState;
  /** Another number whenever a saving or a loading begins or ends, and when the device is reset. */
  readonly generation: number;
  /** Goes to a state of v2, arc by arc; a failure leaves the last that was reached, or ERROR. */
  setState(target: MigrationState): Promise<void>;
  /** About how many bytes are still to be read if the device stopped now. */
  readonly dataSize: number;
  /** Up to `size` bytes of what is saved, as parts that will not change. Empty: nothing, in PRE_COPY for now. */
  read(size: number): Promise<Uint8Array[]>;
  /** Takes what is loaded. `bytes` are valid until the promise settles. */
  write(bytes: Uint8Array): void | Promise<void>;
  /** The device is neither what it was nor what it should be: ERROR, until it is reset. */
  breakDown(): Promise<void>;
}
