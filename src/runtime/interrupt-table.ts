// SPDX-License-Identifier: Apache-2.0
/** The eventfds that the VMM has assigned to the device's interrupts, what it has masked, and what is pending. */

import type { InterruptState, Interrupts } from '../device/index.js';
import { closeAll, type Fd } from '../transport/index.js';
import { Errno, IrqSetFlag, PciIrq, RequestError, type SetIrqs } from '../wire/index.js';

/** Something to signal: an eventfd that this object owns. */
export interface Signal {
  signal(): void;
  close(): void;
  /** A second owner of the eventfd, to hand over. */
  duplicate?(): Fd;
}

/** One kind of interrupt as a successor takes it over. Numbers are vectors. */
export interface FrozenVectors {
  readonly enabled: boolean;
  readonly masked: readonly number[];
  readonly pending: readonly number[];
  /** Those that have an eventfd. */
  readonly assigned: readonly number[];
}

/** All that is to be known of the interrupts but for the eventfds themselves. */
export interface FrozenInterrupts {
  readonly intxLevel: boolean;
  /** By `PciIrq`. */
  readonly kinds: readonly FrozenVectors[];
}

class Vectors {
  readonly signals: (Signal | undefined)[];
  readonly masked: boolean[];
  readonly pending: boolean[];
  /** The VMM has turned this kind of interrupt on. */
  enabled = false;

  constructor(readonly count: number) {
    this.signals = new Array<Signal | undefined>(count).fill(undefined);
    this.masked = new Array<boolean>(count).fill(false);
    this.pending = new Array<boolean>(count).fill(false);
  }

  assign(vector: number, signal: Signal | undefined): void {
    this.signals[vector]?.close();
    this.signals[vector] = signal;
  }

  clear(): void {
    for (let i = 0; i < this.count; i++) this.assign(i, undefined);
    this.enabled = false;
    this.masked.fill(false);
  }

  pendingList(): number[] {
    return vectorsOf(this.pending);
  }

  freeze(): FrozenVectors {
    return {
      enabled: this.enabled,
      masked: vectorsOf(this.masked),
      pending: vectorsOf(this.pending),
      assigned: vectorsOf(this.signals.map((signal) => signal !== undefined)),
    };
  }

  /** What a VMM sets changes hands; what is pending is the device's. */
  exchange(other: Vectors): void {
    for (let i = 0; i < this.count; i++) {
      [this.signals[i], other.signals[i]] = [other.signals[i], this.signals[i]];
      [this.masked[i], other.masked[i]] = [other.masked[i]!, this.masked[i]!];
    }
    [this.enabled, other.enabled] = [other.enabled, this.enabled];
  }

  /** `signals` are those of `assigned`, in order. */
  thaw({ enabled, masked, pending, assigned }: FrozenVectors, signals: readonly Signal[]): void {
    this.clear();
    this.enabled = enabled;
    this.pending.fill(false);
    for (const vector of masked) this.masked[vector] = true;
    for (const vector of pending) this.pending[vector] = true;
    for (const [i, vector] of assigned.entries()) this.assign(vector, signals[i]);
  }
}

export class InterruptTable implements Interrupts {
  readonly #kinds: Vectors[];
  readonly #edgeIntx: boolean;
  #held = false;
  #intxHeld = false;
  #intxLevel = false;
  #changed = false;

  /**
   * `counts[i]` is the number of interrupts of `PciIrq` index i.
   * @param options.edgeIntx INTx is no level: it is triggered, and not masked when it has been signalled
   */
  constructor(
    readonly counts: readonly number[],
    { edgeIntx = false }: { edgeIntx?: boolean } = {},
  ) {
    this.#edgeIntx = edgeIntx;
    this.#kinds = counts.map((count) => new Vectors(count));
  }

  /** The VMM has MSI-X turned on. */
  get msixEnabled(): boolean {
    return this.#kinds[PciIrq.MSIX]?.enabled ?? false;
  }

  get msiEnabled(): boolean {
    return this.#kinds[PciIrq.MSI]?.enabled ?? false;
  }

  /** The VMM waits for INTx. */
  get intxAssigned(): boolean {
    return this.#kinds[PciIrq.INTX]?.signals[0] !== undefined;
  }

  /** Raises an MSI-X vector. */
  triggerMsix(vector: number): void {
    this.#trigger(PciIrq.MSIX, vector);
  }

  /** Raises an MSI vector. */
  triggerMsi(vector: number): void {
    this.#trigger(PciIrq.MSI, vector);
  }

  /** Raises INTx once, for a device whose INTx is an edge. */
  triggerIntx(): void {
    this.#trigger(PciIrq.INTX, 0);
  }

  /** INTx was raised, and could not be signalled yet. */
  get intxPending(): boolean {
    return this.#kinds[PciIrq.INTX]?.pending[0] ?? false;
  }

  /** Drives the INTx line. While it is asserted, each unmask by the VMM signals again: INTx is a level. */
  setIntx(asserted: boolean): void {
    const rising = asserted && !this.#intxLevel;
    this.#changed ||= asserted !== this.#intxLevel;
    this.#intxLevel = asserted;
    if (rising) this.#trigger(PciIrq.INTX, 0);
    else if (!asserted) this.#clearPending(PciIrq.INTX, 0);
  }

  get intxAsserted(): boolean {
    return this.#intxLevel;
  }

  /** While held nothing is signalled, everything becomes pending. */
  hold(): void {
    this.#held = true;
  }

  /**
   * INTx alone: while held it becomes pending. QEMU that comes up by CPR waits for the eventfd of the one before it, and would
   * take what is the other's.
   */
  holdIntx(held: boolean): void {
    this.#intxHeld = held;
    this.#deliver(PciIrq.INTX, 0);
  }

  /** Ends the hold and signals what is pending. */
  release(): void {
    this.#held = false;
    this.#changed = true;
    this.#kinds.forEach((kind, index) => {
      for (let vector = 0; vector < kind.count; vector++) this.#deliver(index, vector);
    });
  }

  /** Forgets what is pending and drops the INTx line: the device was reset. Assignments stay. */
  reset(): void {
    this.#intxLevel = false;
    this.#changed = true;
    for (const kind of this.#kinds) kind.pending.fill(false);
  }

  /** For a successor, with a second owner of each eventfd: by kind, in the order of its `assigned`. */
  freeze(): { state: FrozenInterrupts; eventfds: Fd[][] } {
    const kinds = this.#kinds.map((kind) => kind.freeze());
    const eventfds: Fd[][] = [];
    try {
      for (const [index, { assigned }] of kinds.entries()) {
        const copies: Fd[] = [];
        eventfds.push(copies);
        for (const vector of assigned) copies.push(this.#duplicate(index, vector));
      }
    } catch (error) {
      closeAll(eventfds.flat());
      throw error;
    }
    return { state: { intxLevel: this.#intxLevel, kinds }, eventfds };
  }

  /** Whether `state` may have changed since this was asked last. */
  takeChanged(): boolean {
    const changed = this.#changed;
    this.#changed = false;
    return changed;
  }

  /** As `freeze` has it, with the signals themselves in place of second owners. */
  get state(): { state: FrozenInterrupts; signals: Signal[][] } {
    const kinds = this.#kinds.map((kind) => kind.freeze());
    const signals = kinds.map(({ assigned }, index) =>
      assigned.map((vector) => this.#kinds[index]!.signals[vector]!),
    );
    return { state: { intxLevel: this.#intxLevel, kinds }, signals };
  }

  #duplicate(index: number, vector: number): Fd {
    const copy = this.#kinds[index]?.signals[vector]?.duplicate?.();
    if (copy === undefined)
      throw new RequestError(Errno.ENOTSUP, `vector ${vector} of index ${index} is no eventfd`);
    return copy;
  }

  /**
   * Becomes what a predecessor's were, held. Takes ownership of the signals only when it does not throw.
   * @throws RequestError EINVAL when it had other interrupts
   */
  thaw({ intxLevel, kinds }: FrozenInterrupts, signals: readonly (readonly Signal[])[]): void {
    const fits = kinds.every(({ masked, pending, assigned }, index) => {
      const count = this.counts[index] ?? 0;
      const exists = (vector: number): boolean => vector < count;
      return [masked, pending, assigned].every((vectors) => vectors.every(exists));
    });
    if (kinds.length !== this.#kinds.length || !fits)
      throw new RequestError(Errno.EINVAL, 'the interrupts of the two devices differ');
    this.#held = true;
    this.#intxLevel = intxLevel;
    this.#kinds.forEach((kind, index) => {
      kind.thaw(kinds[index]!, signals[index] ?? []);
    });
  }

  /**
   * Has the eventfds and masks of another one with the same interrupts, and the other these. Levels and what is pending
   * stay with the device. To be called held.
   */
  exchange(other: InterruptTable): void {
    this.#kinds.forEach((kind, index) => {
      kind.exchange(other.#kinds[index]!);
    });
    for (const interrupts of [this, other]) interrupts.#showIntx();
  }

  /** A level must be seen on an eventfd that has not signalled it. */
  #showIntx(): void {
    const intx = this.#kinds[PciIrq.INTX];
    if (!this.#edgeIntx && intx?.pending[0] !== undefined) intx.pending[0] = this.#intxLevel;
  }

  /** Closes every eventfd: the VMM is gone. */
  disconnect(): void {
    this.#changed = true;
    for (const kind of this.#kinds) kind.clear();
  }

  save(): InterruptState {
    return {
      pendingMsix: this.#kinds[PciIrq.MSIX]?.pendingList() ?? [],
      pendingMsi: this.#kinds[PciIrq.MSI]?.pendingList() ?? [],
    };
  }

  /** Makes vectors pending as they were in `state`; ones that this device does not have are refused. */
  load(state: InterruptState): void {
    this.#changed = true;
    this.#loadPending(PciIrq.MSIX, state.pendingMsix);
    this.#loadPending(PciIrq.MSI, state.pendingMsi);
  }

  #loadPending(index: number, vectors: readonly number[]): void {
    const kind = this.#kinds[index];
    for (const vector of vectors) {
      if (kind?.pending[vector] === undefined) {
        throw new RequestError(Errno.EINVAL, `pending interrupt vector ${vector} does not exist here`);
      }
    }
    if (kind === undefined) return;
    kind.pending.fill(false);
    for (const vector of vectors) kind.pending[vector] = true;
  }

  /**
   * DEVICE_SET_IRQS. `signals` are what the message's fds became, one a vector for DATA_EVENTFD, or none to de-assign.
   * Takes ownership of them only when it does not throw. @throws RequestError EINVAL
   */
  set(request: SetIrqs, data: Uint8Array, signals: readonly Signal[]): void {
    this.#changed = true;
    const { index, start, count } = request;
    const dataKind = request.flags & IrqSetFlag.DATA_MASK;
    const action = request.flags & IrqSetFlag.ACTIONS_MASK;
    const kind = this.#kinds[index];
    if (!isOneBit(dataKind) || !isOneBit(action) || (request.flags & ~0x3f) !== 0) {
      throw new RequestError(Errno.EINVAL, `SET_IRQS flags 0x${request.flags.toString(16)}`);
    }
    if (kind === undefined || start + count > kind.count) {
      throw new RequestError(
        Errno.EINVAL,
        `SET_IRQS vectors ${start}+${count} of index ${index} do not exist`,
      );
    }
    if (dataKind !== IrqSetFlag.DATA_EVENTFD && signals.length > 0) {
      throw new RequestError(Errno.EINVAL, 'SET_IRQS carries fds but does not say eventfd');
    }
    if (dataKind === IrqSetFlag.DATA_BOOL && data.length < count) {
      throw new RequestError(Errno.EINVAL, `SET_IRQS needs ${count} bytes of data, got ${data.length}`);
    }
    if (count === 0) {
      // The documented way to turn a whole index off: NONE and TRIGGER with nothing.
      if (dataKind !== IrqSetFlag.DATA_NONE || action !== IrqSetFlag.ACTION_TRIGGER || start !== 0) {
        throw new RequestError(Errno.EINVAL, 'SET_IRQS of no vectors');
      }
      kind.clear();
      return;
    }
    if (dataKind === IrqSetFlag.DATA_EVENTFD) this.#assign(kind, index, action, start, count, signals);
    else {
      for (let i = 0; i < count; i++) {
        if (dataKind === IrqSetFlag.DATA_NONE || data[i] !== 0) this.#act(kind, index, action, start + i);
      }
    }
  }

  #assign(
    kind: Vectors,
    index: number,
    action: number,
    start: number,
    count: number,
    signals: readonly Signal[],
  ): void {
    if (action !== IrqSetFlag.ACTION_TRIGGER) {
      throw new RequestError(Errno.EINVAL, 'SET_IRQS: masking by eventfd is not supported');
    }
    if (signals.length !== 0 && signals.length !== count) {
      throw new RequestError(Errno.EINVAL, `SET_IRQS of ${count} vectors carries ${signals.length} eventfds`);
    }
    kind.enabled = true;
    for (let i = 0; i < count; i++) {
      kind.assign(start + i, signals[i]);
      if (index === PciIrq.INTX) {
        // A new eventfd starts unmasked, and a line that is up must be seen on it.
        kind.masked[start + i] = false;
        if (!this.#edgeIntx) kind.pending[start + i] = this.#intxLevel;
      }
      this.#deliver(index, start + i);
    }
  }

  #act(kind: Vectors, index: number, action: number, vector: number): void {
    if (action === IrqSetFlag.ACTION_MASK) kind.masked[vector] = true;
    else if (action === IrqSetFlag.ACTION_UNMASK) {
      kind.masked[vector] = false;
      if (index === PciIrq.INTX && this.#intxLevel) kind.pending[vector] = true;
      this.#deliver(index, vector);
    } else this.#trigger(index, vector);
  }

  #trigger(index: number, vector: number): void {
    const kind = this.#kinds[index];
    if (kind === undefined || vector >= kind.count) return;
    const before = kind.pending[vector];
    kind.pending[vector] = true;
    this.#deliver(index, vector);
    // A vector that was signalled at once is as it was; a level is masked from then on.
    this.#changed ||= kind.pending[vector] !== before || index === PciIrq.INTX;
  }

  #clearPending(index: number, vector: number): void {
    const kind = this.#kinds[index];
    if (kind !== undefined && vector < kind.count) kind.pending[vector] = false;
  }

  #deliver(index: number, vector: number): void {
    const kind = this.#kinds[index];
    const held = this.#held || (this.#intxHeld && index === PciIrq.INTX);
    if (kind === undefined || held || !kind.pending[vector] || kind.masked[vector]) return;
    const signal = kind.signals[vector];
    if (signal === undefined) return;
    kind.pending[vector] = false;
    // A level is automasked: it is not signalled again before the VMM unmasks it.
    if (index === PciIrq.INTX && !this.#edgeIntx) kind.masked[vector] = true;
    signal.signal();
  }
}

/** Indexes of what is true. */
function vectorsOf(flags: readonly boolean[]): number[] {
  return flags.flatMap((flag, vector) => (flag ? [vector] : []));
}

function isOneBit(value: number): boolean {
  return value !== 0 && (value & (value - 1)) === 0;
}
