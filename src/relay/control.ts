// SPDX-License-Identifier: Apache-2.0
/**
 * The relay's control socket: requests and answers of src/documents/ask.ts. Requests, and what is answered:
 *
 *     { command: "switch", server: PATH, state: "with" | "without", imageUnchecked: true, if so }    SwitchReport
 *     { command: "hand-over", socket: PATH, timeouts: {PHASE: ms} }                                  HandoffReport
 *     { command: "status" }                                                                          HandoffStatus
 *     { command: "config-reads", since: NUMBER, vmm: 0 | 1 }      bytes: the reply of DEVSTATE_CONFIG_READS; nil without such a VMM
 */

import { type Answer, answerAll, Channel, MAX_REQUEST_MESSAGE, refuseRequests } from '../documents/index.js';
import { DevstateError } from '../errors.js';
import type { HandoffReport, HandoffStatus } from '../handoff/index.js';
import type { Fd } from '../transport/index.js';
import { type ConfigReads, type ConfigReadsRequest, encodeConfigReads, WitnessedVmm } from '../wire/index.js';
import * as z from '../zod.js';
import { type HandOverRequest, handOverRequest } from './handoff-document.js';
import type { SwitchReport } from './switch.js';

const switchRequest = z.object({
  command: z.literal('switch'),
  server: z.string().min(1),
  state: z.enum(['with', 'without']),
  imageUnchecked: z.boolean().exactOptional(),
});
export type SwitchRequest = Omit<z.infer<typeof switchRequest>, 'command'>;

const request = z.discriminatedUnion('command', [
  switchRequest,
  z.object({ command: z.literal('hand-over'), ...handOverRequest.shape }),
  z.object({ command: z.literal('status') }),
  z.object({
    command: z.literal('config-reads'),
    since: z.int().min(0),
    vmm: z.enum(WitnessedVmm),
  }),
]);
export type ControlRequest = z.infer<typeof request>;

/** What is carried out. Each may reject with a DevstateError, which is the answer then. */
export interface ControlHost {
  switchTo(request: SwitchRequest): Promise<SwitchReport>;
  handOver(request: HandOverRequest): Promise<HandoffReport>;
  readonly status: HandoffStatus;
  /** Undefined when no such VMM is connected. */
  configReads(request: ConfigReadsRequest): ConfigReads | undefined;
  /** The last client has left. */
  deserted(): void;
}

/**
 * Clients that may be connected at once. One more takes the place of the one that has asked for nothing the longest; clients
 * that wait for an answer keep theirs.
 */
const MAX_CLIENTS = 16;

/** Serves the clients of a control socket. */
export class ControlServer {
  readonly #host: ControlHost;
  /** In the order in which they were last active, longest ago first. */
  readonly #clients = new Set<Channel>();
  /** Clients with a request that is not answered. */
  readonly #pending = new Set<Channel>();
  readonly #waiters: (() => void)[] = [];

  constructor(host: ControlHost) {
    this.#host = host;
  }

  /** Takes a connected socket. */
  accept(fd: Fd): void {
    const client: Channel = new Channel(fd, {
      // Who may open the socket's path may ask.
      peers: 'any',
      maxMessageLength: MAX_REQUEST_MESSAGE,
      closed: () => {
        if (this.#clients.delete(client) && this.#clients.size === 0) this.#host.deserted();
      },
    });
    if (this.#clients.size >= MAX_CLIENTS && !this.#evict()) {
      const message = `${MAX_CLIENTS} clients of the relay wait for answers; try again when it has answered`;
      refuseRequests(client, new DevstateError('DEVSTATE_E_RELAY', message));
      return;
    }
    this.#clients.add(client);
    const carryOut = async (asked: unknown): Promise<Answer> => ({ document: await this.#carryOut(asked) });
    // Who does not wait for the answer does not get it.
    answerAll(client, { carryOut, busy: (busy) => this.#isBusy(client, busy) }).catch(() => client.end());
  }

  #isBusy(client: Channel, busy: boolean): void {
    if (busy) {
      this.#pending.add(client);
      return;
    }
    this.#pending.delete(client);
    // To the end of the order.
    if (this.#clients.delete(client)) this.#clients.add(client);
    if (this.#pending.size === 0) for (const resolve of this.#waiters.splice(0)) resolve();
  }

  /** Ends the connection that has been idle the longest. @returns false when all wait for answers */
  #evict(): boolean {
    for (const client of this.#clients) {
      if (this.#pending.has(client)) continue;
      this.#clients.delete(client);
      client.abort();
      return true;
    }
    return false;
  }

  /** @throws DEVSTATE_E_USAGE */
  async #carryOut(asked: unknown): Promise<unknown> {
    const { data, error } = request.safeParse(asked);
    if (data === undefined) {
      const message = `the relay does not know that command: ${error?.issues[0]?.message}`;
      throw new DevstateError('DEVSTATE_E_USAGE', message, { cause: error });
    }
    switch (data.command) {
      case 'switch':
        return this.#host.switchTo(data);
      case 'hand-over':
        return this.#host.handOver(data);
      case 'status':
        return this.#host.status;
      case 'config-reads': {
        const reads = this.#host.configReads(data);
        return reads === undefined ? null : encodeConfigReads(reads);
      }
    }
  }

  /** Settles when every request is answered. */
  idle(): Promise<void> {
    if (this.#pending.size === 0) return Promise.resolve();
    return new Promise((resolve) => this.#waiters.push(resolve));
  }

  close(): void {
    for (const client of this.#clients) client.abort();
  }
}
