// SPDX-License-Identifier: Apache-2.0
/**
 * A manager that is killed at the beginning of a phase, before it has done anything of it, or when QEMU has answered a
 * command of it for the first time; or one that only checks, when a device server has first told what its device wrote:
 *
 *     node dying-manager.js '{"operation":"migrate","phase":"land","options":{…}}'
 *     node dying-manager.js '{"operation":"migrate","command":"cont","options":{…}}'
 *     node dying-manager.js '{"operation":"checkDevices","options":{…}}'
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { MigrationClient } from '../../src/client/index.js';
import {
  type CheckDevicesOptions,
  checkDevices,
  type MigrateOptions,
  migrate,
  type Phase,
  type UpgradeQemuOptions,
  type UpgradeQemuPhase,
  upgradeQemu,
} from '../../src/operations/index.js';
import { atCommand } from '../e2e/harness/at-command.js';

export type DyingManager =
  | { readonly operation: 'checkDevices'; readonly options: CheckDevicesOptions }
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

/** Kills this process when a device server has told what its device wrote. */
function dieAfterReport(): void {
  const { reportLogging } = MigrationClient.prototype;
  MigrationClient.prototype.reportLogging = async function (this: MigrationClient, report) {
    const bitmap = await reportLogging.call(this, report);
    process.kill(process.pid, 'SIGKILL');
    return bitmap;
  };
}

async function die(manager: DyingManager): Promise<void> {
  if ('command' in manager)
    void atCommand({ command: manager.command, when: 'after' }, () => process.kill(process.pid, 'SIGKILL'));
  const progress = ({ phase }: { readonly phase: string }): void => {
    if ('phase' in manager && phase === manager.phase) process.kill(process.pid, 'SIGKILL');
  };
  if (manager.operation === 'checkDevices') {
    dieAfterReport();
    await checkDevices(manager.options);
  } else if (manager.operation === 'migrate') await migrate(manager.options, { progress });
  else await upgradeQemu(manager.options, { progress });
}

if (process.argv[1] === fileURLToPath(import.meta.url))
  await die(JSON.parse(process.argv[2] ?? '') as DyingManager);
