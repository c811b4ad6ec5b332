// SPDX-License-Identifier: Apache-2.0
/**
 * The controller's life: enabled, disabled, shut down, quiesced, resumed (NVMe 1.4, sections 3.1.5 and 7.6).
 *
 * What CC asks for and what is so may differ while commands end or the controller is quiesced. `advance` takes every
 * step that is possible, and is called whenever one may have become so.
 */

import { Cc, Csts, Register } from '../spec/index.js';
import type { Birch } from './birch.js';
import { resetFeatures } from './controller-image.js';
import { configurationProblem, createAdminQueues } from './enable.js';
import { SUBMISSION_AT } from './layout.js';
import { Mode } from './mode.js';
import { resetController, setShutdownStatus } from './registers.js';

/** What the controller is in the middle of. */
type Step = 'none' | 'disabling' | 'draining' | 'flushing';

/** What follows from a step. */
export interface LifeCycleEvents {
  /** Completion queues went away, so that no interrupt is due. */
  cleared(): void;
  /** The controller cannot continue. */
  fatal(reason: string): void;
}

export class LifeCycle {
  /** Not quiesced. */
  running = true;
  readonly #birch: Birch;
  readonly #events: LifeCycleEvents;
  #step: Step = 'none';
  /** Waiting for the controller to be settled. */
  #waiters: (() => void)[] = [];

  constructor(birch: Birch, events: LifeCycleEvents) {
    this.#birch = birch;
    this.#events = events;
    birch.engine.onIdle = () => {
      if (this.#step !== 'none' || this.#waiters.length > 0) this.advance();
    };
  }

  /** Commands, DMA or a change of state are under way. */
  get busy(): boolean {
    return this.#step !== 'none' || !this.#birch.engine.idle;
  }

  /** Stops: when it settles, nothing is under way. Commands that were fetched and not started stay as they are. */
  async quiesce(): Promise<void> {
    this.running = false;
    if (this.#step === 'none') this.#restrict(Mode.SETTLING);
    await this.#settled();
    this.#restrict(Mode.HELD);
  }

  /** Runs again, or for the first time after a load. */
  resume(): void {
    this.running = true;
    this.advance();
    if (this.#step === 'none') this.#birch.engine.setMode(this.#modeByStatus());
  }

  /** Becomes as after a controller reset, whatever it was. */
  async reset(): Promise<void> {
    this.#birch.engine.setMode(Mode.SILENT);
    await this.#settled();
    this.#clear();
    this.running = true;
  }

  /** Takes every step towards what CC asks for that can be taken now. */
  advance(): void {
    const { engine, image } = this.#birch;
    if (this.#step === 'disabling' && engine.idle) {
      this.#step = 'none';
      this.#clear();
    } else if (this.#step === 'draining' && engine.idle) void this.#finishShutDown();
    if (this.#step === 'none' && this.running) this.#follow(image.register(Register.CC));
    if (this.busy) return;
    for (const settled of this.#waiters.splice(0)) settled();
  }

  #settled(): Promise<void> {
    return new Promise((resolve) => {
      this.#waiters.push(resolve);
      this.advance();
    });
  }

  get #status(): number {
    return this.#birch.image.register(Register.CSTS);
  }

  /** Allows the engine less; nothing to one that is silent. */
  #restrict(mode: Mode): void {
    const { engine } = this.#birch;
    if (engine.mode !== Mode.SILENT) engine.setMode(mode);
  }

  #modeByStatus(): Mode {
    if ((this.#status & (Csts.RDY | Csts.CFS)) !== Csts.RDY) return Mode.SILENT;
    return (this.#status & Csts.SHST_MASK) === 0 ? Mode.RUNNING : Mode.SETTLING;
  }

  #follow(cc: number): void {
    const status = this.#status;
    const enabled = (status & (Csts.RDY | Csts.CFS)) !== 0;
    if (enabled && (cc & Cc.EN) === 0) this.#disable();
    else if (!enabled && (cc & Cc.EN) !== 0) this.#enable();
    const shutDown = (cc & Cc.SHN_MASK) !== 0 && (status & Csts.SHST_MASK) === 0;
    if (shutDown && this.#step === 'none') this.#shutDown();
  }

  #enable(): void {
    const { image, engine } = this.#birch;
    const problem = configurationProblem(image) ?? this.#lockProblem();
    if (problem !== undefined) {
      this.#events.fatal(`the controller cannot be enabled: ${problem}`);
      return;
    }
    createAdminQueues(image);
    engine.queueChanged('submission', 0);
    engine.queueChanged('completion', 0);
    image.setRegister(Register.CSTS, Csts.RDY);
    engine.setMode(Mode.RUNNING);
  }

  #lockProblem(): string | undefined {
    try {
      this.#birch.disk.lock();
      return undefined;
    } catch (error) {
      return error instanceof Error ? error.message : String(error);
    }
  }

  #disable(): void {
    this.#step = 'disabling';
    this.#birch.engine.setMode(Mode.SILENT);
    this.advance();
  }

  /** What a controller reset clears. */
  #clear(): void {
    const { image, engine } = this.#birch;
    image.clear(SUBMISSION_AT);
    engine.rebuild();
    resetFeatures(image);
    resetController(image);
    this.#events.cleared();
  }

  #shutDown(): void {
    this.#step = 'draining';
    setShutdownStatus(this.#birch.image, Csts.SHST_OCCURRING);
    this.#restrict(Mode.DRAINING);
    this.advance();
  }

  async #finishShutDown(): Promise<void> {
    const { disk, host, image } = this.#birch;
    this.#step = 'flushing';
    this.#restrict(Mode.SETTLING);
    try {
      if (disk.locked) await disk.flush();
    } catch (error) {
      host.log('error', `shutdown: ${error instanceof Error ? error.message : String(error)}`);
    }
    this.#step = 'none';
    setShutdownStatus(image, Csts.SHST_COMPLETE);
    this.advance();
  }
}
