// SPDX-License-Identifier: Apache-2.0
/** How a device survives a crash of its server: optional. The counter in `src/devices/counter` is an example. */

/**
 * State that survives a crash of the server. All that changes in one transaction is kept or nothing of it, and what it
 * sets off happens when it is kept: interrupts, and what `write` writes. A region access is a transaction, with its reply.
 *
 * Without a crash journal all of this happens at once.
 */
export interface HostJournal {
  /** Whether there is a journal. */
  readonly keeps: boolean;
  /** The two ends of a transaction, for what does not fit into one function. They nest. */
  begin(): void;
  end(): void;
  /** What is changed by anything but a region access: a completion, a timer. */
  transaction<T>(work: () => T): T;
  /**
   * Writes guest memory when what caused it is kept, the last 4 bytes last. For what tells the guest of something: data
   * that this announces may be written at any time before. Some kilobytes at most in one transaction.
   */
  write(address: number, bytes: Uint8Array): void;
}

/** A device whose state survives a crash of the server. */
export interface DeviceJournal {
  /** What it keeps: names, and the most bytes of each. The same in every start of the same device. */
  readonly records: readonly { readonly name: string; readonly capacity: number }[];
  /**
   * Called at the end of every transaction: `put` those records (by index) that have changed since. Together they must be
   * all of the device's state but for its config space and what belongs to the VMM.
   */
  save(put: (record: number, bytes: Uint8Array) => void): void;
  /** Becomes what was kept, stopped: `resume` follows, and begins anew what was under way. */
  restore(get: (record: number) => Uint8Array | undefined): void;
}
