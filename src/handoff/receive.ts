// SPDX-License-Identifier: Apache-2.0
/**
 * The receiver's end of a handoff. It prepares everything without touching anything that others can see, takes the
 * lease, and only then begins. Whatever fails before leaves the giver as it was, and here nothing.
 */

import {
  Channel,
  decodeDocument,
  FIRST_VERSION,
  HANDOFF_VERSION,
  HandoffMessage,
  malformed,
  otherVersion,
} from '../documents/index.js';
import { asDevstateError, DevstateError } from '../errors.js';
import { systemLimits } from '../native/index.js';
import { closeAll, type Fd } from '../transport/index.js';
import * as z from '../zod.js';
import { Bundle } from './bundle.js';
import { phaseTimes } from './document.js';
import { FdKind } from './fd-kind.js';
import { LEASE_NAME } from './give.js';
import { Lease } from './lease.js';
import { HandoffError, type HandoffPhase, PhaseClock, type PhaseTimeouts } from './phases.js';
import { decodeEntries, decodeTransferred } from './protocol.js';

/** What has been adopted and waits for the lease. */
export interface Adopted {
  /** The lease is ours: begin. The receiver keeps it if it was asked to (`ReceiveOptions.keepLease`). */
  start(lease: Lease): void | Promise<void>;
  /** It is not: release everything, without an effect on what the giver has. */
  abandon(): void | Promise<void>;
}

/** What a process does that takes something over. */
export interface Receiver {
  /** Looks at what is offered (not validated) and gets ready. @returns the answer, a document. @throws to refuse */
  prepare(offer: unknown): unknown | Promise<unknown>;
  /**
   * Takes what it needs out of the bundle and becomes what it says. Touches nothing that the giver or others can see.
   * @throws to refuse, having released what it took
   */
  adopt(bundle: Bundle): Promise<Adopted>;
}

export interface ReceiveOptions {
  readonly timeouts?: Partial<PhaseTimeouts>;
  /** Users whose processes may give, besides this one's. */
  readonly peers?: readonly number[];
  /** The lease becomes the receiver's at `start`, to hand it on some time. Otherwise it is closed when all is done. */
  readonly keepLease?: boolean;
}

export interface ReceiveReport {
  readonly ms: Partial<Record<HandoffPhase, number>>;
  /** How often the thing has been handed over, this time included. */
  readonly generation: number;
}

/**
 * Takes over through a connected socket, or a channel on one, which it takes. Settles when what was adopted has been started.
 * @throws HandoffError when it did not come about: nothing is left of it here
 */
export async function receive(
  connection: Fd | Channel,
  receiver: Receiver,
  options: ReceiveOptions = {},
): Promise<ReceiveReport> {
  const clock = new PhaseClock(options.timeouts);
  let channel: Channel | undefined;
  let adopted: Adopted;
  let lease: Lease;
  try {
    channel =
      connection instanceof Channel ? connection : new Channel(connection, { peers: options.peers ?? [] });
    ({ adopted, lease } = await adoptFrom(channel, receiver, clock));
  } catch (error) {
    const failure = new HandoffError(clock.phase, error, 'nothing was taken over');
    const { code, message } = asDevstateError(error);
    channel?.sendDocument(HandoffMessage.REFUSED, { code, message }).catch(() => {});
    channel?.end();
    throw failure;
  }
  // From here on the device is ours, whether or not the giver hears of it.
  try {
    channel.sendDocument(HandoffMessage.RUNNING, null).catch(() => {});
    const { generation } = lease;
    await adopted.start(lease);
    return { ms: clock.ms, generation };
  } finally {
    if (options.keepLease !== true) lease.close();
    channel.end();
  }
}

async function adoptFrom(
  channel: Channel,
  receiver: Receiver,
  clock: PhaseClock,
): Promise<{ adopted: Adopted; lease: Lease }> {
  await clock.run('prepare', async () => {
    const { payload } = await channel.expect(HandoffMessage.PREPARE);
    const offer = decodeDocument(payload, FIRST_VERSION);
    requireVersion(offer, channel);
    requireRoom(offer);
    clock.followGiver(timeoutsOf(offer));
    const answer = await receiver.prepare(offer);
    await channel.sendDocument(HandoffMessage.READY, answer);
  });
  const bundle = new Bundle();
  let lease: Lease | undefined;
  let adopted: Adopted | undefined;
  try {
    const offer = await clock.run('transfer', () => collect(channel, bundle));
    lease = Lease.open(bundle.take(LEASE_NAME, FdKind.LEASE));
    adopted = await clock.run('adopt', async (signal) => {
      const ready = await receiver.adopt(bundle);
      if (!signal.aborted) return ready;
      // No one waits for it any more.
      await ready.abandon();
      throw signal.reason;
    });
    bundle.requireAllTaken();
    await clock.run('commit', () => commit(channel, lease as Lease, offer));
    return { adopted, lease };
  } catch (error) {
    lease?.close();
    await adopted?.abandon();
    throw error;
  } finally {
    bundle.close();
  }
}

/** How long the giver waits in each phase. A giver of the first versions does not say. */
function timeoutsOf(offer: unknown): Partial<PhaseTimeouts> {
  return z.object({ timeouts: phaseTimes }).safeParse(offer).data?.timeouts ?? {};
}

/** A giver of the first version says none. @throws DEVSTATE_E_HANDOFF_BUNDLE, and has the giver told in words that any can read */
function requireVersion(offer: unknown, channel: Channel): void {
  const { handoff = FIRST_VERSION } = (offer ?? {}) as { handoff?: unknown };
  if (handoff === HANDOFF_VERSION) return;
  channel.speak(FIRST_VERSION);
  throw otherVersion(handoff);
}

/** @throws DEVSTATE_E_HANDOFF when this process may not have as many files open as the giver has: nothing has stopped yet */
function requireRoom(offer: unknown): void {
  const { fds } = (offer ?? {}) as { fds?: unknown };
  const { fds: limit } = systemLimits();
  if (typeof fds !== 'number' || fds <= limit) return;
  const message = `the giver has ${fds} files open, and this process may have ${limit}: raise its limit (ulimit -n, LimitNOFILE=)`;
  throw new DevstateError('DEVSTATE_E_HANDOFF', message);
}

/** Until all fds and the document are there. @returns the number of the lease's offer */
async function collect(channel: Channel, bundle: Bundle): Promise<number> {
  for (;;) {
    const { type, payload, fds } = await channel.expect(HandoffMessage.FDS, HandoffMessage.TRANSFERRED);
    try {
      if (type === HandoffMessage.FDS) {
        bundle.add(decodeEntries(payload, fds.length), fds);
        continue;
      }
      if (fds.length > 0) throw malformed('TRANSFERRED carries fds');
    } finally {
      closeAll(fds);
    }
    const { fds: count, offer, document } = decodeTransferred(payload);
    bundle.complete(count, document);
    return offer;
  }
}

/** The giver may be gone by now: what it has sent is complete, and the lease says whether it continued. */
async function commit(channel: Channel, lease: Lease, offer: number): Promise<void> {
  await channel.sendDocument(HandoffMessage.ADOPTED, null).catch(() => {});
  if (lease.take(offer)) return;
  throw new DevstateError('DEVSTATE_E_HANDOFF', 'the giver has gone on');
}
