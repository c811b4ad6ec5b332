// SPDX-License-Identifier: Apache-2.0
/**
 * The state of one device on its way. A reset ends its saving: the guest rebooted, or its driver reset the device. A reset
 * brings a device back to RUNNING from every migration state; the stream that it had begun has no end any more, and what
 * the destination has loaded of it is worth nothing. Both begin anew. The log of what the device writes continues.
 */

import type { PageBitmap } from '../../migration/index.js';
import { MigrationFlag, MigrationState } from '../../wire/index.js';
import type { DeviceSocket } from '../device-socket.js';
import { type StatePlan, selectFormats } from '../state-plan.js';
import { createTransfer, type StateTransfer } from '../state-transfer.js';
import { Stopwatch } from '../stopwatch.js';
import { collectDirty, startLog } from './dirty-pages.js';

const { RUNNING, RESUMING, PRE_COPY } = MigrationState;

/** A round that moved less says nothing of the rate of longer ones: it is all round trips. */
const RATE_BYTES = 64 * 1024;

/** Where a state comes from and goes to, and how. */
export interface StreamEnds {
  readonly source: DeviceSocket;
  readonly destination: DeviceSocket;
  readonly plan: StatePlan;
}

export class DeviceStream {
  readonly #ends: StreamEnds;
  readonly #dirty: PageBitmap;
  /** Another one when the saving has begun anew. */
  #transfer: StateTransfer;
  #bytesPerMs = 0;
  #precopyBytes = 0;
  #stopBytes = 0;

  /** @param dirty takes what the device has written when its saving begins anew */
  constructor(ends: StreamEnds, dirty: PageBitmap) {
    this.#ends = ends;
    this.#dirty = dirty;
    this.#transfer = transferOf(ends);
  }

  /** Bytes per ms that pre-copy reached; 0 before. */
  get bytesPerMs(): number {
    return this.#bytesPerMs;
  }

  /** Bytes that were sent while the VM ran. */
  get precopyBytes(): number {
    return this.#precopyBytes;
  }

  /** Bytes that were sent when it stood. */
  get stopBytes(): number {
    return this.#stopBytes;
  }

  get #hasPrecopy(): boolean {
    return (this.#ends.source.flags & MigrationFlag.PRE_COPY) !== 0;
  }

  /** The destination takes state from the beginning, so that one that does not fit is refused while the VM runs. */
  async begin(): Promise<void> {
    const { source, destination, plan } = this.#ends;
    await selectFormats(plan, source.device, destination.device);
    await destination.device.setState(RESUMING);
    // Before QEMU reads its first page: a write that it could miss must be in the log.
    await startLog(source.device);
    if (this.#hasPrecopy) await source.device.setState(PRE_COPY);
  }

  /** One round of pre-copy; begins the saving anew where a reset has ended it. */
  async sendRound(signal: AbortSignal): Promise<void> {
    if (!this.#hasPrecopy) return;
    if (await this.#hasLeftPrecopy()) {
      await this.beginAgain();
      await this.#ends.source.device.setState(PRE_COPY);
    }
    try {
      const round = new Stopwatch();
      const bytes = await this.#transfer.round(signal);
      this.#precopyBytes += bytes;
      if (bytes >= RATE_BYTES) this.#bytesPerMs = bytes / round.elapsed;
    } catch (error) {
      // In the middle of it: the next round begins anew.
      if (signal.aborted || !(await this.#hasLeftPrecopy())) throw error;
    }
  }

  /** The VM stands: a device that was reset since it was last looked at has its destination ready for a whole state. */
  async makeReady(): Promise<void> {
    if (await this.#hasLeftPrecopy()) await this.beginAgain();
  }

  /** The last of the state, from a device in STOP_COPY. */
  async finish(signal: AbortSignal): Promise<void> {
    this.#stopBytes = await this.#transfer.finish(signal);
  }

  /** For a device that runs. */
  async beginAgain(): Promise<void> {
    const { plan, source, destination } = this.#ends;
    // Throws where the reset has ended the log too: what the device has written since, its server does not know.
    await collectDirty(source.device, this.#dirty);
    await destination.device.reset();
    await selectFormats(plan, source.device, destination.device);
    await destination.device.setState(RESUMING);
    this.#transfer = transferOf(this.#ends);
  }

  /** Whether the device does not save any more what it had begun to save. */
  async #hasLeftPrecopy(): Promise<boolean> {
    return this.#hasPrecopy && (await this.#ends.source.device.state()) === RUNNING;
  }
}

function transferOf({ plan, source, destination }: StreamEnds): StateTransfer {
  return createTransfer(plan, source.device, destination.device);
}
