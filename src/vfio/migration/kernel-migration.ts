// SPDX-License-Identifier: Apache-2.0
/**
 * A device of the kernel's VFIO as an end of a migration: the uAPI of migration v2 (DEVICE_FEATURE and the data file)
 * with the shape that a migration socket has. What its driver gives is raw; the driver tells what it is.
 */

import { release } from 'node:os';
import { DevstateError } from '../../errors.js';
import type { FormatOffer } from '../../formats/index.js';
import type { EndDescription, MigrationEnd, PrecopyInfo } from '../../migration/index.js';
import { Fd } from '../../transport/index.js';
import {
  type DmaLoggingReport,
  type DmaLoggingStart,
  errnoName,
  Feature,
  FeatureFlag,
  MIG_DEVICE_STATE_LENGTH,
  MigrationState,
  migrationStateName,
  readU64,
} from '../../wire/index.js';
import type { VfioDevice } from '../device.js';
import { viewOf } from '../uapi/index.js';
import { DataSession } from './data-session.js';
import { reportDmaLog, startDmaLog, stopDmaLog } from './dma-log.js';
import type { KernelDriver } from './driver.js';

const { ERROR, PRE_COPY, PRE_COPY_P2P, RESUMING, RUNNING, STOP, STOP_COPY } = MigrationState;

/** States that share one data file. */
const SAVING: readonly MigrationState[] = [PRE_COPY, PRE_COPY_P2P, STOP_COPY];

/** Drivers read and write through a small window; more at a time gains nothing. */
const MAX_CHUNK = 1024 * 1024;

/** The format that we keep a driver's state in changes with us, not with the driver. */
const VERSION = { major: 1, minor: 0 };

export class KernelMigration implements MigrationEnd {
  readonly protocol = 'v2';
  readonly streams = 'raw';
  readonly maxChunk = MAX_CHUNK;
  readonly device: VfioDevice;
  readonly driver: KernelDriver;
  readonly #onClose: () => void;
  #session: DataSession | undefined;

  /** @param onClose closes the device, if no one else has a use for it */
  constructor(device: VfioDevice, driver: KernelDriver, onClose: () => void = () => {}) {
    this.device = device;
    this.driver = driver;
    this.#onClose = onClose;
  }

  /** @throws DEVSTATE_E_NOT_MIGRATABLE when the driver has no migration */
  async flags(): Promise<number> {
    if (!this.device.hasFeature(Feature.MIGRATION, FeatureFlag.GET)) {
      const message = `${this.device.name} cannot migrate: its driver ${this.driver.name} cannot save its state; bind the driver for migration that its vendor has, if there is one`;
      throw new DevstateError('DEVSTATE_E_NOT_MIGRATABLE', message);
    }
    return this.#getU64(Feature.MIGRATION);
  }

  async state(): Promise<MigrationState> {
    return this.#state();
  }

  /** The kernel does not count them. */
  resets(): Promise<undefined> {
    return Promise.resolve(undefined);
  }

  /** @throws DEVSTATE_E_REFUSED; the device is then in a state on the way, ERROR perhaps, which only `reset` ends */
  async setState(state: MigrationState): Promise<void> {
    const before = this.#state();
    const data = new Uint8Array(MIG_DEVICE_STATE_LENGTH);
    viewOf(data).setUint32(0, state, true);
    viewOf(data).setInt32(4, -1, true);
    try {
      const answer = this.device.feature(Feature.MIG_DEVICE_STATE, FeatureFlag.SET, data);
      this.#moved(state, viewOf(answer).getInt32(4, true));
    } catch (error) {
      this.#moved(this.#state(), -1);
      throw this.#refusal(before, state, error);
    }
  }

  /** The device is in `state`; with the data file `number` if that has begun a session, else -1. */
  #moved(state: MigrationState, number: number): void {
    const inSession = state === RESUMING || SAVING.includes(state);
    if (number < 0 && inSession) return;
    this.#session?.close();
    this.#session = number < 0 ? undefined : new DataSession(new Fd(number), this.device.name);
  }

  #refusal(from: MigrationState, to: MigrationState, error: unknown): unknown {
    if (!(error instanceof DevstateError) || error.errno === undefined) return error;
    const what =
      from === RESUMING
        ? 'does not take this state: it is incomplete, or not of this driver, version and device'
        : `does not go from ${migrationStateName(from)} to ${migrationStateName(to)}`;
    const { name } = this.device;
    const message = `${name} ${what} (${errnoName(error.errno)}); it is ${migrationStateName(this.#state())} now`;
    return new DevstateError('DEVSTATE_E_REFUSED', message, { cause: error, errno: error.errno });
  }

  #state(): MigrationState {
    const room = new Uint8Array(MIG_DEVICE_STATE_LENGTH);
    const data = this.device.feature(Feature.MIG_DEVICE_STATE, FeatureFlag.GET, room);
    return viewOf(data).getUint32(0, true) as MigrationState;
  }

  /**
   * Ends what a process has left that died while it saved or loaded. Its data file is gone, so no one can continue; a
   * device that its driver resets when it is opened never has any.
   */
  async settle(): Promise<void> {
    const state = this.#state();
    if (state === STOP_COPY) await this.setState(STOP);
    else if (state === PRE_COPY || state === PRE_COPY_P2P) await this.setState(RUNNING);
    else if (state === RESUMING || state === ERROR) await this.reset();
  }

  async dataSize(): Promise<number | undefined> {
    if (!this.device.hasFeature(Feature.MIG_DATA_SIZE, FeatureFlag.GET)) return undefined;
    return this.#getU64(Feature.MIG_DATA_SIZE);
  }

  #getU64(feature: number): number {
    return readU64(viewOf(this.device.feature(feature, FeatureFlag.GET, new Uint8Array(8))), 0);
  }

  async precopyInfo(): Promise<PrecopyInfo> {
    return this.#requireSession().precopyInfo();
  }

  async readData(target: Uint8Array): Promise<number> {
    return this.#requireSession().read(target);
  }

  async writeData(bytes: Uint8Array): Promise<void> {
    await this.#requireSession().write(bytes);
  }

  #requireSession(): DataSession {
    if (this.#session !== undefined) return this.#session;
    const message = `${this.device.name} is neither being saved nor loaded: it is ${migrationStateName(this.#state())}`;
    throw new DevstateError('DEVSTATE_E_REFUSED', message);
  }

  /** @returns the page size in force @throws DEVSTATE_E_VFIO, errno ENOTTY when the driver keeps no log */
  async startLogging(start: DmaLoggingStart): Promise<number> {
    return startDmaLog(this.device, start);
  }

  async stopLogging(): Promise<void> {
    stopDmaLog(this.device);
  }

  /** The dirty bitmap of a range, which the driver forgets with this. */
  async reportLogging(report: DmaLoggingReport): Promise<Uint8Array> {
    return reportDmaLog(this.device, report);
  }

  async description(): Promise<EndDescription | undefined> {
    const { model, name, pci } = this.driver;
    if (model === undefined) return undefined;
    const producer = { name: `linux/${name}`, version: release() };
    return { model, producer, ...(pci === undefined ? {} : { pci }) };
  }

  async formats(): Promise<FormatOffer[] | undefined> {
    const { format } = this.driver;
    if (format === undefined) return undefined;
    const { uuid, name } = format;
    const estimate = await this.dataSize();
    const offer = { uuid, name, version: VERSION, save: true, load: true, fidelity: 'complete' } as const;
    return [{ ...offer, features: [], ...(estimate === undefined ? {} : { estimate }) }];
  }

  /** There is one only. */
  async selectFormat(): Promise<void> {}

  async values(): Promise<undefined> {
    return undefined;
  }

  /** The device runs afterwards, in the state that its driver gives it: a PCI device loses its own. */
  async reset(): Promise<void> {
    this.device.reset();
    this.#moved(this.#state(), -1);
  }

  close(): void {
    this.#session?.close();
    this.#session = undefined;
    this.#onClose();
  }
}
