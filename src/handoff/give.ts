// SPDX-License-Identifier: Apache-2.0
/**
 * The giver's end of a handoff. Until the lease is taken it has everything, and continues when anything goes wrong; from
 * then on it touches nothing any more.
 */

import { readdir } from 'node:fs/promises';
import {
  Channel,
  decodeDocument,
  FIRST_VERSION,
  HANDOFF_VERSION,
  HandoffMessage,
  MAX_REQUEST_MESSAGE,
  malformed,
} from '../documents/index.js';
import { asDevstateError, DevstateError } from '../errors.js';
import { MAX_MESSAGE_FDS } from '../native/index.js';
import type { Fd } from '../transport/index.js';
import type { BundleEntry } from './bundle.js';
import { FdKind } from './fd-kind.js';
import { Lease } from './lease.js';
import { HandoffError, type HandoffPhase, PhaseClock, type PhaseTimeouts } from './phases.js';
import { encodeEntries, encodeTransferred, MAX_BUNDLE_FDS } from './protocol.js';

/** Name of the lease in every bundle. */
export const LEASE_NAME = 'lease';

/** What goes over. The fds stay their owner's. */
export interface Outgoing {
  readonly entries: readonly BundleEntry[];
  /** See `packDocument`. */
  readonly document: unknown;
}

/** What a process does that gives something away. */
export interface Giver {
  /**
   * JSON that the receiver gets first, and may refuse; with `handoff`, the version of what follows, `fds`, the most that can go
   * over, and `timeouts`, how long the giver waits.
   */
  readonly offer: object;
  /** Called while the receiver gets ready. @throws to refuse */
  prepare?(): Promise<void>;
  /**
   * Stops, and says what goes over. Must do nothing more once `signal` aborts. @param answer the receiver's, not validated
   */
  freeze(answer: unknown, signal: AbortSignal): Promise<Outgoing>;
  /** Continues, whatever `freeze` has come to. Must not fail. */
  thaw(): Promise<void>;
}

export interface GiveOptions {
  readonly timeouts?: Partial<PhaseTimeouts>;
  /** Counts the handoffs of what is handed over. Default 1. */
  readonly generation?: number;
  /** What the giver is called in errors. Default: the giver. */
  readonly name?: string;
  /** Users whose processes may receive, besides this one's. */
  readonly peers?: readonly number[];
  /** A lease that this process holds and that goes over, to change hands again from there. Default: one for this time. */
  readonly lease?: Lease;
}

export interface GiveReport {
  readonly ms: Partial<Record<HandoffPhase, number>>;
  readonly fds: number;
  /** Pid of the receiver. */
  readonly pid: number;
  /** The receiver took over, but its word of that never came: it may have ended since. */
  readonly unconfirmed: boolean;
}

/**
 * Hands over through a connected socket, which it takes. Settles when the receiver has taken over.
 * @throws HandoffError when the giver continues; its `thaw` has been called then, if its `freeze` was
 */
export async function give(fd: Fd, giver: Giver, options: GiveOptions = {}): Promise<GiveReport> {
  const clock = new PhaseClock(options.timeouts);
  const handoff = new Handoff(clock, giver, options);
  try {
    return await handoff.run(fd);
  } finally {
    handoff.close();
  }
}

/** The offer, with the version of what follows, the number of files that this process has open (more do not go over), and how long it waits. */
async function completed(offer: object, timeouts: PhaseTimeouts): Promise<object> {
  const open = await readdir('/proc/self/fd').catch(() => undefined);
  const fds = open === undefined ? {} : { fds: open.length };
  return { handoff: HANDOFF_VERSION, ...fds, timeouts, ...offer };
}

class Handoff {
  readonly #clock: PhaseClock;
  readonly #giver: Giver;
  readonly #options: GiveOptions;
  #channel: Channel | undefined;
  #lease: Lease | undefined;
  #froze = false;
  #fds = 0;

  constructor(clock: PhaseClock, giver: Giver, options: GiveOptions) {
    this.#clock = clock;
    this.#giver = giver;
    this.#options = options;
  }

  async run(fd: Fd): Promise<GiveReport> {
    try {
      const { peers = [] } = this.#options;
      // What a receiver says is short; a long message would be parsed while a device is served.
      const channel = new Channel(fd, { peers, maxMessageLength: MAX_REQUEST_MESSAGE });
      this.#channel = channel;
      await this.#steps(channel);
      return this.#reportOf(channel, false);
    } catch (error) {
      // The one that changes the lease first has the device: if that was the receiver, its silence changes nothing.
      this.#lease?.takeBack();
      if (this.#lease?.isTaken === true && this.#channel !== undefined)
        return this.#reportOf(this.#channel, true);
      const failure = new HandoffError(
        this.#clock.phase,
        error,
        `${this.#options.name ?? 'the giver'} continues`,
      );
      this.#tell(failure);
      if (this.#froze) await this.#giver.thaw();
      throw failure;
    }
  }

  async #steps(channel: Channel): Promise<void> {
    const clock = this.#clock;
    const answer = await clock.run('prepare', async () => {
      const offer = await completed(this.#giver.offer, clock.timeouts);
      await channel.sendDocument(HandoffMessage.PREPARE, offer, FIRST_VERSION);
      const [ready] = await Promise.all([channel.expect(HandoffMessage.READY), this.#giver.prepare?.()]);
      return decodeDocument(ready.payload, ready.version);
    });
    this.#froze = true;
    const outgoing = await clock.run('freeze', async (signal) => {
      const frozen = await this.#giver.freeze(answer, signal);
      channel.requireOpen();
      return frozen;
    });
    await clock.run('transfer', () => this.#transfer(channel, outgoing));
    await clock.run('adopt', () => channel.expect(HandoffMessage.ADOPTED));
    await clock.run('commit', () => channel.expect(HandoffMessage.RUNNING));
  }

  async #transfer(channel: Channel, { entries, document }: Outgoing): Promise<void> {
    const lease = this.#options.lease ?? Lease.create(this.#options.generation ?? 1);
    this.#lease = lease;
    const all = [...entries, { kind: FdKind.LEASE, name: LEASE_NAME, fd: lease.fd }];
    if (all.length > MAX_BUNDLE_FDS) throw malformed(`a bundle of ${all.length} fds`);
    for (let at = 0; at < all.length; at += MAX_MESSAGE_FDS) {
      const batch = all.slice(at, at + MAX_MESSAGE_FDS);
      await channel.send(
        HandoffMessage.FDS,
        encodeEntries(batch),
        batch.map(({ fd }) => fd),
      );
    }
    this.#fds = all.length;
    if (!lease.offer()) throw new DevstateError('DEVSTATE_E_HANDOFF', 'another process has the lease');
    const transferred = encodeTransferred(all.length, document, lease.number);
    await channel.send(HandoffMessage.TRANSFERRED, transferred);
  }

  #reportOf(channel: Channel, unconfirmed: boolean): GiveReport {
    return { ms: this.#clock.ms, fds: this.#fds, pid: channel.peerPid, unconfirmed };
  }

  /** So that the receiver knows at once; what makes sure of it is the lease. */
  #tell(failure: HandoffError): void {
    const { code, message } = asDevstateError(failure);
    this.#channel?.sendDocument(HandoffMessage.ROLLBACK, { code, message }).catch(() => {});
  }

  close(): void {
    this.#channel?.end();
    if (this.#options.lease === undefined) this.#lease?.close();
  }
}
