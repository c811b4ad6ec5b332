// SPDX-License-Identifier: Apache-2.0
/** What the engine needs of the controller. */

import type { DeviceHost } from '../../../device/index.js';

export interface EngineOwner {
  readonly host: DeviceHost;
  /**
   * Carries out the command in a slot; dword 0 of its completion goes to `CommandSlot.RESULT`. Does not throw.
   * @returns the status it ended with, `PENDING` or `PARKED`
   */
  execute(slot: number): number;
  /** A command ended with an error status, for the log. @returns the status field to report */
  failed(slot: number, status: number): number;
  /** An event request has begun to wait. */
  parked(): void;
  /** Entries were written to a completion queue, or it became empty. */
  announce(cqid: number): void;
  /** The rings cannot be reached: no command can be taken or completed any more. */
  fatal(reason: string): void;
}

/** `execute` returns it for a command that ends later, by `QueueEngine.finish`. */
export const PENDING = -1;
/** `execute` returns it for an Asynchronous Event Request that waits for its event. */
export const PARKED = -2;
