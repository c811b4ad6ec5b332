// SPDX-License-Identifier: Apache-2.0
/**
 * A manager that is killed at the beginning of a phase, before it has done anything of it, or when QEMU has answered a
 * command of it for the first time:
 *
 *     node dying-manager.js '{"operation":"migrate","phase":"land","options":{…}}'
 *     node dying-manager.js '{"operation":"migrate","command":"cont","options":{…}}'
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import {
  type MigrateOptions,
  migrate,
  type Phase,
  type UpgradeQemuOptions,
  type UpgradeQemuPhase,
  upgradeQemu,
} from '../../src/operations/index.js';
import { QmpClient } from '../../src/qemu/index.js';

export type DyingManager =
  | { readonly operation: 'migrate'; readonly phase: Phase; readonly options: MigrateOptions }
  | { readonly operation: 'migrate'; readonly command: string; readonly options: MigrateOptions }
  | {
      readonly operation: 'upgradeQemu';
      readonly phase: UpgradeQemuPhase;
      readonly options: UpgradeQemuOptions;
    };

/** Runs one to its end. @throws if it ends otherwise than intended */
export async function untilKilled(manager: DyingManager): Promise<void> {
  const child = spawn(process.execPath, [fileURLToPath(import.meta.url), JSON.stringify(manager)], {
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let stderr = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  const [code, signal] = await once(child, 'close');
  if (signal !== 'SIGKILL') throw new Error(`it was not killed but ended with ${code}: ${stderr}`);
}

/** Kills this process when a QEMU has answered `command`. */
function dieAfter(command: string): void {
  const execute = QmpClient.prototype.execute as (this: QmpClient, ...args: unknown[]) => Promise<unknown>;
  QmpClient.prototype.execute = async function (this: QmpClient, ...args: unknown[]): Promise<never> {
    const answer = await execute.apply(this, args);
    if (args[0] === command) process.kill(process.pid, 'SIGKILL');
    return answer as never;
  };
}

async function die(manager: DyingManager): Promise<void> {
  if ('command' in manager) dieAfter(manager.command);
  const progress = ({ phase }: { readonly phase: string }): void => {
    if ('phase' in manager && phase === manager.phase) process.kill(process.pid, 'SIGKILL');
  };
  if (manager.operation === 'migrate') await migrate(manager.options, { progress });
  else await upgradeQemu(manager.options, { progress });
}

if (process.argv[1] === fileURLToPath(import.meta.url))
  await die(JSON.parse(process.argv[2] ?? '') as DyingManager);
