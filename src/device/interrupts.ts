// SPDX-License-Identifier: Apache-2.0
/**
 * How a device interrupts its guest: INTx is a level (an edge if the device says so), MSI and MSI-X vectors are edges.
 *
 * An interrupt that cannot be delivered now (the device is stopped, its vector has no eventfd yet, INTx is masked) is not
 * lost: it stays pending, as the PBA bit of a masked MSI-X vector does, and fires when it can. That matters most at a
 * migration's destination, where the VMM assigns eventfds after the state has been loaded.
 */

/** What of the interrupts belongs to the device's state. */
export interface InterruptState {
  /** MSI-X vectors that are pending. */
  readonly pendingMsix: readonly number[];
  readonly pendingMsi: readonly number[];
}

export interface Interrupts {
  /** The VMM has MSI-X turned on. */
  readonly msixEnabled: boolean;
  readonly msiEnabled: boolean;

  /** Raises an MSI-X vector; one that the device does not have is ignored. */
  triggerMsix(vector: number): void;

  /** Raises an MSI vector; one that the device does not have is ignored. */
  triggerMsi(vector: number): void;

  /** Drives the INTx line. While it is asserted, each unmask by the VMM signals again: INTx is a level. */
  setIntx(asserted: boolean): void;
  readonly intxAsserted: boolean;

  /** Raises INTx once, for a device whose INTx is an edge. */
  triggerIntx(): void;
  /** INTx was raised, and could not be signalled yet. */
  readonly intxPending: boolean;

  /** Forgets what is pending and drops the INTx line: the device was reset. What the VMM has set up stays. */
  reset(): void;

  save(): InterruptState;
  /** Makes vectors pending as they were in `state`. @throws RequestError EINVAL for one that this device does not have */
  load(state: InterruptState): void;
}
