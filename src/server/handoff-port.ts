// SPDX-License-Identifier: Apache-2.0
/** What the server asks of a device to hand it to a successor in another process, and what of the successor's device. */

import type { Bundle, BundleEntry } from '../handoff/index.js';
import type { DmaPeer } from './dma-peer.js';

/** A format of the state, as it is agreed on for a handoff. */
export interface HandoffFormat {
  readonly uuid: string;
  readonly major: number;
  readonly minor: number;
}

/** What goes over of a device. Whoever gets it closes the fds. */
export interface CapturedDevice {
  readonly entries: readonly BundleEntry[];
  /** See `packDocument`. */
  readonly document: unknown;
}

export interface HandoffPort {
  /** Before all that, while the device runs and serves: what needs no device is gone through once, to be fast later. */
  practise(format: HandoffFormat): Promise<void>;
  /** Keeps others from migrating or resetting the device. @throws RequestError when it cannot be handed over now, or at all */
  begin(format: HandoffFormat): Promise<void>;
  /** Stops it; region accesses are not made any more by then. */
  quiesce(): Promise<void>;
  /** All of it. It stays what it is. */
  capture(): Promise<CapturedDevice>;
  /** Continues, from wherever that has come to. Must not fail. */
  resume(): Promise<void>;

  /** Stops, for a device that no one uses yet, and makes sure that it can load the format. @throws RequestError when it cannot */
  rehearse(format: HandoffFormat): Promise<void>;
  /**
   * Becomes what comes out of the bundle, stopped. @param vmm undefined when there is none
   * @throws when it cannot: all that was taken has been released
   */
  adopt(bundle: Bundle, document: unknown, vmm: DmaPeer | undefined): Promise<void>;
  /** Begins, after `adopt`. */
  start(): Promise<void>;

  /** The device is another process's: releases everything, and changes nothing that the other one has. */
  relinquish(): Promise<void>;
}
