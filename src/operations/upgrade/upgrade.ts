// SPDX-License-Identifier: Apache-2.0
/**
 * Replaces a device server under its VMM by another process: starts the successor, agrees on a format with both, and has
 * the old server hand over. The handoff itself is between those two: should this process end, it goes on or back without it.
 */

import { Client, MigrationClient } from '../../client/index.js';
import { asDevstateError, DevstateError } from '../../errors.js';
import type { HandoffReport, HandoffStatus } from '../../handoff/index.js';
import { Stopwatch } from '../migrate/run.js';
import { askPeer, planReasons, planState, type StatePlan, summarisePlan } from '../state-plan.js';
import { delay, unlessAborted } from '../waiting.js';
import { Successor } from './successor.js';
import {
  UPGRADE_PHASES,
  type UpgradeHooks,
  type UpgradeOptions,
  type UpgradePhase,
  type UpgradeResult,
} from './types.js';

/** What the handoff takes beyond the phases that have limits of their own: transfer, commit, and the way back. */
const MARGIN_MS = 5000;
/** How long a successor that took over from a server that is gone may take to say so. */
const CONFIRM_MS = 5000;
const RETRY_MS = 5;

/**
 * @throws DEVSTATE_E_HANDOFF when the old server goes on; DEVSTATE_E_INCOMPATIBLE when the two do not fit;
 * DEVSTATE_E_NOT_MIGRATABLE when the old one cannot hand over
 */
export async function upgrade(options: UpgradeOptions, hooks: UpgradeHooks = {}): Promise<UpgradeResult> {
  const old = new MigrationClient(await Client.connect(options.migrationSocket));
  try {
    if (!(await old.canHandOver())) {
      const message = `the server at ${options.migrationSocket} cannot hand over to a successor: it is no devstate server, or an older one`;
      throw new DevstateError('DEVSTATE_E_NOT_MIGRATABLE', message);
    }
    return await new Upgrade(options, hooks, old).run();
  } finally {
    old.close();
  }
}

class Upgrade {
  readonly #options: UpgradeOptions;
  readonly #hooks: UpgradeHooks;
  readonly #old: MigrationClient;
  readonly #phases: Partial<Record<UpgradePhase, number>> = {};
  readonly #warnings: string[] = [];

  constructor(options: UpgradeOptions, hooks: UpgradeHooks, old: MigrationClient) {
    this.#options = options;
    this.#hooks = hooks;
    this.#old = old;
  }

  async run(): Promise<UpgradeResult> {
    const successor = new Successor(this.#options.command, this.#options.log);
    let client: MigrationClient | undefined;
    try {
      const { startMs } = this.#options;
      const timeout = new DevstateError(
        'DEVSTATE_E_TIMEOUT',
        `the successor was not ready within ${startMs} ms`,
      );
      const late = new AbortController();
      const timer = setTimeout(() => late.abort(timeout), startMs);
      const signal = AbortSignal.any([late.signal, ...(this.#hooks.signal ? [this.#hooks.signal] : [])]);
      let plan: StatePlan;
      try {
        client = await this.#phase('start', () => successor.connect(signal));
        plan = await this.#phase('negotiate', () => unlessAborted(this.#negotiate(client!), signal));
      } finally {
        clearTimeout(timer);
      }
      const { report, status } = await this.#handOver(plan, successor, client);
      return {
        status: 'completed',
        pid: successor.pid ?? 0,
        generation: status?.generation ?? 0,
        pauseMs: status?.pauseMs,
        startedAtMs: status?.startedAtMs,
        phases: this.#phases,
        fds: report?.fds,
        negotiation: summarisePlan(plan),
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

  #cancelled(error: unknown): unknown {
    if (this.#hooks.signal?.aborted !== true || error !== this.#hooks.signal.reason) return error;
    return new DevstateError('DEVSTATE_E_CANCELLED', 'the upgrade was cancelled; the old server goes on');
  }

  /** An error says which phase it ended. */
  async #phase<T>(phase: UpgradePhase, work: () => Promise<T>): Promise<T> {
    this.#hooks.progress?.({ phase });
    const watch = new Stopwatch();
    try {
      const result = await work();
      this.#ends(phase, watch.elapsed);
      return result;
    } catch (cause) {
      if (cause === this.#hooks.signal?.reason) throw cause;
      const { code, message } = asDevstateError(cause);
      throw new DevstateError(code, `upgrade failed in phase ${phase}: ${message}; the old server goes on`, {
        cause,
      });
    }
  }

  #ends(phase: UpgradePhase, ms: number): void {
    this.#phases[phase] = ms;
    this.#hooks.progress?.({ phase, ms });
  }

  async #negotiate(successor: MigrationClient): Promise<StatePlan> {
    const [source, destination] = [await askPeer(this.#old), await askPeer(successor)];
    const { format = 'auto', allowLossy = false } = this.#options;
    // Between two processes of one machine nobody sits who could convert: the format is one that both have.
    const planned = planState(source, destination, { format, allowLossy }, []);
    const reasons = planReasons(planned);
    for (const [peer, who] of [
      [source, 'old server'],
      [destination, 'successor'],
    ] as const)
      if (peer.interface !== 'formats') reasons.push(`the ${who} offers no format for its state`);
    if (reasons.length > 0)
      throw new DevstateError('DEVSTATE_E_INCOMPATIBLE', `the successor cannot go on: ${reasons.join('; ')}`);
    return planned.plan;
  }

  async #handOver(
    plan: StatePlan,
    successor: Successor,
    client: MigrationClient,
  ): Promise<{ report: HandoffReport | undefined; status: HandoffStatus | undefined }> {
    const taken = plan.negotiation?.taken;
    if (taken === undefined) throw new DevstateError('DEVSTATE_E_INTERNAL', 'a plan without a format');
    const { startMs, freezeMs, adoptMs } = this.#options;
    const { uuid, version } = taken.to;
    const request = {
      socket: successor.socket,
      format: { uuid, ...version },
      timeouts: { prepare: startMs, freeze: freezeMs, adopt: adoptMs },
    };
    this.#hooks.progress?.({ phase: 'prepare' });
    let report: HandoffReport | undefined;
    try {
      report = await this.#old.handOver(request, startMs + freezeMs + adoptMs + MARGIN_MS);
    } catch (error) {
      if (!isLost(error)) throw error;
      const status = await this.#confirmed(successor, client);
      if (status === undefined) throw lostBoth(error);
      this.#warnings.push('the old server ended before it could report; its successor serves');
      return { report: undefined, status };
    }
    for (const phase of UPGRADE_PHASES)
      if (report.ms[phase] !== undefined) this.#ends(phase, report.ms[phase]);
    const status = await this.#confirmed(successor, client);
    if (report.unconfirmed || status === undefined)
      this.#warnings.push('the successor took over, but does not answer: see whether it runs');
    return { report, status };
  }

  /** What the successor says, once it serves; undefined when it never does. */
  async #confirmed(successor: Successor, client: MigrationClient): Promise<HandoffStatus | undefined> {
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

/** The server at the other end is gone, or says nothing any more. */
function isLost(error: unknown): error is DevstateError {
  return (
    error instanceof DevstateError &&
    (error.code === 'DEVSTATE_E_CONNECTION_CLOSED' || error.code === 'DEVSTATE_E_REQUEST_TIMEOUT')
  );
}

function lostBoth(cause: DevstateError): DevstateError {
  const what = cause.code === 'DEVSTATE_E_CONNECTION_CLOSED' ? 'ended during the handoff' : 'does not answer';
  const message = `the old server ${what}, and the successor has not taken over: start a server again`;
  return new DevstateError('DEVSTATE_E_HANDOFF', message, { cause });
}
