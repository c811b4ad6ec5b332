// SPDX-License-Identifier: Apache-2.0
/** Asks a relay by its control socket. */

import { Asker, Channel, documentBytes, MAX_REQUEST_MESSAGE } from '../documents/index.js';
import { asDevstateError, DevstateError } from '../errors.js';
import { type HandoffReport, type HandoffStatus, handoffReport, handoffStatus } from '../handoff/index.js';
import { connect, type Fd } from '../transport/index.js';
import {
  type ConfigReads,
  type ConfigReadsRequest,
  decodeConfigReads,
  Errno,
  MAX_CONFIG_READS_LENGTH,
  WitnessedVmm,
} from '../wire/index.js';
import * as z from '../zod.js';
import type { ControlRequest, SwitchRequest } from './control.js';
import type { HandOverRequest } from './handoff-document.js';
import type { SwitchReport } from './switch.js';

const switchReport = z.object({
  server: z.string(),
  withState: z.boolean(),
  stateBytes: z.number(),
  prepareMs: z.number(),
  heldMs: z.number(),
  drainMs: z.number(),
  catchUpMs: z.number(),
  stateMs: z.number(),
});

/** As DEVSTATE_CONFIG_READS replies. */
const configReads = documentBytes(MAX_CONFIG_READS_LENGTH)
  .transform((bytes, context): ConfigReads => {
    try {
      const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
      return decodeConfigReads(view, 0, bytes.length);
    } catch (error) {
      context.addIssue(String(error));
      return z.NEVER;
    }
  })
  .nullable();

/** A relay that runs says at once what it is. */
const ANSWER_TIMEOUT_MS = 5000;

/** A connection to a relay's control socket. */
export class RelayControl {
  readonly #path: string;
  readonly #relay: Asker;

  private constructor(path: string, fd: Fd) {
    this.#path = path;
    const channel = new Channel(fd, { peers: 'any', maxMessageLength: MAX_REQUEST_MESSAGE });
    this.#relay = new Asker(channel, `the relay at ${path}`);
  }

  /** @throws DEVSTATE_E_CONNECT */
  static async connect(path: string): Promise<RelayControl> {
    try {
      return new RelayControl(path, await connect(path));
    } catch (cause) {
      const message = `no relay answers at ${path} (${asDevstateError(cause).message}); start it with --control ${path}`;
      throw new DevstateError('DEVSTATE_E_CONNECT', message, { cause });
    }
  }

  /**
   * Makes sure that it is a relay: before anything is begun, and within a bounded time.
   * @throws DEVSTATE_E_CONNECT
   */
  async requireRelay(timeoutMs = ANSWER_TIMEOUT_MS): Promise<void> {
    try {
      await this.#ask({ command: 'status' }, handoffStatus, timeoutMs);
    } catch (cause) {
      const { code } = asDevstateError(cause);
      const why =
        code === 'DEVSTATE_E_REQUEST_TIMEOUT'
          ? `says nothing for ${timeoutMs} ms`
          : 'is no relay, or of another version';
      const message = `what listens at ${this.#path} ${why}: give the path that the relay has as --control`;
      throw new DevstateError('DEVSTATE_E_CONNECT', message, { cause });
    }
  }

  /** Has it replace its device server. @throws what it answers */
  switchTo(request: SwitchRequest): Promise<SwitchReport> {
    return this.#ask({ command: 'switch', ...request }, switchReport);
  }

  /** Has it hand over to the relay that waits at `request.socket`. @throws DEVSTATE_E_HANDOFF when it continues */
  handOver(request: HandOverRequest, timeoutMs: number): Promise<HandoffReport> {
    return this.#ask({ command: 'hand-over', ...request }, handoffReport, timeoutMs);
  }

  handoffStatus(): Promise<HandoffStatus> {
    return this.#ask({ command: 'status' }, handoffStatus);
  }

  /** Whether it tells which reads of configuration space its VMM has sent: an older one does not. */
  async canWitness(): Promise<boolean> {
    try {
      await this.#askConfigReads({ since: Number.MAX_SAFE_INTEGER, vmm: WitnessedVmm.PRESENT });
      return true;
    } catch (error) {
      if (asDevstateError(error).code === 'DEVSTATE_E_USAGE') return false;
      throw error;
    }
  }

  /** The reads of configuration space that a VMM has sent. @throws DEVSTATE_E_REFUSED (ENOTCONN) when no such VMM is connected */
  async configReads(request: ConfigReadsRequest): Promise<ConfigReads> {
    const report = await this.#askConfigReads(request);
    if (report !== null) return report;
    throw new DevstateError('DEVSTATE_E_REFUSED', `no such VMM is connected to the relay at ${this.#path}`, {
      errno: Errno.ENOTCONN,
    });
  }

  #askConfigReads(request: ConfigReadsRequest): Promise<ConfigReads | null> {
    return this.#ask({ command: 'config-reads', ...request }, configReads, ANSWER_TIMEOUT_MS);
  }

  #ask<Schema extends z.ZodType>(
    request: ControlRequest,
    schema: Schema,
    timeoutMs?: number,
  ): Promise<z.infer<Schema>> {
    return this.#relay.ask(request, schema, { timeoutMs });
  }

  close(): void {
    this.#relay.close();
  }
}
