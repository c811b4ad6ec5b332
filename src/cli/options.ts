// SPDX-License-Identifier: Apache-2.0
/** Parsers of option values that several commands have. They throw what commander shows with the option's name. */

import { existsSync, readFileSync } from 'node:fs';
import { InvalidArgumentError, Option } from 'commander';
import { DevstateError } from '../errors.js';
import { DEFAULT_DOWNTIME_MS, type DeviceAddress, type OwnerOptions } from '../operations/index.js';
import type { MigrationProtocols, RuntimeOptions } from '../runtime/index.js';

const SUFFIXES: Readonly<Record<string, number>> = { '': 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 };

/** `64M` → bytes. */
export function parseSize(text: string): number {
  const match = /^(\d+)([KMGT]?)$/i.exec(text);
  const size = Number(match?.[1]) * (SUFFIXES[match?.[2]?.toUpperCase() ?? ''] ?? Number.NaN);
  if (!Number.isSafeInteger(size) || size <= 0) {
    throw new InvalidArgumentError('A size is a number of bytes, with K, M, G or T behind it if need be.');
  }
  return size;
}

/** A positive number. */
export function parsePositive(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !Number.isFinite(value) || value <= 0) {
    throw new InvalidArgumentError('It must be a number greater than 0.');
  }
  return value;
}

const USERS = '/etc/passwd';

/** A text, collected over repetitions. */
export function collect(text: string, collected: readonly string[]): string[] {
  return [...collected, text];
}

/** A user by name or number → its number, collected over repetitions. */
export function parseUser(text: string, collected: readonly number[]): number[] {
  const users = existsSync(USERS) ? readFileSync(USERS, 'utf8') : '';
  const named = users
    .split('\n')
    .map((line) => line.split(':'))
    .find(([name]) => name === text);
  const number = Number(named?.[2] ?? text);
  if (text === '' || !Number.isInteger(number) || number < 0)
    throw new InvalidArgumentError('There is no such user.');
  return [...collected, number];
}

/** `KEY=VALUE`, collected over repetitions. */
export function collectParameter(text: string, collected: Record<string, string>): Record<string, string> {
  const equals = text.indexOf('=');
  if (equals < 1) throw new InvalidArgumentError('A parameter is given as KEY=VALUE.');
  return { ...collected, [text.slice(0, equals)]: text.slice(equals + 1) };
}

/**
 * `ID,key=PATH,…` with exactly `keys`, collected over repetitions. A comma in a path is written twice, as for QEMU.
 */
export function deviceCollector<Key extends string>(keys: readonly Key[]) {
  type Device = { id: string } & Record<Key, string>;
  return (text: string, collected: Device[]): Device[] => {
    const form = `ID,${keys.map((key) => `${key}=PATH`).join(',')}`;
    const [id = '', ...parts] = text.split(/(?<!,),(?!,)/).map((part) => part.replaceAll(',,', ','));
    const given = new Map(
      parts.map((part) => [part.slice(0, part.indexOf('=')), part.slice(part.indexOf('=') + 1)] as const),
    );
    const complete = parts.length === keys.length && keys.every((key) => (given.get(key) ?? '') !== '');
    if (id === '' || id.includes('=') || !complete)
      throw new InvalidArgumentError(`A device is given as ${form}.`);
    return [...collected, { id, ...Object.fromEntries(given) } as Device];
  };
}

/** For a device whose server cannot take part in the proof that it is the one QEMU talks to. */
export function unprovenOption(): Option {
  return new Option(
    '--unproven <device>',
    "take a device's sockets as named although its servers cannot prove that they are this VM's (repeatable)",
  )
    .argParser(collect)
    .default([]);
}

export function downtimeOption(what = 'the pause to aim at, all of it'): Option {
  return new Option('--downtime-ms <ms>', what).argParser(parsePositive).default(DEFAULT_DOWNTIME_MS);
}

/** For a device whose storage is kept the same at both ends by other means than being one file. */
export function imageUncheckedOption(): Option {
  return new Option(
    '--image-unchecked <device>',
    "do not require that a device's servers work on one image: its storage is replicated (repeatable)",
  )
    .argParser(collect)
    .default([]);
}

/** What `ownerOptions` give. */
export interface OwnerCommandOptions {
  qmp?: string;
  device?: string;
  unproven?: boolean;
}

/** For a command that is given a device's socket, and may be given the wrong one. */
export function ownerOptions(): Option[] {
  return [
    new Option('--qmp <path>', 'QMP socket of the QEMU that has the device: prove that it is its device'),
    new Option('--device <id>', "QEMU's id of the device, with --qmp"),
    new Option('--unproven', 'do without that proof, although a VMM has the device').conflicts('qmp'),
  ];
}

/** @throws DEVSTATE_E_USAGE when one of --qmp and --device is missing */
export function givenOwner({ qmp, device, unproven = false }: OwnerCommandOptions): OwnerOptions {
  if (qmp !== undefined && device !== undefined) return { owner: { qmp, id: device } };
  if (qmp === undefined && device === undefined) return { unproven };
  throw new DevstateError('DEVSTATE_E_USAGE', '--qmp and --device belong together: give both');
}

/** What `servedProtocolOptions` give. */
export interface ServedProtocolOptions {
  migration: MigrationProtocols;
  migrationMapped?: boolean;
}

export function servedProtocolOptions(): Option[] {
  return [
    new Option(
      '--migration <protocol>',
      'how clients migrate the device: by the commands of v2, the region of v1, or either',
    )
      .choices(['v1', 'v2', 'both'])
      .default('v2'),
    new Option(
      '--migration-mapped',
      'let clients map the data section of the v1 region; QEMU then posts no writes to the device',
    ),
  ];
}

/** The migration protocols that the options ask a device's runtime for. */
export function servedProtocols(
  options: ServedProtocolOptions,
): Pick<RuntimeOptions, 'migration' | 'migrationRegion'> {
  const { migration, migrationMapped: mapped = false } = options;
  if (mapped && migration === 'v2')
    throw new DevstateError('DEVSTATE_E_USAGE', '--migration-mapped needs --migration v1 or both');
  return { migration, migrationRegion: { mapped } };
}

/** With `protocolOption`, for a v1 server that lets its data section be mapped to no good. */
export function trapOption(): Option {
  return new Option('--trap', "do not map a v1 region's data section: read and write it by messages");
}

/** The protocol that a device server is spoken to by. */
export function protocolOption(): Option {
  return new Option('--protocol <name>', 'the migration protocol; auto for v2 where there is a choice')
    .choices(['v1', 'v2', 'auto'])
    .default('auto');
}

/** `--force`, for commands that write a file. */
export function forceOption(): Option {
  return new Option(
    '--force',
    'write although the file is in use, is a device, or is not of the kind that is written',
  );
}

export function outputOption(): Option {
  return new Option('-o, --output <format>', 'how to print the result')
    .choices(['text', 'json'])
    .default('text');
}

/** What `deviceOptions` give: exactly one of them. */
export interface DeviceCommandOptions {
  migrationSocket?: string;
  vfioDevice?: string;
}

/** The device that a command is about. */
export function deviceOptions(): Option[] {
  return [
    new Option('--migration-socket <path>', "the device server's migration socket").conflicts('vfioDevice'),
    new Option(
      '--vfio-device <name>',
      "a device of the kernel's VFIO: /dev/vfio/devices/vfioN, or GROUP:NAME as in 12:0000:03:00.0",
    ),
  ];
}

/** @throws DEVSTATE_E_USAGE when none was given */
export function givenDevice({ migrationSocket, vfioDevice }: DeviceCommandOptions): DeviceAddress {
  if (migrationSocket !== undefined) return { migrationSocket };
  if (vfioDevice !== undefined) return { vfioDevice };
  throw new DevstateError('DEVSTATE_E_USAGE', 'which device: give --migration-socket or --vfio-device');
}

export function thenOption(): Option {
  return new Option('--then <what>', 'what the device does afterwards')
    .choices(['run', 'stop'])
    .default('run');
}

/** What `formatOptions` give. */
export interface FormatCommandOptions {
  format: string;
  allowLossy?: boolean;
  compress?: boolean;
}

export function formatOptions(): Option[] {
  return [
    new Option(
      '--format <name>',
      'the format of the device state, by name or UUID; auto to negotiate',
    ).default('auto'),
    new Option('--allow-lossy', 'take a way that loses a part of the state, if there is no other'),
    new Option('--compress', 'compress the device state, if both ends can'),
  ];
}
