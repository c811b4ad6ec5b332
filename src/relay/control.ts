// SPDX-License-Identifier: Apache-2.0
/**
 * The relay's control socket: lines of JSON, each answered by one.
 *
 *     {"command": "switch", "server": PATH, "state": "with" | "without", "imageUnchecked": true, if so}
 *     {"command": "hand-over", "socket": PATH, "timeouts": {PHASE: ms}}
 *     {"command": "status"}
 *     {"command": "config-reads", "since": NUMBER, "vmm": 0 | 1}     as the feature DEVSTATE_CONFIG_READS
 *     {"result": {…}}    {"error": {"code": "DEVSTATE_E_…", "message": "…"}}
 */

import { Socket } from 'node:net';
import { z } from 'zod';
import { asDevstateError, DevstateError } from '../errors.js';
import type { HandoffReport, HandoffStatus } from '../handoff/index.js';
import type { Fd } from '../transport/index.js';
import { type ConfigReads, type ConfigReadsRequest, WitnessedVmm } from '../wire/index.js';
import { LineReader } from './control-lines.js';
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
  readonly #clients = new Set<Socket>();
  /** Clients with a request that is not answered. */
  readonly #pending = new Set<Socket>();
  readonly #waiters: (() => void)[] = [];

  constructor(host: ControlHost) {
    this.#host = host;
  }

  /** Takes a connected socket. */
  accept(fd: Fd): void {
    // A client that has said all still waits for its answers.
    const client = new Socket({ fd: fd.release(), readable: true, writable: true, allowHalfOpen: true });
    if (this.#clients.size >= MAX_CLIENTS && !this.#evict()) {
      const message = `${MAX_CLIENTS} clients of the relay wait for answers; try again when it has answered`;
      client.on('error', () => {});
      client.end(`${JSON.stringify({ error: { code: 'DEVSTATE_E_RELAY', message } })}\n`);
      return;
    }
    this.#clients.add(client);
    client.on('close', () => {
      this.#clients.delete(client);
      if (this.#clients.size === 0) this.#host.deserted();
    });
    // Who does not wait for the answer does not get it.
    client.on('error', () => {});
    void this.#serve(client);
  }

  async #serve(client: Socket): Promise<void> {
    const lines = new LineReader(client);
    for (;;) {
      const line = await lines.next().catch(() => undefined);
      if (line === undefined) break;
      this.#pending.add(client);
      const answer = await this.#carryOut(line).then(
        (result) => ({ result }),
        (error: unknown) => {
          const { code, message } = asDevstateError(error);
          return { error: { code, message } };
        },
      );
      await new Promise<void>((resolve) => client.write(`${JSON.stringify(answer)}\n`, () => resolve()));
      this.#pending.delete(client);
      // To the end of the order.
      if (this.#clients.delete(client)) this.#clients.add(client);
      if (this.#pending.size === 0) for (const resolve of this.#waiters.splice(0)) resolve();
    }
    client.destroy();
  }

  /** Ends the connection that has been idle the longest. @returns false when all wait for answers */
  #evict(): boolean {
    for (const client of this.#clients) {
      if (this.#pending.has(client)) continue;
      this.#clients.delete(client);
      client.destroy();
      return true;
    }
    return false;
  }

  async #carryOut(line: string): Promise<unknown> {
    const asked = parseRequest(line);
    switch (asked.command) {
      case 'switch':
        return this.#host.switchTo(asked);
      case 'hand-over':
        return this.#host.handOver(asked);
      case 'status':
        return this.#host.status;
      case 'config-reads':
        return packConfigReads(this.#host.configReads(asked));
    }
  }

  /** Settles when every request is answered. */
  idle(): Promise<void> {
    if (this.#pending.size === 0) return Promise.resolve();
    return new Promise((resolve) => this.#waiters.push(resolve));
  }

  close(): void {
    for (const client of this.#clients) client.destroy();
  }
}

/** As short as can be: thousands of reads fit into a line. */
export const packedConfigReads = z
  .object({ next: z.int().min(0), reads: z.array(z.tuple([z.number(), z.number()])) })
  .nullable();

function packConfigReads(report: ConfigReads | undefined): z.infer<typeof packedConfigReads> {
  if (report === undefined) return null;
  return { next: report.next, reads: report.reads.map(({ offset, length }) => [offset, length]) };
}

/** @throws DEVSTATE_E_USAGE */
function parseRequest(line: string): ControlRequest {
  try {
    return request.parse(JSON.parse(line));
  } catch (cause) {
    const why = cause instanceof z.ZodError ? (cause.issues[0]?.message ?? '') : 'it is no JSON';
    const message = `the relay does not know that command: ${why}`;
    throw new DevstateError('DEVSTATE_E_USAGE', message, { cause });
  }
}
