// SPDX-License-Identifier: Apache-2.0
/**
 * QEMU's own part of a live migration, driven over QMP: RAM and the devices that QEMU itself emulates.
 *
 *     source                                     destination (started with -S -incoming defer)
 *     sourceSettings                             destinationSettings, stopVm, startIncoming
 *     startMigration
 *       setup → active → STOP → pre-switchover   (here the caller saves what QEMU does not migrate)
 *     continueMigration
 *       device → completed                         completed, still paused
 *                                                (here the caller loads and replays) resumeVm → RESUME
 *
 * Both sides need the return path: without it a source takes a failed destination for a completed migration.
 */

import { DevstateError } from '../errors.js';
import * as z from '../zod.js';
import type { QmpClient, QmpEvent } from './qmp.js';
import { takesArgument } from './qmp-schema.js';
import type { WantedSettings } from './settings.js';

interface Cancellable {
  readonly signal?: AbortSignal | undefined;
}

/** QEMU's name of a migration's state: `none`, `setup`, `active`, `pre-switchover`, `device`, `completed`, `failed`, … */
export type MigrationStatus = string;

const UNSUCCESSFUL: readonly MigrationStatus[] = ['failed', 'cancelled'];
const ENDED: readonly MigrationStatus[] = ['none', 'completed', ...UNSUCCESSFUL];

const RunState = z.object({ status: z.string(), running: z.boolean() });
/** Whether the VM's CPUs run, and QEMU's name of the state it is in. */
export type RunState = z.infer<typeof RunState>;

const SocketAddress = z.looseObject({ type: z.string() });

const MigrationInfo = z.object({
  status: z.string().default('none'),
  'error-desc': z.string().optional(),
  'socket-address': z.array(SocketAddress).default([]),
  'blocked-reasons': z.array(z.string()).default([]),
  'total-time': z.number().default(0),
  downtime: z.number().optional(),
  'expected-downtime': z.number().optional(),
  ram: z
    .object({
      total: z.number(),
      transferred: z.number(),
      remaining: z.number(),
      'dirty-pages-rate': z.number().default(0),
      'dirty-sync-count': z.number().default(0),
      'page-size': z.number().default(4096),
      mbps: z.number().default(0),
    })
    .optional(),
});

/** How far a migration is. */
export interface MigrationProgress {
  readonly status: MigrationStatus;
  /** QEMU's own words, if it failed. */
  readonly error: string | undefined;
  /** Where it waits for a migration, if it does and says so: `unix:/run/vm/migration`. */
  readonly listensAt: readonly string[];
  /** Why the QEMU cannot be migrated now, in its own words. */
  readonly blocked: readonly string[];
  readonly totalMs: number;
  /** Downtime as QEMU counts it, which ends before the destination runs; once completed. */
  readonly downtimeMs: number | undefined;
  readonly expectedDowntimeMs: number | undefined;
  readonly ram: {
    readonly totalBytes: number;
    readonly transferredBytes: number;
    readonly remainingBytes: number;
    /** Pages of `pageSize` bytes that the guest dirties per second. */
    readonly dirtyPagesPerSecond: number;
    /** Passes over RAM begun so far. */
    readonly passes: number;
    readonly pageSize: number;
    readonly megabitsPerSecond: number;
  };
}

/** Ways of migrating that cannot be taken here: they want a file, or run the VM there before its devices are ready. */
export const OTHER_WAYS: WantedSettings['capabilities'] = {
  'background-snapshot': false,
  'mapped-ram': false,
  'postcopy-ram': false,
  'x-colo': false,
};

/** What the QEMU needs that the VM leaves. */
export function sourceSettings(options: {
  /** Bound for QEMU's own part of the pause, in ms: it switches over once it expects to keep it. */
  readonly downtimeMs: number;
  /** Bound for its rate, bytes per second; 0 is none. QEMU's default is 128 MiB/s. */
  readonly bytesPerSecond?: number;
}): WantedSettings {
  const rate = options.bytesPerSecond === undefined ? {} : { 'max-bandwidth': options.bytesPerSecond };
  return {
    capabilities: { ...OTHER_WAYS, events: true, 'return-path': true, 'pause-before-switchover': true },
    parameters: { mode: 'normal', 'downtime-limit': downtimeLimit(options.downtimeMs), ...rate },
  };
}

/** QEMU takes whole milliseconds, and at 0 never switches over. */
export function downtimeLimit(ms: number): number {
  return Math.max(1, Math.round(ms));
}

/** What the QEMU needs that the VM comes to. */
export function destinationSettings(): WantedSettings {
  return { capabilities: { ...OTHER_WAYS, events: true, 'return-path': true }, parameters: {} };
}

/** Makes the destination listen at `uri` (e.g. `unix:/run/vm/migration` or `tcp:0:4444`). */
export async function startIncoming(qmp: QmpClient, uri: string, options: Cancellable = {}): Promise<void> {
  // A destination that exits takes its reason along. One that has this argument (QEMU 9.1) can stay and tell.
  const canStay = await takesArgument(qmp, 'migrate-incoming', 'exit-on-error', options);
  const staying = canStay ? { 'exit-on-error': false } : {};
  await qmp.execute('migrate-incoming', { arguments: { uri, ...staying }, signal: options.signal });
}

/** Starts migrating the source to `uri`; returns at once. */
export async function startMigration(qmp: QmpClient, uri: string, options: Cancellable = {}): Promise<void> {
  await qmp.execute('migrate', { arguments: { uri }, signal: options.signal });
}

/** Lets a source that waits at `pre-switchover` complete. */
export async function continueMigration(qmp: QmpClient, options: Cancellable = {}): Promise<void> {
  const waiting = { state: 'pre-switchover' };
  await qmp.execute('migrate-continue', { arguments: waiting, signal: options.signal });
}

/**
 * Cancels the source's migration, if one is under way, and waits until it has ended. QEMU resumes the VM if the
 * migration had stopped it. Returns how it ended: `completed` means that it was too late.
 */
export async function cancelMigration(qmp: QmpClient, options: Cancellable = {}): Promise<MigrationStatus> {
  const watch = new MigrationWatch(qmp);
  try {
    await qmp.execute('migrate_cancel', { signal: options.signal });
    const { status } = await queryMigration(qmp, options);
    return ENDED.includes(status) ? status : await watch.waitForAny(ENDED, options);
  } finally {
    watch.close();
  }
}

/**
 * Cuts the connections of a migration, which then fails. It works also when a peer that does not answer has QEMU stuck:
 * while it completes, QEMU waits for its peer and for nothing else.
 */
export async function cutMigration(qmp: QmpClient, options: Cancellable = {}): Promise<void> {
  const instances = [{ type: 'migration' }];
  await qmp.execute('yank', { arguments: { instances }, outOfBand: true, signal: options.signal });
}

/** How far the migration is; `none` if there was none. */
export async function queryMigration(qmp: QmpClient, options: Cancellable = {}): Promise<MigrationProgress> {
  const info = await qmp.execute('query-migrate', { schema: MigrationInfo, signal: options.signal });
  return {
    status: info.status,
    error: info['error-desc'],
    listensAt: info['socket-address'].map(addressText),
    blocked: info['blocked-reasons'],
    totalMs: info['total-time'],
    downtimeMs: info.downtime,
    expectedDowntimeMs: info['expected-downtime'],
    ram: {
      totalBytes: info.ram?.total ?? 0,
      transferredBytes: info.ram?.transferred ?? 0,
      remainingBytes: info.ram?.remaining ?? 0,
      dirtyPagesPerSecond: info.ram?.['dirty-pages-rate'] ?? 0,
      passes: info.ram?.['dirty-sync-count'] ?? 0,
      pageSize: info.ram?.['page-size'] ?? 4096,
      megabitsPerSecond: info.ram?.mbps ?? 0,
    },
  };
}

/** As a URI has it. */
function addressText({ type, ...where }: z.infer<typeof SocketAddress>): string {
  const { host, port, path } = where;
  return `${type}:${path ?? [host, port].filter((part) => part !== undefined).join(':')}`;
}

/** Whether and how the VM runs. */
export function queryRunState(qmp: QmpClient, options: Cancellable = {}): Promise<RunState> {
  return qmp.execute('query-status', { schema: RunState, signal: options.signal });
}

/** Stops the VM's CPUs. */
export async function stopVm(qmp: QmpClient, options: Cancellable = {}): Promise<void> {
  await qmp.execute('stop', { signal: options.signal });
}

/** Lets the VM's CPUs run: a destination that completed, or a source that takes its VM back after `completed`. */
export async function resumeVm(qmp: QmpClient, options: Cancellable = {}): Promise<void> {
  await qmp.execute('cont', { signal: options.signal });
}

/**
 * Follows the migration of one side from its creation on: create it before the migration starts, so that no status is
 * missed, however short it lasts.
 */
export class MigrationWatch {
  /** Every status so far, in order; since {@link begin}, of one migration. */
  readonly history: MigrationStatus[] = [];
  /** Called with every status when it is reached. */
  onStatus: ((status: MigrationStatus) => void) | undefined;
  /** When the VM's CPUs last stopped, if they have since the watch began. */
  stopped: QmpEvent | undefined;
  /** When the VM's CPUs last began to run, if they have since the watch began. */
  resumed: QmpEvent | undefined;
  readonly #qmp: QmpClient;
  readonly #end: () => void;

  constructor(qmp: QmpClient) {
    this.#qmp = qmp;
    this.#end = qmp.onEvent((event) => {
      if (event.name === 'MIGRATION') {
        this.history.push(String(event.data.status));
        this.onStatus?.(String(event.data.status));
      } else if (event.name === 'STOP') this.stopped = event;
      else if (event.name === 'RESUME') this.resumed = event;
    });
  }

  /**
   * When QEMU has answered the command that began a migration: what came before is of another one, which somebody else
   * had begun and which has ended. Every migration begins with `setup`, and the answer comes after that event.
   */
  begin(): void {
    const first = this.history.lastIndexOf('setup');
    this.history.splice(0, first === -1 ? this.history.length : first);
  }

  /**
   * Waits until the migration has reached `status` since the watch began.
   * Throws DEVSTATE_E_QEMU_MIGRATION, with QEMU's reason, if it fails, is cancelled, or passes `status` by.
   */
  async waitFor(status: MigrationStatus, options: Cancellable = {}): Promise<void> {
    // One that does not stop at `pre-switchover` has had its capabilities changed by somebody.
    const reached = await this.waitForAny([status, ...UNSUCCESSFUL, 'completed'], options);
    if (reached === status) return;
    const { error } = await queryMigration(this.#qmp, options);
    const why = error === undefined ? '' : `: ${error}`;
    const message = `QEMU's migration ended as ${reached} before ${status}${why}`;
    throw new DevstateError('DEVSTATE_E_QEMU_MIGRATION', message);
  }

  /** Waits until the migration has reached one of `statuses` since the watch began; the first one it reached. */
  async waitForAny(
    statuses: readonly MigrationStatus[],
    options: Cancellable = {},
  ): Promise<MigrationStatus> {
    for (;;) {
      const reached = this.history.find((status) => statuses.includes(status));
      if (reached !== undefined) return reached;
      await this.#qmp.waitForEvent('MIGRATION', options);
    }
  }

  /** Stops following. */
  close(): void {
    this.#end();
  }
}
