// SPDX-License-Identifier: Apache-2.0
/** What the relay answers in a server's place: when there is none, and when its device is stopped for a migration. */

import type { Fd } from '../transport/index.js';
import { Command, messageCommand } from '../wire/index.js';
import type { BackEnd } from './back-end.js';
import { ConfigShadow } from './config-shadow.js';
import { readConfig } from './identity.js';
import type { InFlight } from './in-flight.js';
import { type Message, NO_FDS, payloadOf } from './messages.js';
import type { Owed } from './owed.js';
import { canBeOwed, isPlausible, type ReplayLog } from './replay-log.js';

export interface StandInOptions {
  readonly log: ReplayLog;
  readonly owed: Owed;
  /** Interrupts by index, of the server that the VMM knows. */
  readonly irqs: () => readonly number[];
  /** Notes a request as one that has been carried out. Takes the fds that it needs. */
  readonly note: (request: Message, fds: readonly Fd[]) => void;
  readonly reply: (request: DataView, errno: number, payload?: Uint8Array) => void;
}

export class StandIn {
  readonly #options: StandInOptions;
  #shadow: ConfigShadow | undefined;

  constructor(options: StandInOptions) {
    this.#options = options;
  }

  /**
   * Takes a command that servers can be told of later, and answers it. Takes the fds that it needs.
   * @returns false for a command that has to be carried out now
   */
  owe(request: Message, fds: readonly Fd[]): boolean {
    const { log, owed, irqs, note, reply } = this.#options;
    const command = messageCommand(request.view);
    if (!canBeOwed(command) || !isPlausible(request, fds, log, irqs())) return false;
    owed.add(request, fds);
    note(request, fds);
    reply(request.view, 0, command === Command.DMA_UNMAP ? payloadOf(request) : undefined);
    return true;
  }

  /**
   * A server refused a request (EINVAL) as its device is stopped for a migration, which the VMM knows nothing of. What can
   * wait until it runs is done then; config space is what it was. @returns whether the VMM was answered
   */
  answer(request: InFlight): boolean {
    if (this.owe(request, request.fds)) return true;
    const payload = this.#shadow?.access(request);
    if (payload === undefined) return false;
    const { owed, note, reply } = this.#options;
    if (request.command === Command.REGION_WRITE) {
      owed.add(request, NO_FDS);
      note(request, NO_FDS);
    }
    reply(request.view, 0, payload);
    return true;
  }

  /** Called before the device is asked to stop: keeps what the VMM may read of it meanwhile. */
  keepConfig(back: BackEnd | undefined): void {
    if (back === undefined || back.isStopped || back.identity.config.length === 0) return;
    void readConfig(back, back.identity.config.length).then(
      (config) => {
        this.#shadow = new ConfigShadow(config);
      },
      () => {
        // Then the server's refusals are the answer.
      },
    );
  }

  /** The device runs again. */
  forgetConfig(): void {
    this.#shadow = undefined;
  }
}
