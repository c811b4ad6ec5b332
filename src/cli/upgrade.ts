// SPDX-License-Identifier: Apache-2.0
/** `devstate upgrade`: replaces a device server by another process while its VMM keeps its connection. */

import { Command, Option } from 'commander';
import { DevstateError } from '../errors.js';
import {
  type ReplacementResult,
  UPGRADE_PHASES,
  type UpgradeProgress,
  type UpgradeResult,
  upgrade,
  upgradeRelay,
} from '../operations/index.js';
import { negotiationRows } from './negotiation.js';
import { deviceCollector, outputOption, parsePositive, unprovenOption } from './options.js';
import { formatMs, printColumns, printJson } from './output.js';
import { untilSignalled } from './signals.js';
import { writeStderr } from './stderr.js';
import { runUpgradeQemu, type UpgradeQemuCommandOptions } from './upgrade-qemu.js';

interface UpgradeCommandOptions extends UpgradeQemuCommandOptions {
  qemu?: boolean;
  migrationSocket?: string;
  control?: string;
  format: string;
  allowLossy?: boolean;
  startS: number;
  freezeMs: number;
  adoptMs: number;
}

export function upgradeCommand(): Command {
  return new Command('upgrade')
    .description('replace a device server, a relay, or QEMU by its successor, under a VM that runs')
    .argument('<command...>', "the successor's command line, after --")
    .option('--migration-socket <path>', 'of the device server that is to be replaced')
    .option('--control <path>', 'of the relay that is to be replaced, instead')
    .addOption(
      new Option('--format <name>', 'the format of the state, by name or UUID; auto to negotiate').default(
        'auto',
      ),
    )
    .option('--allow-lossy', 'take a format that loses a part of the state, if there is no other')
    .option('--start-s <s>', 'time for the successor to start and to prepare', parsePositive, 30)
    .option('--freeze-ms <ms>', 'time for the old server to stop', parsePositive, 1000)
    .option('--adopt-ms <ms>', 'time for the successor to adopt', parsePositive, 1500)
    .option('--log <file>', "append the successor's output to a file (default: stderr of this command)")
    .option('--qemu', 'replace QEMU, with --source-qmp and --device')
    .option('--source-qmp <path>', 'QMP socket of the QEMU that is to be replaced')
    .option('--qmp <path>', 'QMP socket of the new one (default: the first -qmp of its command line)')
    .option(
      '--device <id,server=path>',
      "a vfio-user device of the VM: QEMU's id, migration socket of its server (repeatable, all of them)",
      deviceCollector(['server']),
      [],
    )
    .addOption(unprovenOption())
    .addOption(
      new Option('--mode <mode>', 'a new process, or a new program in the process')
        .choices(['cpr-transfer', 'cpr-exec'])
        .default('cpr-transfer'),
    )
    .option('--timeout-s <s>', 'give up and stay with the old QEMU after this time', parsePositive, 60)
    .addOption(outputOption())
    .action((words: string[], options: UpgradeCommandOptions, command: Command) => {
      const target = targetOf(options);
      requireApplicable(command, target.option);
      return target.option === '--qemu'
        ? runUpgradeQemu(words, options)
        : run(words, { ...options, ...target });
    });
}

/** What is replaced, by the option that names it. */
type Replaced = { option: '--migration-socket' | '--control'; path: string };
type Target = Replaced | { option: '--qemu' };

/** @throws DEVSTATE_E_USAGE unless it is one thing */
function targetOf({ migrationSocket, control, qemu }: UpgradeCommandOptions): Target {
  const targets: Target[] = [];
  if (migrationSocket !== undefined) targets.push({ option: '--migration-socket', path: migrationSocket });
  if (control !== undefined) targets.push({ option: '--control', path: control });
  if (qemu === true) targets.push({ option: '--qemu' });
  const [target] = targets;
  if (target !== undefined && targets.length === 1) return target;
  const message =
    'name what is to be replaced, once: --migration-socket of a device server, --control of a relay, or --qemu';
  throw new DevstateError('DEVSTATE_E_USAGE', message);
}

const HANDOFF_OPTIONS = ['startS', 'freezeMs', 'adoptMs'] as const;
/** Options that say something of what is replaced; the others say something of each. */
const APPLICABLE: Readonly<Record<Target['option'], readonly string[]>> = {
  '--migration-socket': [...HANDOFF_OPTIONS, 'format', 'allowLossy'],
  '--control': HANDOFF_OPTIONS,
  '--qemu': ['sourceQmp', 'qmp', 'device', 'unproven', 'mode', 'timeoutS'],
};

/** An option that would be without effect is a mistake. @throws DEVSTATE_E_USAGE */
function requireApplicable(command: Command, target: Target['option']): void {
  const others = new Set(Object.values(APPLICABLE).flat());
  for (const name of APPLICABLE[target]) others.delete(name);
  const wrong = command.options.find((option) => {
    const name = option.attributeName();
    return others.has(name) && command.getOptionValueSource(name) === 'cli';
  });
  if (wrong === undefined) return;
  const message = `${wrong.long} says nothing of what ${target} replaces: leave it out`;
  throw new DevstateError('DEVSTATE_E_USAGE', message);
}

async function run(command: string[], options: UpgradeCommandOptions & Replaced): Promise<void> {
  const { option, path, format, allowLossy = false, freezeMs, adoptMs } = options;
  const wanted = {
    command,
    startMs: options.startS * 1000,
    freezeMs,
    adoptMs,
    ...(options.log === undefined ? {} : { log: options.log }),
  };
  const progress = (report: UpgradeProgress): void => {
    if (options.output === 'json') writeStderr(`${JSON.stringify(report)}\n`);
    else if (report.ms === undefined) writeStderr(`${report.phase}\n`);
  };
  const result = await untilSignalled((signal): Promise<ReplacementResult | UpgradeResult> => {
    if (option === '--control') return upgradeRelay({ ...wanted, control: path }, { signal, progress });
    return upgrade({ ...wanted, migrationSocket: path, format, allowLossy }, { signal, progress });
  });
  if (options.output === 'json') printJson(result);
  else printResult(result);
}

function printResult(result: ReplacementResult | UpgradeResult): void {
  const { pid, generation, pauseMs, phases, fds, warnings } = result;
  printColumns([
    ['Status', `completed, process ${pid} serves (successor ${generation})`],
    ['Pause', pauseMs === undefined ? 'not known' : formatMs(pauseMs)],
    ['fds', fds === undefined ? 'not known' : String(fds)],
    ...UPGRADE_PHASES.flatMap((phase): [string, string][] =>
      phases[phase] === undefined ? [] : [[phase, formatMs(phases[phase])]],
    ),
    ...('negotiation' in result ? negotiationRows(result.negotiation, 'Format') : []),
  ]);
  for (const warning of warnings) writeStderr(`warning: ${warning}\n`);
}
