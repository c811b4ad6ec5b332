// SPDX-License-Identifier: Apache-2.0
/** Carries out what `step` says when one VMM follows another: who has the device, whose connection ends. */

import {
  idleNextVmm,
  type NextVmmEffect,
  type NextVmmEvent,
  type NextVmmState,
  stepNextVmm,
} from '../migration/index.js';
import type { Fd } from '../transport/index.js';
import { Errno, type NextVmmStatus, parseNextVmmRequest, RequestError } from '../wire/index.js';
import type { Connection } from './connection.js';
import type { ServedDevice, Understudy } from './served-device.js';

/** What this needs of the server that it belongs to. */
export interface NextVmmHost {
  readonly device: ServedDevice;
  /** The connection that has the device. */
  vmm: Connection | undefined;
  /** Serves a VMM whose commands go to `device`. */
  serve(fd: Fd, device: ServedDevice): Connection;
  /** The place of the VMM is to be had again, or taken for good. */
  settled(): void;
  readonly log: (message: string) => void;
}

export class NextVmm {
  readonly #host: NextVmmHost;
  #state: NextVmmState = idleNextVmm(false);
  #first: Connection | undefined;
  #second: Connection | undefined;
  #understudy: Understudy | undefined;
  #timer: NodeJS.Timeout | undefined;
  /** Of understudies that are no more. */
  readonly #absorbed = { resets: 0, configWrites: 0 };
  /** Settles when the device has been told that it has no VMM. */
  #releasing: Promise<void> | undefined;

  constructor(host: NextVmmHost) {
    this.#host = host;
  }

  /** Beside the VMM that has the device: the one that is to have it next or, once promoted, the one that had it before. */
  get other(): Connection | undefined {
    return this.#state.phase === 'promoted' ? this.#first : this.#second;
  }

  /** One VMM follows another: none may come in between. */
  get underWay(): boolean {
    return this.#state.phase !== 'none' || this.#releasing !== undefined;
  }

  /** Takes a VMM that connects, if it is the one that is awaited. */
  accept(fd: Fd): boolean {
    const { device } = this.#host;
    if (this.#state.phase !== 'awaited' || device.openUnderstudy === undefined) return false;
    this.#host.log('the next VMM has connected');
    this.#understudy ??= device.openUnderstudy();
    this.#second = this.#host.serve(fd, this.#understudy);
    this.#on('arrives');
    return true;
  }

  /** Whether a VMM that leaves takes the device along: not while another one is to have it. */
  keeps(device: ServedDevice): boolean {
    return this.#state.phase !== 'none' && device === this.#host.device;
  }

  /** A VMM has left. */
  left(connection: Connection): void {
    if (connection === this.#first) {
      this.#first = undefined;
      this.#on('first-leaves');
    } else if (connection === this.#second) {
      this.#second = undefined;
      this.#on('second-leaves');
    }
  }

  /** JSON, `nextVmmStatus`. */
  status(): string {
    const idleNow = this.#state.phase === 'none';
    const { resets, configWrites } = this.#understudy?.absorbed ?? { resets: 0, configWrites: 0 };
    const status: NextVmmStatus = {
      phase: this.#state.phase,
      first: idleNow ? this.#host.vmm !== undefined : this.#state.first,
      second: this.#second?.isNegotiated === true,
      intx: this.#host.device.management.intxAssigned,
      resets: this.#host.device.management.resets,
      absorbed: {
        resets: this.#absorbed.resets + resets,
        configWrites: this.#absorbed.configWrites + configWrites,
      },
    };
    return JSON.stringify(status);
  }

  /**
   * Takes the next step. @param text JSON, `nextVmmRequest`
   * @throws RequestError when it cannot be taken: nothing has changed then
   */
  async request(text: string): Promise<void> {
    const request = parseNextVmmRequest(text);
    if (request.action === 'await') this.#await(request.timeoutMs);
    else if (request.action === 'promote' && this.#second !== undefined && !this.#second.isNegotiated)
      throw new RequestError(Errno.ENOTCONN, 'the next VMM has not agreed on a version yet');
    else this.#on(request.action);
    await this.#releasing;
  }

  #await(timeoutMs: number): void {
    const { vmm } = this.#host;
    if (this.#releasing !== undefined) throw new RequestError(Errno.EBUSY, 'the last VMM is just leaving');
    if (this.#state.phase === 'none') this.#state = idleNextVmm(vmm?.isNegotiated === true);
    this.#on('await');
    this.#first = vmm;
    this.#timer = setTimeout(() => this.#on('expires'), timeoutMs);
    this.#timer.unref();
  }

  #on(event: NextVmmEvent): void {
    const { state, effects } = stepNextVmm(this.#state, event);
    // The one that can fail comes first.
    for (const effect of effects) this.#do(effect);
    const had = this.#state.phase;
    this.#state = state;
    if (state.phase !== had) this.#host.log(`next VMM: ${had} → ${state.phase}`);
    if (state.phase === 'none' && had !== 'none') this.#end();
  }

  #do(effect: NextVmmEffect): void {
    switch (effect) {
      case 'exchange':
        this.#exchange();
        break;
      case 'end-first':
        this.#first?.close();
        break;
      case 'end-second':
        this.#second?.close();
        break;
      case 'release':
        this.#release();
    }
  }

  #exchange(): void {
    const { device } = this.#host;
    const understudy = this.#understudy!;
    understudy.exchange();
    const isPromotion = this.#state.phase === 'arrived';
    const [up, down] = isPromotion ? [this.#second, this.#first] : [this.#first, this.#second];
    down?.redirect(understudy);
    up?.redirect(device);
    this.#host.vmm = up;
  }

  #release(): void {
    const { device, log } = this.#host;
    const released = async (): Promise<void> => {
      try {
        await device.disconnected();
      } catch (error) {
        log(`after the VMM left: ${error instanceof Error ? error.message : error}`);
      }
      this.#releasing = undefined;
      this.#host.settled();
    };
    this.#releasing = released();
  }

  /** Who has the device is settled: what is left of the understudy goes. */
  #end(): void {
    clearTimeout(this.#timer);
    const understudy = this.#understudy;
    this.#understudy = undefined;
    this.#first = undefined;
    this.#second = undefined;
    if (understudy !== undefined) {
      this.#absorbed.resets += understudy.absorbed.resets;
      this.#absorbed.configWrites += understudy.absorbed.configWrites;
      // Its VMM may have gone long ago, and with it whoever would have done this.
      void understudy.disconnected();
    }
    if (this.#releasing === undefined) this.#host.settled();
  }
}
