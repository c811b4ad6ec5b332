// SPDX-License-Identifier: Apache-2.0
/**
 * A process that has devices, or will have them: it listens at a socket, where another station hands them over, and where
 * `devstate vfio` asks and orders.
 *
 * A _lender_ keeps the files of what it gives, and takes it back when the process that had it has ended. All others close
 * what they have given.
 */

import { setTimeout as delay } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import { type Answer, answerAll, Channel, HandoffMessage, MAX_REQUEST_MESSAGE } from '../documents/index.js';
import { DevstateError } from '../errors.js';
import {
  type GiveReport,
  give,
  isKnown,
  isRunning,
  type PhaseTimeouts,
  parseHandoff,
  receive,
  thisProcess,
} from '../handoff/index.js';
import { type Log, limitRepeats } from '../logging/index.js';
import { checkObject, native, PollEvent, type Poller } from '../native/index.js';
import { connect, type Fd, Listener, setSocketMode } from '../transport/index.js';
import type { VfioAssignment } from './assignment.js';
import { ProcessWatch } from './process-watch.js';
import { type StationStatus, stationRequest } from './station-messages.js';
import { AssignmentGiver, AssignmentReceiver, type Operator } from './transfer.js';

/** Root may take anything from any process anyway, so it may give as well. */
const ROOT = 0;
/** Longest that a client may say nothing, or not read its answer, ms. */
const IDLE_MS = 30_000;
/** Connections of one user, and of all. */
const MAX_CHANNELS_OF_USER = 8;
const MAX_CHANNELS = 64;

export interface StationOptions {
  /** Devices that it has from the beginning. Takes them. */
  readonly assignment?: VfioAssignment;
  /** It is a lender. */
  readonly lends?: boolean;
  /** Users that may ask, give and be given to, besides its own and root. */
  readonly users?: readonly number[];
  /** Permissions of the socket. Default 0600, and 0666 when there are `users`: they are checked anyway. */
  readonly mode?: number;
  /** Longest that a client may say nothing, or not read its answer, ms. Default 30 s. */
  readonly idleMs?: number;
  /** Receives what happens without a request. */
  readonly log?: Log;
}

export class VfioStation {
  readonly #operator: Operator;
  readonly #users: readonly number[];
  readonly #lends: boolean;
  readonly #idleMs: number;
  readonly #log: Log;
  readonly #listener: Listener;
  readonly #channels = new Set<Channel>();
  #assignment: VfioAssignment | undefined;
  #busy = false;
  #watch: ProcessWatch | undefined;
  #bell: Poller | undefined;

  /** Listens at `path`. @throws DEVSTATE_E_ADDRESS_IN_USE */
  constructor(path: string, operator: Operator = {}, options: StationOptions = {}) {
    const { assignment, lends = false, users = [], mode, log, idleMs = IDLE_MS } = options;
    this.#idleMs = idleMs;
    this.#operator = operator;
    this.#users = [...users, ROOT];
    this.#lends = lends;
    this.#log = limitRepeats(log);
    this.#assignment = assignment;
    const permissions = mode ?? (users.length > 0 ? 0o666 : 0o600);
    this.#listener = Listener.listen(path, (fd) => void this.#serve(fd), { mode: permissions });
    // The umask of a service seldom lets others in.
    setSocketMode(path, permissions);
  }

  /** What it has, or lends; undefined when it has none. */
  get assignment(): VfioAssignment | undefined {
    return this.#assignment;
  }

  status(): StationStatus {
    const assignment = this.#assignment;
    const owner = assignment?.lease.owner;
    return {
      pid: process.pid,
      uid: process.getuid?.() ?? -1,
      lends: this.#lends,
      held: assignment?.isHeld ?? false,
      generation: assignment?.lease.generation ?? null,
      owner: owner === undefined ? null : { pid: owner.pid, running: isRunning(owner) },
      space: assignment?.space.kind ?? null,
      groups: assignment?.groupIds ?? [],
      devices: assignment?.deviceNames ?? [],
      dmaMappings: assignment?.dmaMappings.length ?? 0,
      lockedBytes: assignment?.lockedBytes ?? 0,
    };
  }

  /**
   * Gives what it has to the station at `to`. @param timeoutMs for each phase of the handoff
   * @throws DEVSTATE_E_VFIO_LEASE, DEVSTATE_E_VFIO_REBIND before anything has begun; HandoffError when this one continues
   */
  async give(to: string, timeoutMs: number): Promise<GiveReport> {
    const assignment = this.#assignment;
    if (assignment === undefined)
      throw new DevstateError('DEVSTATE_E_VFIO_LEASE', 'this process has no devices to give');
    return this.#alone(async () => {
      if (this.#lends) this.#listenForBell(assignment);
      const giver = new AssignmentGiver(assignment, this.#operator);
      const report = await give(await connect(to), giver, {
        lease: assignment.lease,
        peers: this.#users,
        timeouts: allPhases(timeoutMs),
        name: 'the source',
      });
      if (this.#lends) this.#watchOwner();
      else this.#endLease(assignment);
      return report;
    });
  }

  #endLease(assignment: VfioAssignment): void {
    this.#assignment = undefined;
    assignment.close();
    this.#operator.gone?.();
  }

  async #alone<T>(work: () => Promise<T>): Promise<T> {
    if (this.#busy)
      throw new DevstateError('DEVSTATE_E_HANDOFF', 'a handoff is under way at this process already');
    this.#busy = true;
    try {
      return await work();
    } finally {
      this.#busy = false;
    }
  }

  async #serve(fd: Fd): Promise<void> {
    let channel: Channel;
    try {
      channel = new Channel(fd, { peers: this.#users, maxMessageLength: MAX_REQUEST_MESSAGE });
    } catch (error) {
      this.#log('warn', (error as Error).message);
      return;
    }
    if (!this.#hasRoomFor(channel)) {
      const message = `more than ${MAX_CHANNELS_OF_USER} connections of user ${channel.peerUid}, or too many in all`;
      this.#log('warn', message);
      return channel.abort();
    }
    this.#channels.add(channel);
    const idle = new IdleTimer(() => channel.abort(), this.#idleMs);
    try {
      const first = await idle.during(channel.next());
      if (first.type === HandoffMessage.PREPARE) {
        channel.expectHandoff();
        channel.putBack(first);
        await this.#receive(channel);
      } else {
        const carryOut = (request: unknown): Promise<Answer> => this.#answer(request);
        await answerAll(channel, { carryOut, wait: (promise) => idle.during(promise) }, first);
      }
    } catch (error) {
      if ((error as DevstateError).code !== 'DEVSTATE_E_CONNECTION_CLOSED')
        this.#log('warn', (error as Error).message);
    } finally {
      this.#channels.delete(channel);
      channel.end();
    }
  }

  /** A user who fills its places does not take those of others, and root and this process's user always find one. */
  #hasRoomFor({ peerUid }: Channel): boolean {
    const uids = [...this.#channels].map((channel) => channel.peerUid);
    if (uids.filter((uid) => uid === peerUid).length >= MAX_CHANNELS_OF_USER) return false;
    return uids.length < MAX_CHANNELS || peerUid === ROOT || peerUid === process.getuid?.();
  }

  async #receive(channel: Channel): Promise<void> {
    await this.#alone(async () => {
      const before = this.#assignment;
      if (before?.isHeld === true || (before !== undefined && !this.#lends))
        throw new DevstateError('DEVSTATE_E_HANDOFF', 'this process has devices already');
      const receiver = new AssignmentReceiver(this.#operator, {
        consider: ({ devices }) => {
          if (before !== undefined) requireSame(devices, before.deviceNames);
        },
        installed: (assignment) => {
          // The same as was lent, with what has been added since.
          this.#stopWatching();
          before?.close();
          this.#assignment = assignment;
        },
      });
      await receive(channel, receiver, { keepLease: true });
    }).catch(async (error: unknown) => {
      // A giver that comes at the wrong time gets a refusal.
      const { code = 'DEVSTATE_E_INTERNAL', message } = error as DevstateError;
      await channel.sendDocument(HandoffMessage.REFUSED, { code, message }).catch(() => {});
      throw error;
    });
  }

  async #answer(asked: unknown): Promise<Answer> {
    const request = parseHandoff(stationRequest, asked, 'the request');
    if (request.command === 'status') return { document: this.status() };
    return { document: await this.give(request.to, request.timeoutMs) };
  }

  // A lender alone

  /** Whoever takes the devices over signals it. */
  #listenForBell(assignment: VfioAssignment): void {
    const fd = assignment.bell.number;
    if (this.#bell !== undefined) return;
    const poller = native.createPoller(fd, () => {
      native.eventfdRead(fd);
      this.#watchOwner();
    });
    this.#bell = checkObject(poller, 'watch an eventfd');
    this.#bell.start(PollEvent.readable);
    this.#bell.unref();
  }

  #watchOwner(): void {
    const assignment = this.#assignment;
    const owner = assignment?.lease.owner;
    if (assignment === undefined || owner === undefined || isDeepStrictEqual(owner, thisProcess())) return;
    if (isDeepStrictEqual(this.#watch?.process, owner)) return;
    this.#watch?.close();
    if (!isKnown(owner))
      this.#log(
        'warn',
        `process ${owner.pid}, of another pid namespace, has the devices: its end will not be noticed`,
      );
    this.#watch = new ProcessWatch(owner, () => {
      this.#watch = undefined;
      this.#ownerEnded(assignment);
    });
  }

  #ownerEnded(assignment: VfioAssignment): void {
    if (this.#assignment !== assignment) return;
    const owner = assignment.lease.owner;
    try {
      // It may have handed them on before it ended.
      if (owner === undefined || isRunning(owner) || !assignment.reclaim(owner)) this.#watchOwner();
      else this.#log('warn', `process ${owner.pid} ended with the devices: they can be lent again, reset`);
    } catch (error) {
      const { message } = error as Error;
      this.#log('warn', `process ${owner?.pid} ended with the devices, and they are not ready: ${message}`);
    }
  }

  #stopWatching(): void {
    this.#watch?.close();
    this.#watch = undefined;
    this.#bell?.close();
    this.#bell = undefined;
  }

  /** Releases everything, and stops listening. What another process has continues there. */
  async close(): Promise<void> {
    this.#listener.close();
    this.#stopWatching();
    for (const channel of this.#channels) channel.end();
    // A handoff that is under way comes to its end first: half of one belongs to no process.
    while (this.#busy) await delay(10);
    this.#assignment?.close();
    this.#assignment = undefined;
  }
}

/** Ends a connection on which the other end keeps us waiting. */
class IdleTimer {
  readonly #expired: () => void;
  readonly #ms: number;

  constructor(expired: () => void, ms: number) {
    this.#expired = expired;
    this.#ms = ms;
  }

  /** Waits for what depends on the other end. */
  async during<T>(work: Promise<T>): Promise<T> {
    const timer = setTimeout(this.#expired, this.#ms);
    try {
      return await work;
    } finally {
      clearTimeout(timer);
    }
  }
}

/** What comes back to a lender must be what it has lent. */
function requireSame(comes: readonly string[], lent: readonly string[]): void {
  if (isDeepStrictEqual([...comes].sort(), [...lent].sort())) return;
  const message = `${comes.join(', ')} cannot come here, where ${lent.join(', ')} was lent`;
  throw new DevstateError('DEVSTATE_E_HANDOFF', message);
}

function allPhases(timeoutMs: number): PhaseTimeouts {
  return { prepare: timeoutMs, freeze: timeoutMs, transfer: timeoutMs, adopt: timeoutMs, commit: timeoutMs };
}
