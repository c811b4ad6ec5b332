// SPDX-License-Identifier: Apache-2.0
/** Interrupts and the MSI-X table's BAR: a vector for each completion queue, or INTx as a level (NVMe 1.4, section 7.5). */

import { type DeviceHost, PciCapability, PciCommand, type PciConfigSpace } from '../../../device/index.js';
import { MSIX_PBA_OFFSET, type NvmeParameters, pendingBits, Register } from '../spec/index.js';
import { type ControllerImage, completionAt } from './controller-image.js';
import {
  CompletionSlot,
  QueueSlot,
  QueueState,
  VECTOR_BITMAP_SIZE,
  VECTOR_SIZE,
  VECTORS_AT,
} from './layout.js';

/** In the high byte of MSI-X message control. */
const MSIX_ENABLE = 0x80;
/** Vectors that INTMS has a bit for. */
const MASKABLE = 32;

/** What the interrupts depend on. */
export interface InterruptSources {
  readonly image: ControllerImage;
  readonly config: PciConfigSpace;
  readonly parameters: NvmeParameters;
  host(): DeviceHost;
  /** Not quiesced. */
  running(): boolean;
}

export class BirchInterrupts {
  readonly #sources: InterruptSources;
  readonly #image: ControllerImage;
  readonly #msixControl: number;
  readonly #queues: number;
  readonly #tableSize: number;

  constructor(sources: InterruptSources) {
    this.#sources = sources;
    this.#image = sources.image;
    this.#msixControl = sources.config.findCapability(PciCapability.MSIX) + 3;
    this.#queues = sources.parameters.queues;
    this.#tableSize = VECTOR_SIZE * sources.parameters.msix_vectors;
  }

  /** Entries were written to a completion queue, or it became empty. */
  announce(id: number): void {
    if (!this.#usesMsix()) {
      this.updateLine();
      return;
    }
    const at = completionAt(id);
    if (this.#hasNews(at))
      this.#sources.host().interrupts.triggerMsix(this.#image.u16(at + CompletionSlot.VECTOR));
  }

  /** Announces all that is unread. What was raised before a pause may not have arrived, and one too many does no harm. */
  announceAll(): void {
    for (let id = 0; id <= this.#queues; id++) if (this.#hasNews(completionAt(id))) this.announce(id);
    this.updateLine();
  }

  /** INTx is up while a queue that interrupts has unread entries and its vector is not masked by INTMS. */
  updateLine(): void {
    let due = false;
    if (!this.#usesMsix()) {
      const mask = this.#image.register(Register.INTMS);
      for (let id = 0; id <= this.#queues && !due; id++) {
        const at = completionAt(id);
        const vector = this.#image.u16(at + CompletionSlot.VECTOR);
        due = this.#hasNews(at) && (vector >= MASKABLE || (mask & (1 << vector)) === 0);
      }
    }
    this.#sources.config.setInterruptStatus(due);
    const asserted = due && (this.#sources.config.command & PciCommand.INTX_DISABLE) === 0;
    // While quiesced the line may fall but not rise; `announceAll` makes up for it.
    if (!asserted || this.#sources.running()) this.#sources.host().interrupts.setIntx(asserted);
  }

  /** The MSI-X table's BAR. A VMM emulates the table, so it is memory and no more; the pending bits are real. */
  readTable(offset: number, target: Uint8Array): void {
    const pending = pendingBits(this.#sources.host().interrupts.save().pendingMsix, VECTOR_BITMAP_SIZE);
    for (let i = 0; i < target.length; i++) {
      const at = offset + i;
      if (at < this.#tableSize) target[i] = this.#image.u8(VECTORS_AT + at);
      else target[i] = at < MSIX_PBA_OFFSET ? 0 : (pending[at - MSIX_PBA_OFFSET] ?? 0);
    }
  }

  writeTable(offset: number, data: Uint8Array): void {
    for (let i = 0; i < data.length && offset + i < this.#tableSize; i++) {
      this.#image.setU8(VECTORS_AT + offset + i, data[i]!);
    }
  }

  /** An interrupting completion queue with unread entries. */
  #hasNews(at: number): boolean {
    const image = this.#image;
    return (
      image.u8(at + QueueSlot.STATE) === QueueState.PRESENT &&
      image.u8(at + CompletionSlot.INTERRUPTS) === 1 &&
      image.u32(at + QueueSlot.HEAD) !== image.u32(at + QueueSlot.TAIL)
    );
  }

  /**
   * At a migration's destination the config space says so before the VMM has assigned eventfds; what is raised in
   * between stays pending. A client that never touches the config space only assigns them.
   */
  #usesMsix(): boolean {
    return (
      this.#sources.host().interrupts.msixEnabled ||
      (this.#sources.config.bytes[this.#msixControl]! & MSIX_ENABLE) !== 0
    );
  }
}
