// SPDX-License-Identifier: Apache-2.0
/**
 * One VMM follows another at a relay, as `stepNextVmm` says (docs/protocol.md, DEVSTATE_NEXT_VMM): the server keeps its one
 * connection, and is told the other VMM's memory and interrupts when the two change places.
 */

import { asDevstateError } from '../errors.js';
import {
  idleNextVmm,
  type NextVmmEffect,
  type NextVmmEvent,
  type NextVmmState,
  stepNextVmm,
} from '../migration/index.js';
import type { Fd } from '../transport/index.js';
import {
  Errno,
  MigrationState,
  type NextVmmStatus,
  parseNextVmmRequest,
  RequestError,
} from '../wire/index.js';
import type { Front } from './front.js';
import type { Understudy } from './understudy.js';

/** The session that it belongs to. */
export interface NextVmmHost {
  /** The VMM that has the device. */
  readonly front: Front | undefined;
  readonly isNegotiated: boolean;
  /** Migration state of the device; undefined when the relay has no server. */
  readonly state: MigrationState | undefined;
  /** A manager has the device log what it writes. */
  readonly isLogging: boolean;
  /** The VMM takes the device's interrupts by INTx. */
  readonly usesIntx: boolean;
  /** How often the device was reset. */
  readonly resets: number;
  /** Reads what an understudy needs of the server. @throws RequestError */
  openUnderstudy(): Promise<Understudy>;
  /** A VMM that the understudy is served to. */
  serveUnderstudy(fd: Fd, understudy: Understudy): Front;
  /** Has the server know the understudy's memory and interrupts instead. @throws when it does not take them */
  tellServer(understudy: Understudy): Promise<void>;
  /** `up` has the device, and what the understudy has taken down; `down` is served by it. */
  exchange(understudy: Understudy, up: Front | undefined, down: Front | undefined): void;
  /** Nobody has the device any more. */
  release(): void;
  readonly log: (level: 'info' | 'warn' | 'error', message: string) => void;
}

export class NextVmm {
  readonly #host: NextVmmHost;
  #state: NextVmmState = idleNextVmm(false);
  #first: Front | undefined;
  #second: Front | undefined;
  #understudy: Understudy | undefined;
  #timer: NodeJS.Timeout | undefined;
  /** A step that waits for the server. */
  #busy = false;
  readonly #absorbed = { resets: 0, configWrites: 0 };

  constructor(host: NextVmmHost) {
    this.#host = host;
  }

  /** Beside the VMM that has the device: the one that is to have it next or, once promoted, the one that had it before. */
  get other(): Front | undefined {
    return this.#state.phase === 'promoted' ? this.#first : this.#second;
  }

  get underWay(): boolean {
    return this.#state.phase !== 'none' || this.#busy;
  }

  /** Takes a VMM that connects, if it is the one that is awaited. */
  accept(fd: Fd): boolean {
    if (this.#state.phase !== 'awaited' || this.#understudy === undefined) return false;
    this.#host.log('info', 'the next VMM has connected');
    this.#second = this.#host.serveUnderstudy(fd, this.#understudy);
    this.#on('arrives');
    return true;
  }

  /** A VMM has left. @returns whether the device goes on without it for now */
  left(front: Front): boolean {
    const { phase } = this.#state;
    if (phase === 'none' || (front !== this.#first && front !== this.#second)) return false;
    if (front === this.#first) {
      this.#first = undefined;
      this.#on('first-leaves');
    } else {
      this.#second = undefined;
      if (phase === 'arrived') this.#understudy?.vacate();
      this.#on('second-leaves');
    }
    return true;
  }

  /** JSON, `nextVmmStatus`. */
  status(): string {
    const { phase, first } = this.#state;
    const now = this.#understudy?.absorbed ?? { resets: 0, configWrites: 0 };
    const status: NextVmmStatus = {
      phase,
      first: phase === 'none' ? this.#host.front !== undefined : first,
      second: this.#second !== undefined && this.#secondNegotiated,
      intx: this.#host.usesIntx,
      resets: this.#host.resets,
      absorbed: {
        resets: this.#absorbed.resets + now.resets,
        configWrites: this.#absorbed.configWrites + now.configWrites,
      },
    };
    return JSON.stringify(status);
  }

  /** Whether the second has agreed on a version. Once promoted, it had. */
  get #secondNegotiated(): boolean {
    return this.#state.phase === 'promoted' || this.#understudy?.proposal !== undefined;
  }

  /**
   * Takes the next step. @param text JSON, `nextVmmRequest`
   * @throws RequestError when it cannot be taken: nothing has changed then
   */
  async request(text: string): Promise<void> {
    const request = parseNextVmmRequest(text);
    if (this.#busy) throw new RequestError(Errno.EBUSY, 'the last step is under way still');
    this.#busy = true;
    try {
      if (request.action === 'await') await this.#await(request.timeoutMs);
      else await this.#step(request.action);
    } finally {
      this.#busy = false;
    }
  }

  async #await(timeoutMs: number): Promise<void> {
    const { front, isNegotiated } = this.#host;
    if (this.#state.phase === 'none') this.#state = idleNextVmm(front !== undefined && isNegotiated);
    // Refused at once, if it is.
    stepNextVmm(this.#state, 'await');
    // By CPR two QEMUs wait for the same eventfds, and either may take the other's signal: one of INTx is not sent again.
    // A server of ours holds INTx meanwhile; of any other it is not known that it would.
    if (this.#host.usesIntx)
      throw new RequestError(
        Errno.ENOTSUP,
        'the guest takes interrupts by INTx: behind a relay one may be lost',
      );
    this.#understudy = await this.#host.openUnderstudy();
    if (this.#host.front === undefined) {
      this.#forget();
      throw new RequestError(Errno.ENOTCONN, 'the VMM has left');
    }
    this.#on('await');
    this.#first = front;
    this.#timer = setTimeout(() => this.#on('expires'), timeoutMs);
    this.#timer.unref();
  }

  async #step(event: 'promote' | 'commit' | 'roll-back'): Promise<void> {
    if (event === 'promote' && this.#second !== undefined && !this.#secondNegotiated)
      throw new RequestError(Errno.ENOTCONN, 'the next VMM has not agreed on a version yet');
    const { effects } = stepNextVmm(this.#state, event);
    if (effects.includes('exchange')) await this.#prepareExchange();
    this.#on(event);
  }

  /** What can fail. */
  async #prepareExchange(): Promise<void> {
    if (this.#host.state !== MigrationState.STOP)
      throw new RequestError(Errno.EBUSY, 'the device must be stopped (STOP) to change hands');
    if (this.#host.isLogging)
      throw new RequestError(Errno.EBUSY, 'the device logs what it writes; stop that first');
    try {
      await this.#host.tellServer(this.#understudy!);
    } catch (error) {
      const { message, errno = Errno.EIO } = asDevstateError(error);
      throw new RequestError(errno, message);
    }
  }

  #on(event: NextVmmEvent): void {
    const had = this.#state.phase;
    const { state, effects } = stepNextVmm(this.#state, event);
    for (const effect of effects) this.#do(effect);
    this.#state = state;
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
        // When all is settled.
        break;
    }
  }

  /** Who has the device is settled: what is left of the understudy goes. */
  #end(release: boolean): void {
    clearTimeout(this.#timer);
    this.#first = undefined;
    this.#second = undefined;
    this.#forget();
    if (release) this.#host.release();
  }

  #forget(): void {
    const understudy = this.#understudy;
    this.#understudy = undefined;
    if (understudy === undefined) return;
    this.#absorbed.resets += understudy.absorbed.resets;
    this.#absorbed.configWrites += understudy.absorbed.configWrites;
    understudy.close();
  }

  /** The session ends. */
  close(): void {
    clearTimeout(this.#timer);
    this.#first?.close();
    this.#second?.close();
    this.#forget();
  }
}
