// SPDX-License-Identifier: Apache-2.0
/** Which interrupt tells the guest of completions: an MSI-X vector per queue, or INTx as a level (NVMe 1.4, section 7.5). */

import { PciCapability, PciCommand, type PciConfigSpace } from '../../../device/index.js';
import type { Controller } from './controller.js';
import type { CompletionQueue } from './queues.js';

const MSIX_ENABLE = 0x80;

export class InterruptOutput {
  /** Offset of the high byte of MSI-X message control. */
  readonly #msixControl: number;

  constructor(
    readonly controller: Controller,
    readonly config: PciConfigSpace,
  ) {
    this.#msixControl = config.findCapability(PciCapability.MSIX) + 3;
  }

  /**
   * MSI-X is in use. At a migration's destination the config space says so before the VMM has assigned eventfds; what is
   * raised in between stays pending. A client that never touches the config space just assigns them.
   */
  get #msix(): boolean {
    return (
      this.controller.host.interrupts.msixEnabled ||
      (this.config.bytes[this.#msixControl]! & MSIX_ENABLE) !== 0
    );
  }

  /** Entries of `cq` were written, or it became empty. */
  announce(cq: CompletionQueue): void {
    if (!this.#msix) this.updateLine();
    else if (cq.interruptsEnabled && !cq.empty) this.controller.host.interrupts.triggerMsix(cq.vector);
  }

  /** Announces everything that is unread. An interrupt of before a pause may not have arrived; one too many does no harm. */
  announceAll(): void {
    for (const cq of this.controller.engine.completion) {
      if (cq !== undefined && !cq.empty) this.announce(cq);
    }
    this.updateLine();
  }

  /** INTx is up while a queue that interrupts holds entries, unless its vector is masked by INTMS. */
  updateLine(): void {
    const { host, registers, engine } = this.controller;
    const mask = registers.interruptMask;
    const due =
      !this.#msix &&
      engine.completion.some(
        (cq) =>
          cq?.interruptsEnabled === true && !cq.empty && (cq.vector >= 32 || (mask & (1 << cq.vector)) === 0),
      );
    this.config.setInterruptStatus(due);
    const asserted = due && (this.config.command & PciCommand.INTX_DISABLE) === 0;
    // Quiesced, it raises no interrupt; `announceAll` makes up for it.
    if (!asserted || this.controller.running) host.interrupts.setIntx(asserted);
  }
}
