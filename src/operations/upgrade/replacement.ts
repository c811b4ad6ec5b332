// SPDX-License-Identifier: Apache-2.0
/**
 * One process replaced by another: the successor is started, the old one hands over to it. The handoff itself is between
 * those two: should this process end, it continues, or goes back, without it.
 */

import { asDevstateError, DevstateError } from '../../errors.js';
import type { HandoffReport, HandoffStatus } from '../../handoff/index.js';
import { Stopwatch } from '../stopwatch.js';
import { delay } from '../waiting.js';
import { Successor } from './successor.js';
import {
  type ReplacementOptions,
  type ReplacementResult,
  UPGRADE_PHASES,
  type UpgradeHooks,
  type UpgradePhase,
} from './types.js';

/** What the handoff takes beyond the phases that have limits of their own: transfer, commit, and the way back. */
const MARGIN_MS = 5000;
/** How long a successor that took over from a process that is gone may take to say so. */
const CONFIRM_MS = 5000;
const RETRY_MS = 5;

/** What is asked of either process; `Request` says what the handoff is to be like, beyond where to and how long. */
export interface Peer<Request> {
  handOver(
    request: Request & { socket: string; timeouts: Record<string, number> },
    timeoutMs: number,
  ): Promise<HandoffReport>;
  handoffStatus(): Promise<HandoffStatus>;
  close(): void;
}

/** What is replaced. */
export interface Replaced<Request> {
  /** In errors: `server`, `relay`. */
  readonly name: string;
  readonly old: Peer<Request>;
}

interface HandedOver {
  /** Undefined when the old process could not report any more. */
  readonly report: HandoffReport | undefined;
  /** Undefined when the successor does not answer. */
  readonly status: HandoffStatus | undefined;
}

export class Replacement<Request> {
  readonly #replaced: Replaced<Request>;
  readonly #options: ReplacementOptions;
  readonly #hooks: UpgradeHooks;
  readonly #phases: Partial<Record<UpgradePhase, number>> = {};
  readonly #warnings: string[] = [];

  constructor(replaced: Replaced<Request>, options: ReplacementOptions, hooks: UpgradeHooks) {
    this.#replaced = replaced;
    this.#options = options;
    this.#hooks = hooks;
  }

  /**
   * @param connect to the successor, where it is asked; fails with DEVSTATE_E_CONNECT while it does not listen
   * @param agree asks the successor what the handoff can be like; phases of its own are made by {@link phase}
   * @throws DEVSTATE_E_HANDOFF and others, when the old process continues
   */
  async run<Client extends Peer<Request>>(
    connect: (path: string) => Promise<Client>,
    agree: (successor: Client, signal: AbortSignal) => Promise<Request>,
  ): Promise<ReplacementResult> {
    const successor = new Successor(this.#options.command, this.#options.log);
    let client: Client | undefined;
    try {
      const { startMs } = this.#options;
      const message = `the successor was not ready within ${startMs} ms`;
      const timeout = new DevstateError('DEVSTATE_E_TIMEOUT', message);
      const late = new AbortController();
      const timer = setTimeout(() => late.abort(timeout), startMs);
      const signal = AbortSignal.any([late.signal, ...(this.#hooks.signal ? [this.#hooks.signal] : [])]);
      let request: Request;
      try {
        client = await this.phase('start', () => successor.connect(connect, signal));
        request = await agree(client, signal);
      } finally {
        clearTimeout(timer);
      }
      const { report, status } = await this.#handOver(request, successor, client);
      return {
        status: 'completed',
        pid: successor.pid ?? 0,
        generation: status?.generation ?? 0,
        pauseMs: status?.pauseMs,
        startedAtMs: status?.startedAtMs,
        phases: this.#phases,
        fds: report?.fds,
        warnings: this.#warnings,
      };
    } catch (error) {
      successor.kill();
      throw this.#cancelled(error);
    } finally {
      client?.close();
      successor.cleanUp();
    }
  }

  get #goesOn(): string {
    return `the old ${this.#replaced.name} continues`;
  }

  #cancelled(error: unknown): unknown {
    if (this.#hooks.signal?.aborted !== true || error !== this.#hooks.signal.reason) return error;
    return new DevstateError('DEVSTATE_E_CANCELLED', `the upgrade was cancelled; ${this.#goesOn}`);
  }

  /** An error says which phase it ended. */
  async phase<T>(phase: UpgradePhase, work: () => Promise<T>): Promise<T> {
    this.#hooks.progress?.({ phase });
    const watch = new Stopwatch();
    try {
      const result = await work();
      this.#ends(phase, watch.elapsed);
      return result;
    } catch (cause) {
      if (cause === this.#hooks.signal?.reason) throw cause;
      const { code, message } = asDevstateError(cause);
      const what = `upgrade failed in phase ${phase}: ${message}; ${this.#goesOn}`;
      throw new DevstateError(code, what, { cause });
    }
  }

  #ends(phase: UpgradePhase, ms: number): void {
    this.#phases[phase] = ms;
    this.#hooks.progress?.({ phase, ms });
  }

  async #handOver(request: Request, successor: Successor, client: Peer<Request>): Promise<HandedOver> {
    const { startMs, freezeMs, adoptMs } = this.#options;
    const timeouts = { prepare: startMs, freeze: freezeMs, adopt: adoptMs };
    const { name, old } = this.#replaced;
    this.#hooks.progress?.({ phase: 'prepare' });
    let report: HandoffReport;
    try {
      const asked = { ...request, socket: successor.socket, timeouts };
      report = await old.handOver(asked, startMs + freezeMs + adoptMs + MARGIN_MS);
    } catch (error) {
      if (!isLost(error)) throw error;
      const status = await this.#confirmed(successor, client);
      if (status === undefined) throw lostBoth(name, error);
      this.#warnings.push(`the old ${name} ended before it could report; its successor serves`);
      return { report: undefined, status };
    }
    for (const phase of UPGRADE_PHASES) {
      const ms = report.ms[phase];
      if (ms !== undefined) this.#ends(phase, ms);
    }
    const status = await this.#confirmed(successor, client);
    if (report.unconfirmed || status === undefined)
      this.#warnings.push('the successor took over, but does not answer: see whether it runs');
    return { report, status };
  }

  /** What the successor says, once it serves; undefined when it never does. */
  async #confirmed(successor: Successor, client: Peer<Request>): Promise<HandoffStatus | undefined> {
    const deadline = performance.now() + CONFIRM_MS;
    try {
      while (performance.now() < deadline && !successor.hasEnded) {
        const status = await client.handoffStatus();
        if (status.serving) return status;
        await delay(RETRY_MS);
      }
    } catch (error) {
      if (!isLost(error)) throw error;
    }
    return undefined;
  }
}

/** The process at the other end is gone, or says nothing any more. */
function isLost(error: unknown): error is DevstateError {
  return (
    error instanceof DevstateError &&
    (error.code === 'DEVSTATE_E_CONNECTION_CLOSED' || error.code === 'DEVSTATE_E_REQUEST_TIMEOUT')
  );
}

function lostBoth(name: string, cause: DevstateError): DevstateError {
  const what = cause.code === 'DEVSTATE_E_CONNECTION_CLOSED' ? 'ended during the handoff' : 'does not answer';
  const message = `the old ${name} ${what}, and the successor has not taken over: start a ${name} again`;
  return new DevstateError('DEVSTATE_E_HANDOFF', message, { cause });
}
