// SPDX-License-Identifier: Apache-2.0
/**
 * What each arc of the migration state machine does to a device of the SDK, and the sessions that move its state.
 * Several connections may look; one at a time drives: the *owner*, from its first state change until the device
 * runs again or the owner is gone.
 */

import type { Device, ResetReason } from '../device/index.js';
import { asDevstateError } from '../errors.js';
import { BrokenDeviceError, MigrationMachine } from '../migration/index.js';
import type { DmaPeer, ValuesPort } from '../server/index.js';
import {
  Errno,
  type FormatSelection,
  MigrationFlag,
  MigrationState,
  migrationStateName,
  RequestError,
  type WireFormatOffer,
} from '../wire/index.js';
import { Claim } from './claim.js';
import { DmaLog } from './dma-log.js';
import type { DmaTable } from './dma-table.js';
import {
  chooseFormat,
  type FormatChoice,
  formatOffers,
  type StateOffer,
  stateOffer,
} from './format-choice.js';
import type { InterruptTable } from './interrupt-table.js';
import { StateSessions } from './state-sessions.js';

const { ERROR, STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P } = MigrationState;

/** Every device of the SDK can do all of migration v2: quiescing for P2P is the same as quiescing. */
const MIGRATION_FLAGS = MigrationFlag.STOP_COPY | MigrationFlag.P2P | MigrationFlag.PRE_COPY;

/** Names an arc in a `switch`. */
const arc = (from: MigrationState, to: MigrationState): number => from * 8 + to;

/** What of a device's migration outlives its process. */
export interface DeviceLife {
  readonly state: MigrationState;
  readonly arrived: boolean;
  readonly handedOver: boolean;
}

export class MigrationEngine {
  /** Called when a transition, a reset or a hold is done. */
  onSettled: (() => void) | undefined;
  /** What the device writes by DMA, while a manager wants to know. */
  readonly log: DmaLog;
  readonly #device: Device;
  readonly #memory: DmaTable;
  readonly #interrupts: InterruptTable;
  readonly #machine: MigrationMachine;
  /** Transitions and resets, one after the other. */
  #queue: Promise<unknown> = Promise.resolve();
  readonly #offer: StateOffer;
  readonly #sessions: StateSessions;
  #vmm: DmaPeer | undefined;
  #handedOver = false;
  #generation = 0;
  #resets = 0;
  #owner: Claim | undefined;
  /** What the device is was loaded, or is being loaded: it came from elsewhere, and the image with it. */
  #arrived = false;
  /** The VMM has left while somebody drove a migration, and none has come since. */
  #orphaned = false;

  /** @param offer how the state is given and taken; default: all that the device can */
  constructor(device: Device, memory: DmaTable, interrupts: InterruptTable, offer = stateOffer(device)) {
    this.#device = device;
    this.#memory = memory;
    this.log = new DmaLog(memory);
    this.#interrupts = interrupts;
    this.#offer = offer;
    this.#sessions = new StateSessions(device, offer);
    this.#machine = new MigrationMachine(MIGRATION_FLAGS, (from, to) => this.#step(from, to));
  }

  get state(): MigrationState {
    return this.#machine.state;
  }

  /** `MigrationFlag` bits. */
  get flags(): number {
    return this.#machine.flags;
  }

  /** See `MigrationPort`. */
  get generation(): number {
    return this.#generation;
  }

  /** Runs `work` when the transitions asked for before are done. */
  #serialise<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#queue.then(work).finally(() => this.onSettled?.());
    this.#queue = done.catch(() => {});
    return done;
  }

  /**
   * Device reset, from whatever state: sessions end, the device runs.
   * @param claim the manager that asks for it, if one does: it gives up what the device is, and what it holds.
   * @throws RequestError EBUSY when another one drives
   */
  reset(reason: ResetReason, claim?: Claim): Promise<void> {
    return this.#serialise(async () => {
      if (claim !== undefined) this.#requireOwner(claim);
      await this.#reset(reason);
    });
  }

  async #reset(reason: ResetReason): Promise<void> {
    const stopped = ![RUNNING, PRE_COPY].includes(this.#machine.state as 2 | 6);
    await this.#sessions.end();
    this.#machine.reset();
    this.#generation++;
    this.#resets++;
    this.#owner = undefined;
    this.#orphaned = false;
    // As after power on, the device itself takes what it has handed over, when it needs it.
    this.#handedOver = false;
    // The VM that it came for may continue where it came from, and needs the image there.
    const givenUp = reason === 'aborted' || (reason === 'disconnected' && this.#arrived);
    if (givenUp) this.#arrived = false;
    await this.#device.reset(givenUp ? 'aborted' : reason);
    this.#interrupts.reset();
    if (stopped) {
      await this.#device.resume();
      this.#interrupts.release();
    }
  }

  /** A VMM is there: the state of the device is its own from now on. */
  vmmConnected(vmm: DmaPeer): void {
    this.#vmm = vmm;
    this.#orphaned = false;
  }

  /**
   * The VMM has gone: the next one finds a device that was reset. While somebody drives a migration the state may be all
   * that is left of the VM, so then the reset comes when that is over.
   */
  vmmLeft(): Promise<void> {
    this.#vmm = undefined;
    this.#memory.setMessageWriter(undefined);
    return this.#serialise(async () => {
      if (this.#owner === undefined) await this.#reset('disconnected');
      else this.#orphaned = true;
    });
  }

  setState(owner: Claim, target: number): Promise<void> {
    return this.#serialise(async () => {
      this.#requireOwner(owner);
      if (target !== this.#machine.state) this.#owner = owner;
      try {
        await this.#machine.setState(target);
      } finally {
        if (this.#machine.state === RUNNING) this.#owner = undefined;
      }
      if (this.#owner === undefined && this.#orphaned) await this.#reset('disconnected');
    });
  }

  breakDown(claim: Claim): Promise<void> {
    return this.#serialise(async () => {
      this.#requireOwner(claim);
      this.#owner = claim;
      this.#machine.breakDown();
      await this.#sessions.end();
    });
  }

  #requireOwner(claim: Claim): void {
    if (this.#owner !== undefined && this.#owner !== claim) {
      throw new RequestError(Errno.EBUSY, 'another connection drives the migration of this device');
    }
  }

  /**
   * Keeps everybody from migrating and resetting the device, which runs, until the returned function is called.
   * @throws RequestError EBUSY when it is being migrated, or was migrated away
   */
  hold(): Promise<() => Promise<void>> {
    return this.#serialise(async () => {
      if (this.#owner !== undefined || this.log.isOn)
        throw new RequestError(Errno.EBUSY, 'the device is being migrated');
      if (this.#machine.state !== RUNNING) {
        const name = migrationStateName(this.#machine.state);
        throw new RequestError(Errno.EBUSY, `the device is in ${name}, not RUNNING`);
      }
      this.#owner = new Claim();
      return () =>
        this.#serialise(async () => {
          this.#owner = undefined;
          if (this.#orphaned) await this.#reset('disconnected');
        });
    });
  }

  /** How often the device was reset, for whatever reason. */
  get resets(): number {
    return this.#resets;
  }

  /** @throws RequestError EBUSY unless the device stands still: stopped, and nothing logs what it writes */
  requireStill(): void {
    const { state } = this.#machine;
    if (state === STOP && !this.log.isOn) return;
    const name = migrationStateName(state);
    throw new RequestError(Errno.EBUSY, `the device is in ${name}, not STOP, or its DMA is logged`);
  }

  /** Another VMM has the device, in the middle of what it does. @param vmm undefined when that one has gone already */
  vmmChanged(vmm: DmaPeer | undefined): void {
    this.#vmm = vmm;
  }

  get life(): DeviceLife {
    return { state: this.#machine.state, arrived: this.#arrived, handedOver: this.#handedOver };
  }

  /**
   * Begins, with a device that is what a predecessor's was when that was killed, stopped. Whoever drove a migration there
   * has lost it as if the connection had ended.
   */
  recover({ state, arrived, handedOver }: DeviceLife): Promise<void> {
    return this.#serialise(async () => {
      this.#arrived = arrived;
      this.#handedOver = handedOver;
      if (state === RESUMING || state === ERROR) {
        this.#machine.find(STOP);
        await this.#reset('aborted');
      } else if (state === STOP || state === STOP_COPY) {
        // The other side may run.
        if (handedOver) await this.#device.releaseExclusive?.();
        this.#machine.find(STOP);
      } else await this.#resume();
    });
  }

  /** Whether what the device is came from elsewhere: its history, which a successor takes over with it. */
  get arrived(): boolean {
    return this.#arrived;
  }

  set arrived(arrived: boolean) {
    this.#arrived = arrived;
  }

  /**
   * A connection is gone, and what it began ends: its dirty log, a pre-copy, a load, an error. What it has stopped stays
   * stopped, because the other side may run, unless no one is left who wants it.
   */
  release(claim: Claim): Promise<void> {
    return this.#serialise(async () => {
      this.log.release(claim);
      if (this.#owner !== claim) return;
      this.#owner = undefined;
      const { state } = this.#machine;
      if (this.#orphaned) await this.#reset('disconnected');
      else if (state === RESUMING || state === ERROR) await this.#reset('aborted');
      else if (state !== STOP && state !== STOP_COPY) await this.#machine.setState(RUNNING);
    });
  }

  isDrivenBy(claim: Claim): boolean {
    return this.#owner === claim;
  }

  get dataSize(): number {
    return this.#sessions.pending;
  }

  /** In turn with transitions, so that none ends a session under a read. */
  read(claim: Claim, size: number): Promise<Uint8Array[]> {
    return this.#serialise(async () => {
      this.#requireOwner(claim);
      const parts = await this.#sessions.read(size);
      if (parts === undefined)
        throw new RequestError(Errno.EINVAL, `nothing is saved in ${migrationStateName(this.state)}`);
      if (this.#sessions.unread) setImmediate(() => this.#prepare(size));
      return parts;
    });
  }

  /** After the reply has been sent: the peer takes its time to receive it. */
  #prepare(size: number): void {
    void this.#serialise(() => this.#sessions.prepare(size));
  }

  /** A promise when it takes longer; then transitions wait for it, and `bytes` must not change until it settles. */
  write(claim: Claim, bytes: Uint8Array): void | Promise<void> {
    this.#requireOwner(claim);
    let taken: ReturnType<StateSessions['write']>;
    try {
      taken = this.#sessions.write(bytes);
    } catch (error) {
      throw asRequestError(error);
    }
    if (taken === undefined)
      throw new RequestError(Errno.EINVAL, `nothing is loaded in ${migrationStateName(this.state)}`);
    if (taken === true) return undefined;
    const rest = taken;
    // Waited for when it is its turn.
    rest.catch(() => {});
    return this.#serialise(async () => {
      try {
        await rest;
      } catch (error) {
        throw asRequestError(error);
      }
    });
  }

  /** The state value by value, for the connection that drives; undefined when the device does not give it so. */
  valuesFor(claim: Claim): ValuesPort | undefined {
    if (this.#offer.values === undefined) return undefined;
    const sessions = (): StateSessions => {
      this.#requireOwner(claim);
      return this.#sessions;
    };
    return {
      names: () => sessions().valueNames(),
      get: (name) => sessions().value(name),
      set: (name, value) => sessions().setValue(name, value),
    };
  }

  formatOffers(): WireFormatOffer[] {
    return formatOffers(this.#offer);
  }

  /** For the next saving or loading that `claim` drives. */
  selectFormat(claim: Claim, selection: FormatSelection): void {
    if (this.#owner === claim && this.#sessions.underWay)
      throw new RequestError(Errno.EBUSY, 'the format is selected before the saving or loading begins');
    chooseFormat(this.#offer, claim.choice, selection);
  }

  /** Beside the log, for a device that writes more than can be copied when it stops. Ends with the log. */
  writeByMessage(claim: Claim, on: boolean): void {
    this.log.requireOn(claim);
    if (on && this.#vmm === undefined) throw new RequestError(Errno.ENOTCONN, 'no VMM is connected');
    this.#memory.setMessageWriter(on ? this.#vmm : undefined);
  }

  async #step(from: MigrationState, to: MigrationState): Promise<void> {
    await this.#act(from, to);
    const [before, after] = [isSaving(from), isSaving(to)];
    if (before !== after || from === RESUMING || to === RESUMING) this.#generation++;
  }

  async #act(from: MigrationState, to: MigrationState): Promise<void> {
    switch (arc(from, to)) {
      case arc(RUNNING, RUNNING_P2P):
      case arc(PRE_COPY, PRE_COPY_P2P):
        return this.#quiesce();
      case arc(RUNNING_P2P, RUNNING):
      case arc(PRE_COPY_P2P, PRE_COPY):
        return this.#resume();
      case arc(STOP, RUNNING_P2P):
        return this.#acquireExclusive();
      case arc(RUNNING, PRE_COPY):
      case arc(RUNNING_P2P, PRE_COPY_P2P):
        this.#sessions.startSave(this.#choice);
        return;
      case arc(STOP, STOP_COPY):
        await this.#releaseExclusive();
        this.#sessions.startSave(this.#choice);
        return this.#sessions.finishSave();
      case arc(PRE_COPY_P2P, STOP_COPY):
        await this.#releaseExclusive();
        return this.#sessions.finishSave();
      case arc(STOP, RESUMING):
        await this.#sessions.checkSelf(this.#choice);
        this.#sessions.startLoad(this.#choice);
        this.#arrived = true;
        return;
      case arc(RESUMING, STOP):
        return this.#commitLoad();
      case arc(PRE_COPY, RUNNING):
      case arc(PRE_COPY_P2P, RUNNING_P2P):
      case arc(STOP_COPY, STOP):
        return this.#sessions.end();
      case arc(RUNNING_P2P, STOP):
        return;
      default:
        throw new RequestError(
          Errno.EINVAL,
          `no arc ${migrationStateName(from)} → ${migrationStateName(to)}`,
        );
    }
  }

  async #quiesce(): Promise<void> {
    await this.#device.quiesce();
    this.#interrupts.hold();
  }

  async #resume(): Promise<void> {
    await this.#device.resume();
    this.#interrupts.release();
  }

  async #releaseExclusive(): Promise<void> {
    await this.#device.releaseExclusive?.();
    this.#handedOver = true;
  }

  async #acquireExclusive(): Promise<void> {
    if (!this.#handedOver) return;
    await this.#device.acquireExclusive?.();
    this.#handedOver = false;
  }

  /** What the connection that drives has selected. */
  get #choice(): FormatChoice {
    return this.#owner?.choice ?? {};
  }

  async #commitLoad(): Promise<void> {
    try {
      await this.#sessions.commitLoad();
      await this.#device.acquireExclusive?.();
      this.#handedOver = false;
    } catch (error) {
      // The session is spent and the device is neither what it was nor what it should be: only a reset helps.
      throw new BrokenDeviceError(asRequestError(error));
    }
  }
}

/** The states that share one saving. */
function isSaving(state: MigrationState): boolean {
  return state === PRE_COPY || state === PRE_COPY_P2P || state === STOP_COPY;
}

/** Errors of the envelope become EINVAL, with their sentence. */
function asRequestError(error: unknown): RequestError {
  if (error instanceof RequestError) return error;
  const { errno, message } = asDevstateError(error);
  return new RequestError(errno ?? Errno.EINVAL, message);
}
