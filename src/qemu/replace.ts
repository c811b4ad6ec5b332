// SPDX-License-Identifier: Apache-2.0
/**
 * QEMU replaced by another QEMU on the same machine, its RAM staying where it is (QEMU's docs/devel/migration/CPR):
 *
 *     cpr-transfer   a new process beside the old one: -incoming main, -incoming cpr. It blocks at the cpr channel until
 *                    the old one has sent what is to be known before devices are made; then it makes them
 *     cpr-exec       the old process executes the new program, and its state waits in a file meanwhile
 *
 * The rest is as in a migration: `pre-switchover`, `continueMigration`, `completed`.
 */
import * as z from '../zod.js';
import { OTHER_WAYS } from './migration.js';
import type { QmpClient } from './qmp.js';
import type { WantedSettings } from './settings.js';

interface Cancellable {
  readonly signal?: AbortSignal | undefined;
}

export type ReplaceMode = 'cpr-transfer' | 'cpr-exec';

/** The first QEMUs that can: with each mode, and vfio-user-pci. */
const SINCE: Readonly<Record<ReplaceMode, readonly [number, number]>> = {
  'cpr-transfer': [10, 1],
  'cpr-exec': [10, 2],
};

const Memory = z.array(z.object({ id: z.string().optional(), share: z.boolean() }));

/** Why a QEMU cannot be replaced like this: sentences that say what to do. None if it can. */
export async function replaceObstacles(
  qmp: QmpClient,
  mode: ReplaceMode,
  options: Cancellable = {},
): Promise<string[]> {
  const [major, minor] = SINCE[mode];
  if (!qmp.isAtLeast(major, minor))
    return [`the QEMU is older than ${major}.${minor}, the first with ${mode}`];
  const reasons: string[] = [];
  const machine = { path: '/machine', property: 'aux-ram-share' };
  const shared = await qmp.execute('qom-get', { arguments: machine, signal: options.signal });
  if (shared !== true)
    reasons.push('it was started without -machine aux-ram-share=on, which a QEMU needs from its start');
  const memory = await qmp.execute('query-memdev', { schema: Memory, signal: options.signal });
  for (const { id = 'of the machine', share } of memory)
    if (!share) reasons.push(`its memory ${id} is private: it must be a memory backend with share=on`);
  return reasons;
}

/** What the QEMU needs that is to be replaced. @param command the new one's command line, for cpr-exec */
export function replaceSettings(mode: ReplaceMode, command: readonly string[]): WantedSettings {
  const exec = mode === 'cpr-exec' ? { 'cpr-exec-command': command } : {};
  return {
    capabilities: {
      ...OTHER_WAYS,
      events: true,
      'pause-before-switchover': true,
      // A file does not answer.
      'return-path': mode === 'cpr-transfer',
    },
    parameters: { mode, ...exec },
  };
}

/** The QEMU stays, and can be migrated as any other. For who does not know in which mode it was before. */
export async function endReplace(qmp: QmpClient, options: Cancellable = {}): Promise<void> {
  await qmp.execute('migrate-set-parameters', { arguments: { mode: 'normal' }, signal: options.signal });
}

/** UNIX sockets that the new QEMU listens at: for the state that is needed first, and for the rest. */
export interface TransferSockets {
  readonly cpr: string;
  readonly main: string;
}

const channel = (type: 'main' | 'cpr', path: string) => ({
  'channel-type': type,
  addr: { transport: 'socket', type: 'unix', path },
});

/** Arguments that make a new QEMU wait for cpr-transfer, and not run by itself. */
export function transferArguments({ main, cpr }: TransferSockets): string[] {
  const incoming = [channel('main', main), channel('cpr', cpr)].map((one) => JSON.stringify(one));
  return ['-S', ...incoming.flatMap((one) => ['-incoming', one])];
}

/** Arguments that make a new QEMU continue with what is in `file`, and not run by itself. */
export function execArguments(file: string): string[] {
  return ['-S', '-incoming', `file:${file}`];
}

/** Starts cpr-transfer to a QEMU that listens; returns at once. */
export async function startTransfer(
  qmp: QmpClient,
  { main, cpr }: TransferSockets,
  options: Cancellable = {},
): Promise<void> {
  const channels = [channel('main', main), channel('cpr', cpr)];
  await qmp.execute('migrate', { arguments: { channels }, signal: options.signal });
}

/** Starts cpr-exec by way of `file`; returns at once. */
export async function startExec(qmp: QmpClient, file: string, options: Cancellable = {}): Promise<void> {
  await qmp.execute('migrate', { arguments: { uri: `file:${file}` }, signal: options.signal });
}
