// SPDX-License-Identifier: Apache-2.0
/** Asks a relay by its control socket. */

import { connect as connectSocket, type Socket } from 'node:net';
import { z } from 'zod';
import { asDevstateError, DevstateError, ERROR_CODES, type ErrorCode } from '../errors.js';
import { type HandoffReport, type HandoffStatus, handoffReport, handoffStatus } from '../handoff/index.js';
import { type ConfigReads, type ConfigReadsRequest, Errno, WitnessedVmm } from '../wire/index.js';
import { type ControlRequest, packedConfigReads, type SwitchRequest } from './control.js';
import { LineReader } from './control-lines.js';
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

const answer = z.union([
  z.object({ error: z.object({ code: z.string(), message: z.string() }) }),
  z.object({ result: z.unknown() }),
]);

/** A relay that runs says at once what it is. */
const ANSWER_TIMEOUT_MS = 5000;

/** A connection to a relay's control socket. One request at a time. */
export class RelayControl {
  readonly #path: string;
  readonly #socket: Socket;
  readonly #lines: LineReader;

  private constructor(path: string, socket: Socket) {
    this.#path = path;
    this.#socket = socket;
    this.#lines = new LineReader(socket);
  }

  /** @throws DEVSTATE_E_CONNECT */
  static async connect(path: string): Promise<RelayControl> {
    const socket = connectSocket(path);
    try {
      await new Promise<void>((resolve, reject) => {
        socket.once('connect', resolve);
        socket.once('error', reject);
      });
    } catch (cause) {
      const why = cause instanceof Error ? cause.message : cause;
      const message = `no relay answers at ${path} (${why}); start it with --control ${path}`;
      throw new DevstateError('DEVSTATE_E_CONNECT', message, { cause });
    }
    return new RelayControl(path, socket);
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

  /** Has it hand over to the relay that waits at `request.socket`. @throws DEVSTATE_E_HANDOFF when it goes on */
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
    if (report !== null)
      return { next: report.next, reads: report.reads.map(([offset, length]) => ({ offset, length })) };
    throw new DevstateError('DEVSTATE_E_REFUSED', `no such VMM is connected to the relay at ${this.#path}`, {
      errno: Errno.ENOTCONN,
    });
  }

  #askConfigReads(request: ConfigReadsRequest): Promise<z.infer<typeof packedConfigReads>> {
    return this.#ask({ command: 'config-reads', ...request }, packedConfigReads, ANSWER_TIMEOUT_MS);
  }

  async #ask<Schema extends z.ZodType>(
    request: ControlRequest,
    schema: Schema,
    timeoutMs?: number,
  ): Promise<z.infer<Schema>> {
    this.#socket.write(`${JSON.stringify(request)}\n`);
    const line = await this.#nextLine(timeoutMs);
    const answered = understood(() => answer.parse(JSON.parse(line)));
    if ('result' in answered) return understood(() => schema.parse(answered.result));
    const { code, message } = answered.error;
    throw new DevstateError(code in ERROR_CODES ? (code as ErrorCode) : 'DEVSTATE_E_RELAY', message);
  }

  async #nextLine(timeoutMs: number | undefined): Promise<string> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      if (timeoutMs === undefined) return;
      timer = setTimeout(() => {
        const message = `the relay did not answer within ${timeoutMs} ms; see whether it runs`;
        reject(new DevstateError('DEVSTATE_E_REQUEST_TIMEOUT', message));
      }, timeoutMs);
    });
    try {
      const line = await Promise.race([this.#lines.next(), late]);
      if (line !== undefined) return line;
    } finally {
      clearTimeout(timer);
    }
    const message = 'the control connection was closed without an answer';
    throw new DevstateError('DEVSTATE_E_CONNECTION_CLOSED', message);
  }

  close(): void {
    this.#socket.destroy();
  }
}

/** @throws DEVSTATE_E_PROTOCOL */
function understood<T>(parse: () => T): T {
  try {
    return parse();
  } catch (cause) {
    const message = 'what answers at the control socket is no relay, or of another version';
    throw new DevstateError('DEVSTATE_E_PROTOCOL', message, { cause });
  }
}
