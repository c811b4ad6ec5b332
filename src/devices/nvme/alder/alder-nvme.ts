// SPDX-License-Identifier: Apache-2.0
/**
 * The NVMe controller of vendor "alder": one namespace in an image file, on the device SDK.
 *
 * ```
 *  region accesses ─► Registers ─► doorbells ─► QueueEngine ─► admin / IoCommands ─► ImageFile
 *                         │                         │
 *                         └─► enable, shut down     └─► completions, interrupts
 * ```
 * This file holds the controller's life cycle: enabled, disabled, shut down, reset, quiesced, resumed. What CC asks for
 * and what is so may differ while commands drain or the device is quiesced; `#settle` closes the gap.
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
import { type ImageFile, requireNamespaceFits } from '../image-file.js';
import {
  AsyncEventType,
  Cc,
  Csts,
  DOORBELL_BASE,
  ErrorEvent,
  LogPage,
  MPS_MAX,
  MSIX_BAR,
  type NvmeParameters,
  nvmeBars,
  nvmeConfigSpace,
  nvmeModel,
  pendingBits,
  pendingVectors,
  REGISTER_BAR,
  resolveNvmeParameters,
  STATUS_MORE,
  Status,
} from '../spec/index.js';
import {
  NvmeStandardFormat,
  nvmeStandardValues,
  type StandardNvmeController,
} from '../standard/standard-format.js';
import { executeAdmin } from './admin.js';
import type { Command } from './command.js';
import type { Controller } from './controller.js';
import { AlderCrashRecords } from './crash-records.js';
import { type EngineOwner, QueueEngine } from './engine.js';
import { AsyncEvents } from './events.js';
import { Features } from './features.js';
import { Health } from './health.js';
import { InterruptOutput } from './interrupt-output.js';
import { IoCommands } from './io.js';
import { MsixTable } from './msix-table.js';
import { CompletionQueue, SubmissionQueue } from './queues.js';
import { type RegisterListener, Registers } from './registers.js';
import { alderToStandard, standardToAlder } from './standard.js';
import type { ControllerState } from './state.js';
import { AlderStateFormat, type StatefulController } from './state-format.js';
import { captureQueues, restoreQueues } from './state-queues.js';

export interface AlderNvmeOptions {
  readonly image: ImageFile;
  /** Model parameters: numbers, or their text. Defaults for those that are missing. */
  readonly parameters?: Readonly<Record<string, ParameterValue>>;
}

/** @throws DevstateError DEVSTATE_E_MODEL_PARAMETER, DEVSTATE_E_IMAGE_SIZE, DEVSTATE_E_IMAGE_BLOCK_SIZE */
export function createAlderNvme(options: AlderNvmeOptions): Device {
  const parameters = resolveNvmeParameters(options.parameters ?? {}, options.image.size);
  requireNamespaceFits(options.image, parameters);
  return new AlderNvme(options.image, parameters);
}

class AlderNvme
  implements Device, Controller, EngineOwner, RegisterListener, StatefulController, StandardNvmeController
{
  readonly model: DeviceModel;
  readonly producer = { name: 'alder/nvme', version: '1.0' };
  readonly bars: readonly Bar[] = nvmeBars;
  readonly interruptCounts: InterruptCounts;
  readonly config: PciConfigSpace;
  readonly formats: readonly StateFormat[];
  readonly values: DeviceValues;
  readonly files: DeviceFiles;
  readonly journal: AlderCrashRecords;

  readonly registers: Registers;
  readonly engine: QueueEngine;
  readonly features: Features;
  readonly health = new Health();
  readonly events: AsyncEvents;
  readonly #msixTable: MsixTable;
  readonly #io: IoCommands;
  readonly #interrupts: InterruptOutput;
  #host: DeviceHost | undefined;
  running = true;
  /** A disable or shutdown is under way. */
  #changing = false;

  constructor(
    readonly image: ImageFile,
    readonly parameters: NvmeParameters,
  ) {
    this.model = nvmeModel(parameters);
    this.files = image;
    this.interruptCounts = { intx: true, msi: 0, msix: parameters.msix_vectors };
    this.config = nvmeConfigSpace(parameters);
    this.registers = new Registers(parameters, this);
    this.engine = new QueueEngine(this, parameters.queues + 1);
    this.features = new Features(parameters.queues, parameters.msix_vectors, () => this.#hasIoQueues());
    this.events = new AsyncEvents((cid, status, result) => {
      const sq = this.engine.submission[0];
      if (sq !== undefined) this.engine.completeParked(sq, cid, status, result);
    });
    this.#msixTable = new MsixTable(parameters.msix_vectors);
    this.#io = new IoCommands(this);
    this.#interrupts = new InterruptOutput(this, this.config);
    this.formats = [new AlderStateFormat(this), new NvmeStandardFormat(this)];
    this.values = nvmeStandardValues(this);
    this.journal = new AlderCrashRecords(this, parameters.queues + 1);
  }

  attach(host: DeviceHost): void {
    this.#host = host;
    if (host.journal.keeps) this.engine.keeper = this.journal;
  }

  get host(): DeviceHost {
    if (this.#host === undefined)
      throw new DevstateError('DEVSTATE_E_INTERNAL', 'the device is not attached');
    return this.#host;
  }

  readRegion(region: number, offset: number, target: Uint8Array): void {
    if (region === REGISTER_BAR) this.registers.read(offset, target);
    else if (region === MSIX_BAR)
      this.#msixTable.read(offset, target, this.host.interrupts.save().pendingMsix);
    else throw new RequestError(Errno.EINVAL, `region ${region} does not exist`);
  }

  writeRegion(region: number, offset: number, data: Uint8Array): void {
    // Doorbells keep what they move themselves.
    if (region !== REGISTER_BAR || offset < DOORBELL_BASE) this.engine.keeper?.changed();
    if (region === REGISTER_BAR) this.registers.write(offset, data);
    else if (region === MSIX_BAR) this.#msixTable.write(offset, data);
    else throw new RequestError(Errno.EINVAL, `region ${region} does not exist`);
  }

  configWritten(): void {
    this.#interrupts.updateLine();
  }

  async reset(reason: ResetReason): Promise<void> {
    this.engine.abandon();
    await this.#idle();
    this.engine.keeper?.changed();
    this.#clearQueues();
    this.registers.reset();
    this.config.reset();
    this.#msixTable.reset();
    this.running = true;
    this.host.interrupts.reset();
    if (reason !== 'aborted') return;
    // A load that was given up may have brought another controller's history, and the image is that one's.
    this.health.clear();
    await this.image.unlock().catch((error) => this.#logError('unlock', error));
  }

  async quiesce(): Promise<void> {
    this.running = false;
    this.engine.stop();
    await this.#idle();
    this.engine.freeze();
  }

  resume(): void {
    if (this.running) return;
    if ((this.registers.csts & Csts.RDY) !== 0) this.#requireLock();
    this.running = true;
    this.#settle();
    if (this.#working && !this.#changing) this.engine.start();
    this.#interrupts.announceAll();
  }

  async releaseExclusive(): Promise<void> {
    await this.image.unlock();
  }

  acquireExclusive(): void {
    this.#requireLock();
  }

  /** Settles when no command, DMA or change of state is under way. */
  #idle(): Promise<void> {
    return new Promise((resolve) => this.engine.activity.whenIdle(resolve));
  }

  #requireLock(): void {
    try {
      this.image.lock();
    } catch (error) {
      throw new RequestError(Errno.EBUSY, error instanceof Error ? error.message : String(error));
    }
  }

  // Controller configuration and status

  /** Enabled, whether or not anything has gone wrong since. */
  get #enabled(): boolean {
    return (this.registers.csts & (Csts.RDY | Csts.CFS)) !== 0;
  }

  /** Commands are taken. */
  get #working(): boolean {
    return (this.registers.csts & (Csts.RDY | Csts.CFS | Csts.SHST_MASK)) === Csts.RDY;
  }

  configurationWritten(): void {
    this.#settle();
  }

  /** Does what CC asks for and is not yet so: one step, the next when that is done. */
  #settle(): void {
    if (!this.running || this.#changing) return;
    const { cc, csts } = this.registers;
    const enable = (cc & Cc.EN) !== 0;
    if (this.#enabled && !enable) this.#disable();
    else if (!this.#enabled && enable) this.#enable(cc);
    if ((cc & Cc.SHN_MASK) !== 0 && (csts & Csts.SHST_MASK) === 0 && !this.#changing) this.#shutDown();
  }

  #enable(cc: number): void {
    const { registers, engine } = this;
    const problem = this.#configurationProblem(cc) ?? this.#lockProblem();
    if (problem !== undefined) {
      this.fatal(`the controller cannot be enabled: ${problem}`);
      return;
    }
    const cq = new CompletionQueue(0, registers.adminCq, registers.adminCqSize, 0, true);
    engine.completion[0] = cq;
    engine.submission[0] = new SubmissionQueue(0, registers.adminSq, registers.adminSqSize, cq, 0);
    registers.csts = Csts.RDY;
    engine.start();
  }

  #configurationProblem(cc: number): string | undefined {
    const { registers } = this;
    if ((cc & Cc.CSS_MASK) !== 0) return `command set 0x${(cc & Cc.CSS_MASK).toString(16)}`;
    if ((cc & Cc.AMS_MASK) !== 0) return 'weighted round robin arbitration';
    if (((cc >>> 7) & 0xf) > MPS_MAX) return `pages of ${registers.pageSize} bytes`;
    if (registers.adminSqSize < 2 || registers.adminCqSize < 2) return 'an admin queue of one entry';
    for (const base of [registers.adminSq, registers.adminCq]) {
      if (!Number.isSafeInteger(base + 2 ** 20) || base % registers.pageSize !== 0) {
        return `an admin queue at 0x${base.toString(16)}`;
      }
    }
    return undefined;
  }

  #lockProblem(): string | undefined {
    try {
      this.image.lock();
      return undefined;
    } catch (error) {
      return error instanceof Error ? error.message : String(error);
    }
  }

  #disable(): void {
    this.#changing = true;
    this.engine.abandon();
    this.engine.activity.whenIdle(() => {
      this.#changing = false;
      this.#keepChange(() => {
        this.#clearQueues();
        this.#settle();
      });
    });
  }

  /** What a controller reset clears. */
  #clearQueues(): void {
    this.engine.clear();
    this.events.clear();
    this.features.reset();
    this.registers.controllerReset();
    this.#interrupts.updateLine();
  }

  #shutDown(): void {
    this.#changing = true;
    this.#setShutdownStatus(Csts.SHST_OCCURRING);
    this.engine.stop();
    this.engine.activity.whenIdle(() => void this.#finishShutDown());
  }

  async #finishShutDown(): Promise<void> {
    this.engine.activity.begin();
    try {
      if (this.image.locked) await this.image.flush();
    } catch (error) {
      this.#logError('shutdown', error);
    }
    this.#changing = false;
    this.#keepChange(() => {
      this.#setShutdownStatus(Csts.SHST_COMPLETE);
      this.engine.activity.end();
      this.#settle();
    });
  }

  /** A change of the controller's state that no access of the guest is the cause of. */
  #keepChange(change: () => void): void {
    this.engine.keeper?.changed();
    this.host.journal.transaction(change);
  }

  #setShutdownStatus(status: number): void {
    this.registers.csts = (this.registers.csts & ~Csts.SHST_MASK) | status;
  }

  fatal(reason: string): void {
    this.engine.keeper?.changed();
    this.registers.csts |= Csts.CFS;
    this.host.log('error', `fatal controller status: ${reason}; the guest must reset the controller`);
  }

  #logError(what: string, error: unknown): void {
    this.host.log('error', `${what}: ${error instanceof Error ? error.message : String(error)}`);
  }

  // Commands

  execute(command: Command): void {
    if (command.sq.id === 0) executeAdmin(this, command);
    else this.#io.execute(command);
  }

  failed(command: Command, status: number): number {
    this.engine.keeper?.changed();
    this.health.logError(command, status);
    return status | STATUS_MORE;
  }

  doorbell(index: number, value: number): void {
    if ((this.registers.csts & (Csts.RDY | Csts.CFS)) !== Csts.RDY) return;
    const id = index >>> 1;
    const { engine } = this;
    if (engine.keeper !== undefined) this.journal.moved();
    const queue = (index & 1) === 0 ? engine.submission[id] : engine.completion[id];
    if (queue === undefined) this.#doorbellError(ErrorEvent.INVALID_DOORBELL_REGISTER);
    else {
      const taken =
        queue instanceof SubmissionQueue
          ? engine.ringSubmission(queue, value)
          : engine.ringCompletion(queue, value);
      if (!taken) this.#doorbellError(ErrorEvent.INVALID_DOORBELL_VALUE);
    }
  }

  #doorbellError(information: number): void {
    this.engine.keeper?.changed();
    this.health.logGeneral(Status.INVALID_FIELD);
    this.events.raise({ type: AsyncEventType.ERROR, information, page: LogPage.ERROR_INFORMATION });
  }

  #hasIoQueues(): boolean {
    const { submission, completion } = this.engine;
    return [submission, completion].some((queues) =>
      queues.some((queue) => queue !== undefined && queue.id > 0),
    );
  }

  // Interrupts

  announce(cq: CompletionQueue): void {
    this.#interrupts.announce(cq);
  }

  interruptMaskWritten(): void {
    this.#interrupts.updateLine();
  }

  // State

  get busy(): boolean {
    return this.engine.activity.count > 0 || this.#changing;
  }

  captureState(): ControllerState {
    const config = this.config.bytes.slice();
    // Follows from the queues, and is set whenever somebody looks: not state.
    config[PciRegister.STATUS]! &= ~PciStatus.INTERRUPT;
    return {
      config,
      registers: this.registers.save(),
      msixTable: this.#msixTable.save(),
      ...captureQueues(this.engine),
      commands: this.engine.inherited.map(({ sq, entry }) => ({ sq, entry })),
      features: structuredClone(this.features.values),
      events: this.events.save(),
      health: this.health.save(),
    };
  }

  restoreState(state: ControllerState): void {
    // The only step that may refuse comes first.
    this.config.load(state.config);
    this.running = false;
    this.engine.freeze();
    this.engine.clear();
    this.registers.load(state.registers);
    this.#msixTable.load(state.msixTable);
    restoreQueues(this.engine, state);
    this.engine.inherited = structuredClone(state.commands);
    this.engine.keeper?.changed();
    this.features.values = structuredClone(state.features);
    this.events.load(state.events);
    this.health.load(state.health);
  }

  captureStandard(): NvmeState {
    const { parameters } = this;
    const pending = this.host.interrupts.save().pendingMsix;
    const length = 8 * Math.ceil(parameters.msix_vectors / 64);
    return alderToStandard(this.captureState(), parameters, pendingBits(pending, length));
  }

  restoreStandard(standard: NvmeState): void {
    const { state, problem } = standardToAlder(standard, this.parameters);
    if (problem !== undefined) throw new RequestError(Errno.EINVAL, `NVMe state refused: ${problem}`);
    if (this.busy) throw new RequestError(Errno.EBUSY, 'the controller is not quiesced');
    this.restoreState(state);
    this.host.interrupts.load({ pendingMsix: pendingVectors(standard.pci.msixPending), pendingMsi: [] });
  }
}
