// SPDX-License-Identifier: Apache-2.0
/** `devstate upgrade --qemu`: replaces QEMU by another QEMU while its devices' servers stay. */

import { DevstateError } from '../errors.js';
import {
  type KeptDevice,
  type UpgradeQemuProgress,
  type UpgradeQemuResult,
  upgradeQemu,
} from '../operations/index.js';
import { formatMs, printColumns, printJson } from './output.js';
import { outlivingStrays, untilSignalled } from './signals.js';
import { writeStderr } from './stderr.js';

export interface UpgradeQemuCommandOptions {
  sourceQmp?: string;
  qmp?: string;
  device: KeptDevice[];
  unproven: string[];
  mode: 'cpr-transfer' | 'cpr-exec';
  timeoutS: number;
  log?: string;
  output: 'text' | 'json';
}

export async function runUpgradeQemu(command: string[], options: UpgradeQemuCommandOptions): Promise<void> {
  const { sourceQmp, qmp, device, unproven, mode, timeoutS, log, output } = options;
  if (sourceQmp === undefined) {
    const message = "required option '--source-qmp <path>' not specified; see --help";
    throw new DevstateError('DEVSTATE_E_USAGE', message);
  }
  const wanted = {
    mode,
    sourceQmp,
    devices: device,
    unproven,
    command,
    timeoutMs: timeoutS * 1000,
    ...(qmp === undefined ? {} : { qmp }),
    ...(log === undefined ? {} : { log }),
  };
  const progress = (report: UpgradeQemuProgress): void => {
    writeStderr(output === 'json' ? `${JSON.stringify(report)}\n` : `${report.phase}\n`);
  };
  const result = await outlivingStrays(() =>
    untilSignalled((signal) => upgradeQemu(wanted, { signal, progress })),
  );
  if (output === 'json') printJson(result);
  else printResult(result);
}

function printResult({
  mode,
  running,
  pid,
  version,
  downtime,
  totalMs,
  devices,
  warnings,
}: UpgradeQemuResult): void {
  const where = pid === undefined ? 'the same process' : `process ${pid}`;
  const { quiesceMs, captureMs, qemuMs, promoteMs, replayMs, resumeMs } = downtime;
  printColumns([
    ['Status', `completed by ${mode}, ${running ? 'running' : 'paused'} in ${where}`],
    ['QEMU', version],
    ['Time', formatMs(totalMs)],
    ['Downtime', formatMs(downtime.totalMs)],
    ['quiesce', formatMs(quiesceMs)],
    ['capture', formatMs(captureMs)],
    ['QEMU itself', formatMs(qemuMs)],
    ['promote', formatMs(promoteMs)],
    ['replay', formatMs(replayMs)],
    ['resume', formatMs(resumeMs)],
    ...devices.map(({ id, resets, absorbed }): [string, string] => [
      `Device ${id}`,
      `${resets} resets, ${absorbed.resets} absorbed`,
    ]),
  ]);
  for (const warning of warnings) writeStderr(`warning: ${warning}\n`);
}
