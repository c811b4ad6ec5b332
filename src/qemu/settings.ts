// SPDX-License-Identifier: Apache-2.0
/**
 * Migration capabilities and parameters of a QEMU, which belong to its operator: what is changed for one migration is
 * put back after it, unless somebody else has changed it since.
 *
 *     const change = await planSettings(qmp, wanted);   // what will differ; nothing has changed
 *     …                                                 // here the caller writes `change` down
 *     await applySettings(qmp, wanted, change);
 *     …
 *     await putBackSettings(qmp, change);
 */
import { createHash } from 'node:crypto';
import * as z from '../zod.js';
import type { QmpClient } from './qmp.js';

interface Cancellable {
  readonly signal?: AbortSignal | undefined;
}

/** What a migration needs. Names and values are QMP's. */
export interface WantedSettings {
  readonly capabilities: Readonly<Record<string, boolean>>;
  readonly parameters: Readonly<Record<string, unknown>>;
}

/** What differs between the settings as they were and as they are wanted. Plain JSON, so that it can be journalled. */
export const SettingsChange = z.object({
  /** Each capability that is switched, as it was. */
  capabilities: z.record(z.string(), z.boolean()),
  /** Each parameter that is changed: its value as it was, absent if QEMU showed none, and the mark of the wanted one. */
  parameters: z.record(
    z.string(),
    z.object({
      before: z.unknown().optional(),
      ours: z.string(),
      /** Marks of values that it was given later. */
      later: z.array(z.string()).exactOptional(),
    }),
  ),
});
export type SettingsChange = z.infer<typeof SettingsChange>;

/** No difference. */
export const NO_CHANGE: SettingsChange = { capabilities: {}, parameters: {} };

/** What stands for a parameter that QEMU showed no value of. */
const DEFAULTS: Readonly<Record<string, unknown>> = { mode: 'normal', 'cpr-exec-command': [] };

/** Longest value that is its own mark, characters of JSON. A command line may have megabytes. */
const LONGEST_PLAIN_MARK = 64;

const Capabilities = z.array(z.object({ capability: z.string(), state: z.boolean() }));
const Parameters = z.record(z.string(), z.unknown());

interface Settings {
  readonly capabilities: ReadonlyMap<string, boolean>;
  readonly parameters: ReadonlyMap<string, unknown>;
}

async function readSettings(qmp: QmpClient, { signal }: Cancellable): Promise<Settings> {
  const [capabilities, parameters] = await Promise.all([
    qmp.execute('query-migrate-capabilities', { schema: Capabilities, signal }),
    qmp.execute('query-migrate-parameters', { schema: Parameters, signal }),
  ]);
  return {
    capabilities: new Map(capabilities.map(({ capability, state }) => [capability, state])),
    parameters: new Map(Object.entries(parameters)),
  };
}

/** What {@link applySettings} will change. Changes nothing. */
export async function planSettings(
  qmp: QmpClient,
  wanted: WantedSettings,
  options: Cancellable = {},
): Promise<SettingsChange> {
  const now = await readSettings(qmp, options);
  const change: SettingsChange = { capabilities: {}, parameters: {} };
  for (const [name, state] of Object.entries(wanted.capabilities)) {
    // One that QEMU does not know is off, and cannot be switched on: QEMU says so when it is asked to.
    const before = now.capabilities.get(name) ?? false;
    if (before !== state) change.capabilities[name] = before;
  }
  for (const [name, value] of Object.entries(wanted.parameters)) {
    const before = now.parameters.get(name);
    const ours = markOf(value);
    if (before === undefined) change.parameters[name] = { ours };
    else if (markOf(before) !== ours) change.parameters[name] = { before, ours };
  }
  return change;
}

/**
 * A change with further values: to be written down before they are applied, so that they are known as ours.
 * @param now what the parameters are given now; those that `change` has not were the same before
 */
export function alsoOurs(
  change: SettingsChange,
  parameters: WantedSettings['parameters'],
  now: WantedSettings['parameters'],
): SettingsChange {
  const more = { ...change.parameters };
  for (const [name, value] of Object.entries(parameters)) {
    const known = more[name] ?? { before: now[name], ours: markOf(now[name]) };
    // The last two: the reader may come before or after the value was given.
    more[name] = { ...known, later: [markOf(now[name]), markOf(value)] };
  }
  return { ...change, parameters: more };
}

/** What a parameter is now; undefined if QEMU shows no value of it. */
export async function queryParameter(
  qmp: QmpClient,
  name: string,
  options: Cancellable = {},
): Promise<unknown> {
  return (await readSettings(qmp, options)).parameters.get(name);
}

/** Changes what `change`, as planned for `wanted`, has. */
export async function applySettings(
  qmp: QmpClient,
  wanted: WantedSettings,
  change: SettingsChange,
  options: Cancellable = {},
): Promise<void> {
  const among = <T>(values: Readonly<Record<string, T>>, names: object): Record<string, T> =>
    Object.fromEntries(Object.entries(values).filter(([name]) => Object.hasOwn(names, name)));
  await set(
    qmp,
    {
      capabilities: among(wanted.capabilities, change.capabilities),
      parameters: among(wanted.parameters, change.parameters),
    },
    options,
  );
}

/** Plans and applies, for a caller who can put back as long as it lives. */
export async function changeSettings(
  qmp: QmpClient,
  wanted: WantedSettings,
  options: Cancellable = {},
): Promise<SettingsChange> {
  const change = await planSettings(qmp, wanted, options);
  await applySettings(qmp, wanted, change, options);
  return change;
}

/**
 * Puts back what was changed, as far as it still has the value that it was given. Idempotent. QEMU refuses it while a
 * migration is under way.
 * @returns the names of those that have another value by now, which they keep
 */
export async function putBackSettings(
  qmp: QmpClient,
  change: SettingsChange,
  options: Cancellable = {},
): Promise<string[]> {
  if (isNoChange(change)) return [];
  const now = await readSettings(qmp, options);
  const capabilities: Record<string, boolean> = {};
  const parameters: Record<string, unknown> = {};
  const kept: string[] = [];
  for (const [name, before] of Object.entries(change.capabilities)) {
    if ((now.capabilities.get(name) ?? before) !== before) capabilities[name] = before;
  }
  for (const [name, { before = DEFAULTS[name], ours, later = [] }] of Object.entries(change.parameters)) {
    const value = now.parameters.get(name);
    if (value === undefined || markOf(value) === markOf(before)) continue;
    const isOurs = [ours, ...later].includes(markOf(value));
    if (isOurs && before !== undefined) parameters[name] = before;
    else kept.push(name);
  }
  await set(qmp, { capabilities, parameters }, options);
  return kept;
}

function isNoChange({ capabilities, parameters }: SettingsChange): boolean {
  return Object.keys(capabilities).length + Object.keys(parameters).length === 0;
}

/** By one command for either, as QEMU checks what is set at once against each other. */
async function set(
  qmp: QmpClient,
  { capabilities: states, parameters }: WantedSettings,
  { signal }: Cancellable,
): Promise<void> {
  const capabilities = Object.entries(states).map(([capability, state]) => ({ capability, state }));
  if (capabilities.length > 0)
    await qmp.execute('migrate-set-capabilities', { arguments: { capabilities }, signal });
  if (Object.keys(parameters).length > 0)
    await qmp.execute('migrate-set-parameters', { arguments: parameters, signal });
}

/**
 * What two QEMUs must have alike to understand each other and have not, as sentences: the one would wait for connections,
 * or for an encryption, that the other does not make.
 */
export async function unlikeSettings(
  source: QmpClient,
  destination: QmpClient,
  options: Cancellable = {},
): Promise<string[]> {
  const [from, to] = await Promise.all([readSettings(source, options), readSettings(destination, options)]);
  const unlike = (what: string, here: string, there: string, command: string): string[] =>
    here === there
      ? []
      : [
          `${what} is ${here} at the source QEMU and ${there} at the destination QEMU: set it alike at both (${command})`,
        ];
  const state = ({ capabilities }: Settings): string => (capabilities.get('multifd') === true ? 'on' : 'off');
  const given = ({ parameters }: Settings, name: string): string =>
    (parameters.get(name) ?? '') === '' ? 'not set' : 'set';
  const compression = ({ parameters }: Settings): string =>
    String(parameters.get('multifd-compression') ?? 'none');
  return [
    ...unlike('multifd', state(from), state(to), 'migrate-set-capabilities'),
    ...(state(from) === 'on'
      ? unlike('multifd-compression', compression(from), compression(to), 'migrate-set-parameters')
      : []),
    ...unlike('tls-creds', given(from, 'tls-creds'), given(to, 'tls-creds'), 'migrate-set-parameters'),
  ];
}

/** Equal for equal values, and short. */
function markOf(value: unknown): string {
  const text = JSON.stringify(value) ?? '';
  if (text.length <= LONGEST_PLAIN_MARK) return text;
  return `sha256:${createHash('sha256').update(text).digest('hex')}`;
}
