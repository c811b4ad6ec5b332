// SPDX-License-Identifier: Apache-2.0
/**
 * Carries out what `stepNextVmm` says when one VMM follows another (docs/protocol.md, DEVSTATE_NEXT_VMM): who has the
 * device, whose connection ends. What differs between a server and a relay is behind a port.
 */

import {
  idleNextVmm,
  type NextVmmEffect,
  type NextVmmEvent,
  type NextVmmState,
  stepNextVmm,
} from '../migration/index.js';
import type { Fd } from '../transport/index.js';
import { Errno, type NextVmmStatus, parseNextVmmRequest, RequestError } from '../wire/index.js';

/** What reached an understudy and not the device. */
export interface Absorbed {
  readonly resets: number;
  readonly configWrites: number;
}

/** What the next VMM meets while another one has the device. */
export interface AbsorbingUnderstudy {
  readonly absorbed: Absorbed;
}

/** The connection of a VMM. */
export interface VmmConnection {
  close(): void;
}

/** What this needs of the process that has the device. */
export interface NextVmmHost<Vmm extends VmmConnection, Understudy extends AbsorbingUnderstudy> {
  /** The VMM that has the device. */
  readonly vmm: Vmm | undefined;
  /** That VMM has agreed on a version. */
  readonly isNegotiated: boolean;
  /** The VMM takes the device's interrupts by INTx. */
  readonly usesIntx: boolean;
  /** How often the device was reset. */
  readonly resets: number;
  /** @throws RequestError when no VMM can follow the present one */
  requireMayBeFollowed(): void;
  /** Makes what the next VMM meets. @throws RequestError */
  openUnderstudy(): Understudy | Promise<Understudy>;
  /** Serves a VMM whose commands go to the understudy. */
  serveUnderstudy(fd: Fd, understudy: Understudy): Vmm;
  /** The VMM that the understudy is served to has agreed on a version. */
  hasAgreed(second: Vmm, understudy: Understudy): boolean;
  /** The VMM that the understudy was served to has left; another one may come. */
  vacate(understudy: Understudy): void;
  /** All of an exchange that takes time or can fail. @throws RequestError, and nothing has changed */
  prepareExchange(understudy: Understudy): void | Promise<void>;
  /**
   * `up` has the device, and what the understudy has taken down; `down` is served by the understudy. A VMM that has left is
   * undefined. @throws RequestError, and nothing has changed
   */
  exchange(understudy: Understudy, up: Vmm | undefined, down: Vmm | undefined): void;
  /** Releases an understudy that no VMM will come for. */
  closeUnderstudy(understudy: Understudy): void;
  /** No VMM has the device any more. Must not reject. */
  release(): void | Promise<void>;
  /** The next VMM may have the device, or one has it for good. */
  settled(): void;
  log(level: 'info', message: string): void;
}

/** How a manager has another VMM take the place of the present one. Both are JSON texts. */
export interface NextVmmSteps {
  status(): string;
  /** @throws RequestError when the step cannot be taken now */
  request(text: string): Promise<void>;
}

const NOTHING: Absorbed = { resets: 0, configWrites: 0 };

export class NextVmm<Vmm extends VmmConnection, Understudy extends AbsorbingUnderstudy>
  implements NextVmmSteps
{
  readonly #host: NextVmmHost<Vmm, Understudy>;
  #state: NextVmmState = idleNextVmm(false);
  #first: Vmm | undefined;
  #second: Vmm | undefined;
  #understudy: Understudy | undefined;
  #timer: NodeJS.Timeout | undefined;
  /** A request is under way. */
  #busy = false;
  /** What happened while an exchange was prepared, for when it is over; undefined at all other times. */
  #meanwhile: NextVmmEvent[] | undefined;
  /** By the understudies that are no more. */
  #absorbed = NOTHING;
  /** Settles when no VMM has the device, and it has been told. */
  #releasing: Promise<void> | undefined;

  constructor(host: NextVmmHost<Vmm, Understudy>) {
    this.#host = host;
  }

  /** Beside the VMM that has the device: the one that is to have it next or, once promoted, the one that had it before. */
  get other(): Vmm | undefined {
    return this.#state.phase === 'promoted' ? this.#first : this.#second;
  }

  /** One VMM follows another: the device is not reset when a VMM leaves. */
  get follows(): boolean {
    return this.#state.phase !== 'none';
  }

  /** One VMM follows another, or is about to: no other may have the device. */
  get underWay(): boolean {
    return this.follows || this.#busy || this.#releasing !== undefined;
  }

  /** Takes a VMM that connects, if it is the one that is awaited. */
  accept(fd: Fd): boolean {
    if (this.#state.phase !== 'awaited' || this.#understudy === undefined) return false;
    this.#host.log('info', 'the next VMM has connected');
    this.#second = this.#host.serveUnderstudy(fd, this.#understudy);
    this.#on('arrives');
    return true;
  }

  /** A VMM has left. @returns whether the device is kept for another one */
  left(vmm: Vmm): boolean {
    const { phase } = this.#state;
    if (phase === 'none' || (vmm !== this.#first && vmm !== this.#second)) return false;
    if (vmm === this.#first) {
      this.#first = undefined;
      this.#happened('first-leaves');
    } else {
      this.#second = undefined;
      this.#happened('second-leaves');
    }
    return true;
  }

  /** JSON, `nextVmmStatus`. */
  status(): string {
    const { phase, first } = this.#state;
    const now = this.#understudy?.absorbed ?? NOTHING;
    const status: NextVmmStatus = {
      phase,
      first: phase === 'none' ? this.#host.vmm !== undefined : first,
      second: this.#second !== undefined && this.#secondHasAgreed,
      intx: this.#host.usesIntx,
      resets: this.#host.resets,
      absorbed: sum(this.#absorbed, now),
    };
    return JSON.stringify(status);
  }

  /** Once promoted, it had. */
  get #secondHasAgreed(): boolean {
    if (this.#state.phase === 'promoted') return true;
    const [second, understudy] = [this.#second, this.#understudy];
    return second !== undefined && understudy !== undefined && this.#host.hasAgreed(second, understudy);
  }

  /**
   * Takes the next step. @param text JSON, `nextVmmRequest`
   * @throws RequestError when it cannot be taken: nothing has changed then
   */
  async request(text: string): Promise<void> {
    const request = parseNextVmmRequest(text);
    if (this.#busy) throw new RequestError(Errno.EBUSY, 'the last step is not over; try again then');
    this.#busy = true;
    try {
      if (request.action === 'await') await this.#await(request.timeoutMs);
      else await this.#step(request.action);
    } finally {
      this.#busy = false;
    }
    await this.#releasing;
  }

  async #await(timeoutMs: number): Promise<void> {
    const host = this.#host;
    if (this.#releasing !== undefined) throw new RequestError(Errno.EBUSY, 'the last VMM is just leaving');
    if (!this.follows) this.#state = idleNextVmm(host.vmm !== undefined && host.isNegotiated);
    // Refused at once, if it is.
    stepNextVmm(this.#state, 'await');
    host.requireMayBeFollowed();
    this.#understudy = await host.openUnderstudy();
    if (host.vmm === undefined) {
      this.#forget();
      throw new RequestError(Errno.ENOTCONN, 'the VMM has left');
    }
    this.#on('await');
    this.#first = host.vmm;
    this.#timer = setTimeout(() => this.#happened('expires'), timeoutMs);
    this.#timer.unref();
  }

  async #step(event: 'promote' | 'commit' | 'roll-back'): Promise<void> {
    if (event === 'promote' && this.#second !== undefined && !this.#secondHasAgreed)
      throw new RequestError(Errno.ENOTCONN, 'the next VMM has not agreed on a version yet');
    if (!stepNextVmm(this.#state, event).effects.includes('exchange')) {
      this.#on(event);
      return;
    }
    this.#meanwhile = [];
    try {
      await this.#host.prepareExchange(this.#understudy!);
      this.#on(event);
    } finally {
      const meanwhile = this.#meanwhile;
      this.#meanwhile = undefined;
      for (const happened of meanwhile) this.#on(happened);
    }
  }

  #happened(event: NextVmmEvent): void {
    if (this.#meanwhile !== undefined) this.#meanwhile.push(event);
    else this.#on(event);
  }

  #on(event: NextVmmEvent): void {
    const had = this.#state.phase;
    const { state, effects } = stepNextVmm(this.#state, event);
    // The one that can fail comes first.
    for (const effect of effects) this.#do(effect);
    this.#state = state;
    if (event === 'second-leaves' && had === 'arrived' && state.phase === 'awaited')
      this.#host.vacate(this.#understudy!);
    if (state.phase !== had) this.#host.log('info', `next VMM: ${had} → ${state.phase}`);
    if (state.phase === 'none' && had !== 'none') this.#end(effects.includes('release'));
  }

  #do(effect: NextVmmEffect): void {
    const isPromotion = this.#state.phase === 'arrived';
    const [up, down] = isPromotion ? [this.#second, this.#first] : [this.#first, this.#second];
    switch (effect) {
      case 'exchange':
        this.#host.exchange(this.#understudy!, up, down);
        break;
      case 'end-first':
        this.#first?.close();
        break;
      case 'end-second':
        this.#second?.close();
        break;
      case 'release':
        // When the understudy is closed.
        break;
    }
  }

  /** Which VMM has the device is settled: what is left of the understudy goes. */
  #end(release: boolean): void {
    clearTimeout(this.#timer);
    this.#first = undefined;
    this.#second = undefined;
    this.#forget();
    if (release) this.#releasing = this.#release();
    else this.#host.settled();
  }

  async #release(): Promise<void> {
    await this.#host.release();
    this.#releasing = undefined;
    this.#host.settled();
  }

  #forget(): void {
    const understudy = this.#understudy;
    this.#understudy = undefined;
    if (understudy === undefined) return;
    this.#absorbed = sum(this.#absorbed, understudy.absorbed);
    this.#host.closeUnderstudy(understudy);
  }

  /** The device is no more: ends the connections of both VMMs. */
  close(): void {
    clearTimeout(this.#timer);
    this.#first?.close();
    this.#second?.close();
    this.#forget();
  }
}

function sum(a: Absorbed, b: Absorbed): Absorbed {
  return { resets: a.resets + b.resets, configWrites: a.configWrites + b.configWrites };
}
