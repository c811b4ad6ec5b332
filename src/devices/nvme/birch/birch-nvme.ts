// SPDX-License-Identifier: Apache-2.0
/**
 * The NVMe controller of vendor "birch": one namespace in an image file, all of its state in one piece of memory.
 *
 * ```
 *  region accesses ─► registers ─► doorbells ─► QueueEngine ─► admin, io ─► ImageFile
 *                       └─► LifeCycle: enable, disable, shut down
 *                     all of them on the ControllerImage
 * ```
 * This file is where the parts meet: the device as the SDK sees it, and what the parts ask of each other.
 */

import {
  type Bar,
  type Device,
  type DeviceFiles,
  type DeviceHost,
  type DeviceModel,
  type DeviceValues,
  type InterruptCounts,
  type ParameterValue,
  type PciConfigSpace,
  PciRegister,
  PciStatus,
  type ResetReason,
  type StateFormat,
} from '../../../device/index.js';
import { DevstateError } from '../../../errors.js';
import type { NvmeState } from '../../../formats/index.js';
import { Errno, RequestError } from '../../../wire/index.js';
import { Comparing } from '../comparing.js';
import { type ImageFile, requireNamespaceFits } from '../image-file.js';
import {
  AsyncEventType,
  Csts,
  ErrorEvent,
  LogPage,
  MSIX_BAR,
  type NvmeParameters,
  nvmeBars,
  nvmeConfigSpace,
  nvmeModel,
  pendingBits,
  pendingVectors,
  REGISTER_BAR,
  Register,
  resolveNvmeParameters,
  STATUS_MORE,
  Status,
} from '../spec/index.js';
import { NvmeStandardFormat, nvmeStandardValues } from '../standard/standard-format.js';
import { executeAdmin } from './admin.js';
import type { Birch } from './birch.js';
import {
  ControllerImage,
  completionAt,
  resetFeatures,
  resetRegisters,
  resetVectors,
  submissionAt,
} from './controller-image.js';
import { QueueEngine } from './engine.js';
import type { EngineOwner } from './engine-owner.js';
import { answerRequests, raiseEvent } from './events.js';
import { standardToImage } from './from-standard.js';
import { logCommandError, logGeneralError } from './health.js';
import { identityOf, writeHeader } from './identity.js';
import { BirchInterrupts } from './interrupts.js';
import { executeIo } from './io.js';
import {
  CONFIG_AT,
  CONFIG_SIZE,
  CONTROLLER_AT,
  HealthCounter,
  PENDING_BITS_AT,
  PENDING_BITS_SIZE,
  QueueSlot,
  QueueState,
  VECTOR_BITMAP_SIZE,
} from './layout.js';
import { LifeCycle } from './life-cycle.js';
import { Mode } from './mode.js';
import { type RegisterActions, readRegisters, writeRegisters } from './registers.js';
import { adoptSound, BirchStateFormat, requireQuiet, type StatefulBirch } from './state-format.js';
import { statusOf } from './status-of.js';
import { imageToStandard } from './to-standard.js';

export interface BirchNvmeOptions {
  readonly image: ImageFile;
  /** Model parameters: numbers, or their text. Defaults for those that are missing. */
  readonly parameters?: Readonly<Record<string, ParameterValue>>;
}

/** @throws DevstateError DEVSTATE_E_MODEL_PARAMETER, DEVSTATE_E_IMAGE_SIZE, DEVSTATE_E_IMAGE_BLOCK_SIZE */
export function createBirchNvme(options: BirchNvmeOptions): Device {
  const parameters = resolveNvmeParameters(options.parameters ?? {}, options.image.size);
  requireNamespaceFits(options.image, parameters);
  return new BirchNvme(options.image, parameters);
}

class BirchNvme implements Device, Birch, EngineOwner, RegisterActions, StatefulBirch {
  readonly model: DeviceModel;
  readonly producer = { name: 'birch/nvme', version: '1.0' };
  readonly bars: readonly Bar[] = nvmeBars;
  readonly interruptCounts: InterruptCounts;
  readonly config: PciConfigSpace;
  readonly formats: readonly StateFormat[];
  readonly values: DeviceValues;
  readonly files: DeviceFiles;
  readonly image = new ControllerImage();
  readonly spare = new ControllerImage();
  readonly comparing: Comparing;
  readonly engine: QueueEngine;
  readonly #life: LifeCycle;
  readonly #interrupts: BirchInterrupts;
  #host: DeviceHost | undefined;

  constructor(
    readonly disk: ImageFile,
    readonly parameters: NvmeParameters,
  ) {
    this.model = nvmeModel(parameters);
    this.files = disk;
    this.comparing = new Comparing(disk);
    this.interruptCounts = { intx: true, msi: 0, msix: parameters.msix_vectors };
    this.config = nvmeConfigSpace(parameters);
    writeHeader(this.image, identityOf(parameters));
    resetRegisters(this.image, parameters);
    resetVectors(this.image, parameters);
    resetFeatures(this.image);
    this.engine = new QueueEngine(this.image, this);
    this.#life = new LifeCycle(this, {
      cleared: () => this.#interrupts.updateLine(),
      fatal: (reason) => this.fatal(reason),
    });
    this.#interrupts = new BirchInterrupts({
      image: this.image,
      config: this.config,
      parameters,
      host: () => this.host,
      running: () => this.#life.running,
    });
    this.formats = [new BirchStateFormat(this), new NvmeStandardFormat(this)];
    this.values = nvmeStandardValues(this);
  }

  attach(host: DeviceHost): void {
    this.#host = host;
  }

  get host(): DeviceHost {
    if (this.#host === undefined) {
      throw new DevstateError('DEVSTATE_E_INTERNAL', 'the device is not attached');
    }
    return this.#host;
  }

  readRegion(region: number, offset: number, target: Uint8Array): void {
    if (region === REGISTER_BAR) readRegisters(this.image, offset, target);
    else if (region === MSIX_BAR) this.#interrupts.readTable(offset, target);
    else throw new RequestError(Errno.EINVAL, `region ${region} does not exist`);
  }

  writeRegion(region: number, offset: number, data: Uint8Array): void {
    if (region === REGISTER_BAR) writeRegisters(this.image, offset, data, this);
    else if (region === MSIX_BAR) this.#interrupts.writeTable(offset, data);
    else throw new RequestError(Errno.EINVAL, `region ${region} does not exist`);
  }

  configWritten(): void {
    this.#interrupts.updateLine();
  }

  async reset(reason: ResetReason): Promise<void> {
    await this.#life.reset();
    resetRegisters(this.image, this.parameters);
    resetVectors(this.image, this.parameters);
    this.config.reset();
    this.host.interrupts.reset();
    if (reason !== 'aborted') return;
    // A load that was given up may have brought another controller's history, and the disk is that one's.
    this.image.span(HealthCounter.BYTES_READ, CONFIG_AT - HealthCounter.BYTES_READ).fill(0);
    await this.disk.unlock().catch((error) => {
      this.host.log('error', `unlock: ${error instanceof Error ? error.message : String(error)}`);
    });
  }

  quiesce(): Promise<void> {
    return this.#life.quiesce();
  }

  resume(): void {
    if (this.#life.running) return;
    if ((this.#status & Csts.RDY) !== 0) this.#requireLock();
    this.#life.resume();
    this.#interrupts.announceAll();
  }

  async releaseExclusive(): Promise<void> {
    await this.disk.unlock();
  }

  acquireExclusive(): void {
    this.#requireLock();
  }

  #requireLock(): void {
    try {
      this.disk.lock();
    } catch (error) {
      throw new RequestError(Errno.EBUSY, error instanceof Error ? error.message : String(error));
    }
  }

  get #status(): number {
    return this.image.register(Register.CSTS);
  }

  get busy(): boolean {
    return this.#life.busy;
  }

  configurationWritten(): void {
    this.#life.advance();
  }

  fatal(reason: string): void {
    this.image.setRegister(Register.CSTS, this.#status | Csts.CFS);
    this.host.log('error', `fatal controller status: ${reason}; the guest must reset the controller`);
  }

  // Commands

  execute(slot: number): number {
    try {
      return this.image.sqid(slot) === 0 ? executeAdmin(this, slot, this) : executeIo(this, slot);
    } catch (error) {
      return statusOf(this.host, error);
    }
  }

  failed(slot: number, status: number): number {
    logCommandError(this.image, slot, status);
    return status | STATUS_MORE;
  }

  parked(): void {
    answerRequests(this);
  }

  announce(cqid: number): void {
    this.#interrupts.announce(cqid);
  }

  interruptMaskWritten(): void {
    this.#interrupts.updateLine();
  }

  doorbell(index: number, value: number): void {
    if ((this.#status & (Csts.RDY | Csts.CFS)) !== Csts.RDY) return;
    const id = index >>> 1;
    const submission = (index & 1) === 0;
    const at = submission ? submissionAt(id) : completionAt(id);
    if (id > this.parameters.queues || this.image.u8(at + QueueSlot.STATE) === QueueState.ABSENT) {
      this.#doorbellError(ErrorEvent.INVALID_DOORBELL_REGISTER);
      return;
    }
    const taken = submission ? this.engine.ringSubmission(id, value) : this.engine.ringCompletion(id, value);
    if (!taken) this.#doorbellError(ErrorEvent.INVALID_DOORBELL_VALUE);
  }

  #doorbellError(information: number): void {
    logGeneralError(this.image, Status.INVALID_FIELD);
    raiseEvent(this, AsyncEventType.ERROR, information, LogPage.ERROR_INFORMATION);
  }

  // State

  captureImage(): ControllerImage {
    const { image } = this;
    const config = image.span(CONFIG_AT, CONFIG_SIZE);
    config.set(this.config.bytes);
    // Follows from the queues, and is set whenever somebody looks: not state.
    config[PciRegister.STATUS]! &= ~PciStatus.INTERRUPT;
    const pending = pendingBits(this.host.interrupts.save().pendingMsix, VECTOR_BITMAP_SIZE);
    image.bytes.set(pending, PENDING_BITS_AT);
    return image;
  }

  captureStandard(): NvmeState {
    requireQuiet(this);
    return imageToStandard(this.captureImage());
  }

  restoreStandard(state: NvmeState): void {
    adoptSound(this, standardToImage(state, this.spare.clear()));
  }

  adoptImage(loaded: ControllerImage): void {
    // The only step that may refuse comes first.
    this.config.load(loaded.span(CONFIG_AT, CONFIG_SIZE).slice());
    this.#life.running = false;
    this.image.bytes.set(loaded.bytes.subarray(CONTROLLER_AT), CONTROLLER_AT);
    this.image.commandEnd = loaded.commandEnd;
    this.engine.rebuild();
    this.engine.setMode(Mode.HELD);
    const pendingMsix = pendingVectors(loaded.span(PENDING_BITS_AT, PENDING_BITS_SIZE));
    this.host.interrupts.load({ pendingMsix, pendingMsi: [] });
  }
}
