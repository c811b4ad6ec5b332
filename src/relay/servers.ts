// SPDX-License-Identifier: Apache-2.0
/**
 * The device servers of one VMM: the one that serves it, others that are to take its place, and the search for one when
 * it is gone. The gate is open while requests can pass to the one that serves.
 */

import { asDevstateError, DevstateError } from '../errors.js';
import { closeAll, type Fd, type Frame } from '../transport/index.js';
import { MigrationState, migrationStateName } from '../wire/index.js';
import { type Attached, attach } from './attach.js';
import { attachAgain, type SearchOptions } from './attach-again.js';
import type { BackEnd, BackEndHandler, KnownServer } from './back-end.js';
import type { Front } from './front.js';
import type { Hold } from './hold.js';
import type { InFlight, Origin } from './in-flight.js';
import type { Message, OwnMessage } from './messages.js';
import type { Owed } from './owed.js';
import type { ReplayLog } from './replay-log.js';
import type { SessionFacts } from './session-facts.js';

export interface ServersOptions extends SearchOptions {
  /** A server is gone, and with it what managers were doing. */
  readonly lost: (why: string) => void;
}

/** The session that they are the servers of. */
export interface ServersHost {
  readonly facts: SessionFacts;
  readonly replayLog: ReplayLog;
  readonly hold: Hold;
  readonly owed: Owed;
  /** The VMM: its requests are made again when a server dies. */
  readonly vmm: Front | undefined;
  /** Passes a request of the VMM to the server that serves. Takes the fds. */
  forward(request: Message, fds: readonly Fd[]): void;
  serverCommand(back: BackEnd, frame: Frame): void;
  /** A server's commands are of no use to anybody any more. */
  forgetCommands(back: BackEnd): void;
  /** The device of the server that serves runs again. */
  running(back: BackEnd): void;
}

/** For what the relay does in the VMM's name: nothing waits for the reply. */
export const NO_SENDER: Origin = { lasting: 'none', reply: () => {}, lost: () => {} };

export class Servers implements BackEndHandler {
  readonly #host: ServersHost;
  readonly #options: ServersOptions;
  #back: BackEnd | undefined;
  #open = false;
  #frozen = false;
  #closed = false;
  /** The first server is being attached, or another one is looked for. */
  #attaching: Promise<void> = Promise.resolve();

  constructor(host: ServersHost, options: ServersOptions) {
    this.#host = host;
    this.#options = options;
  }

  /** The one that serves the VMM now; undefined while there is none. */
  get back(): BackEnd | undefined {
    return this.#back;
  }

  /** Whether requests pass. */
  get isOpen(): boolean {
    return this.#open;
  }

  /** The VMM has left. */
  get isClosed(): boolean {
    return this.#closed;
  }

  /** Whether the server is gone and the next one is looked for. */
  get isSearching(): boolean {
    return !this.#closed && !this.#frozen && this.#back === undefined;
  }

  /** @throws DEVSTATE_E_RELAY when no other server can take the place of the VMM's */
  requireReplaceable(): void {
    if (!this.#host.facts.bound) return;
    const message =
      'the VMM has mapped memory of its device server, which no other can have; run the relay without --map';
    throw new DevstateError('DEVSTATE_E_RELAY', message);
  }

  /** @throws DEVSTATE_E_RELAY */
  requireNoMigration(): void {
    const back = this.#back;
    const isRunning = back?.state === MigrationState.RUNNING;
    if (back === undefined || (isRunning && !back.log.isOn)) return;
    const what = isRunning ? 'has its DMA logged' : `is in ${migrationStateName(back.state)}`;
    const message = `the device ${what}: a migration is under way; wait for its end`;
    throw new DevstateError('DEVSTATE_E_RELAY', message);
  }

  /** Attaches the first one. @param work must not reject */
  begin(work: Promise<void>): void {
    this.#attaching = work;
  }

  /** Connects to a server for this VMM. @throws as `attach` does */
  async attach(
    path: string,
    predecessor: KnownServer | undefined = this.#host.facts.known,
  ): Promise<Attached> {
    this.requireReplaceable();
    const proposal = this.#host.facts.proposal ?? new Uint8Array(0);
    const attached = await attach({ path, proposal, handler: this, predecessor });
    if (!this.#closed) return attached;
    attached.back.close();
    throw new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', 'the VMM has left');
  }

  /** From now on requests wait. */
  shut(): void {
    this.#open = false;
  }

  /** Gives a server the VMM's memory and interrupts, and begins to collect what changes from then on. */
  async replay(back: BackEnd): Promise<void> {
    this.#host.owed.expect(back);
    await this.#host.replayLog.replay(back);
  }

  /** Has a server carry out what has changed since {@link replay}. @throws DEVSTATE_E_REFUSED when it does not */
  async catchUp(back: BackEnd): Promise<void> {
    await this.#host.owed.carryOut(back);
  }

  /** Writes the config space of a new server as the VMM has. @throws DEVSTATE_E_REFUSED */
  async replayConfig(back: BackEnd): Promise<void> {
    await this.#host.replayLog.replayConfig(back);
  }

  /** Gives the VMM's requests to `back`, those that waited first. */
  adopt(back: BackEnd): void {
    if (this.#closed) {
      back.close();
      return;
    }
    const { facts, owed, hold } = this.#host;
    const before = this.#back;
    this.#back = back;
    facts.known = back;
    facts.lostMs = undefined;
    this.#open = true;
    owed.expect(back);
    if (before !== undefined && before !== back) this.discard(before);
    this.#pay(back);
    for (const request of hold.takeAll()) this.#host.forward(request, request.fds);
  }

  /** Ends the connection of a back end that is not, or no more, the VMM's. */
  discard(back: BackEnd): void {
    this.#host.owed.forget(back);
    this.#host.forgetCommands(back);
    back.close();
  }

  serverCommand(back: BackEnd, frame: Frame): void {
    this.#host.serverCommand(back, frame);
  }

  stateChanged(back: BackEnd): void {
    if (back.isStopped || back !== this.#back) return;
    if (this.#open) this.#pay(back);
    this.#host.running(back);
  }

  #pay(back: BackEnd): void {
    if (back.isStopped) return;
    for (const message of this.#host.owed.take(back)) back.forward(NO_SENDER, message, message.fds, false);
  }

  backEndClosed(back: BackEnd, error: DevstateError | undefined, unanswered: InFlight[]): void {
    const requests: OwnMessage[] = [];
    const cause = error === undefined ? 'it closed the connection' : asDevstateError(error).message;
    const why = `the device server at ${back.path} is gone (${cause})`;
    for (const request of unanswered) {
      const { origin, bytes, view, length, fds } = request;
      if (origin === this.#host.vmm && !this.#closed) requests.push({ bytes, view, length, fds });
      else {
        closeAll(fds);
        origin.lost(request, why);
      }
    }
    this.discard(back);
    if (back !== this.#back) {
      for (const { fds } of requests) closeAll(fds);
      return;
    }
    this.#back = undefined;
    this.#open = false;
    if (this.#closed) return;
    this.#options.lost(why);
    this.#host.facts.lostMs = performance.now();
    this.#host.hold.putBack(requests);
    this.#options.log('warn', `${why}; looking for another there`);
    this.#search();
  }

  /** One search after the other: a new one ends at once if the one before has found a server. */
  #search(): void {
    this.#attaching = this.#attaching.then(() => attachAgain(this, this.#options));
  }

  // Another relay takes this one's place.

  /** Nothing is attached any more until {@link thaw}; settles when nothing is under way but what that relay can continue with. */
  async settle(): Promise<void> {
    this.#frozen = true;
    await this.#attaching;
    await this.#back?.onlyLasting();
  }

  /** The server that another relay had, before {@link thaw}. */
  restore(back: BackEnd | undefined): void {
    this.#frozen = true;
    this.#back = back;
    if (back !== undefined) this.#host.owed.expect(back);
  }

  /** Continues after {@link settle} or {@link restore}. */
  thaw(): void {
    this.#frozen = false;
    this.#open = this.#back !== undefined;
    this.#back?.thaw();
    if (this.#back === undefined && this.#host.facts.known !== undefined) this.#search();
  }

  /** The server is another relay's: closes what is ours of its connection, and sends nothing. */
  relinquish(): void {
    this.#closed = true;
    this.#open = false;
    this.#back?.relinquish();
  }

  /** The VMM has left: so do we from its servers. */
  close(): void {
    this.#closed = true;
    this.#open = false;
    const back = this.#back;
    this.#back = undefined;
    if (back !== undefined) this.discard(back);
    for (const other of this.#host.owed.servers) this.discard(other);
  }
}
