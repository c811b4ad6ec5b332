// SPDX-License-Identifier: Apache-2.0
/**
 * Why a migration failed, from the end that knows. A QEMU that learns of a failure from the other one, or loses its
 * connection to it, says no more than that; a device server that loses its VM's memory says only that there is none.
 */

import { DevstateError } from '../../errors.js';
import { type QmpClient, QmpCommandError, queryMigration, ramBlocks } from '../../qemu/index.js';
import { delay } from '../waiting.js';
import type { Parties, Vm } from './parties.js';

/** How long a QEMU that lives may take to say so, ms. */
const ALIVE_MS = 1000;
/** How long the other end may take to notice a failure, and to know its reason, ms. */
const NOTICE_MS = 2000;
/** How often it is asked, ms. */
const ASK_AGAIN_MS = 20;

/** What one end says of a failure. */
export interface Reason {
  readonly where: 'source' | 'destination';
  readonly text: string;
  /** Why a QEMU cannot be asked any more. */
  readonly lost?: DevstateError | undefined;
}

/** What a QEMU says that only knows that something has failed elsewhere. */
const UNSPECIFIC = [
  /Sibling indicated error/i,
  /Channel error/i,
  /Unable to (read|write)/i,
  /Failed to (read|write|send|receive)/i,
  /Connection (reset|refused|lost)/i,
  /Broken pipe|Input\/output error|Unexpected end|Not enough data|\bEOF\b/i,
];

/** Codes of errors that say what a QEMU or a server made of a failure, which may have happened elsewhere. */
const SECOND_HAND: readonly string[] = [
  'DEVSTATE_E_QEMU_MIGRATION',
  'DEVSTATE_E_QMP_CLOSED',
  'DEVSTATE_E_QTEST',
  'DEVSTATE_E_REFUSED',
];

/** The first to refuse is RAM, and what QEMU has said so far does not tell which. */
const UNNAMED_RAM = /^(?!.*(Unknown ramblock|Size mismatch)).*device 'ram'/is;

/** Has the refusal of a command say which QEMU refused it. */
export async function saidBy<T>(where: Reason['where'], work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    if (error instanceof QmpCommandError) error.message = `at the ${where}: ${error.message}`;
    throw error;
  }
}

/** The error, or one in its place that has the reason of the end that knows it. Before anything is undone. */
export async function causeOf(
  run: Pick<Parties, 'source' | 'destination'>,
  error: unknown,
): Promise<unknown> {
  if (!(error instanceof DevstateError) || !SECOND_HAND.includes(error.code)) return error;
  const failed = error.code === 'DEVSTATE_E_QEMU_MIGRATION';
  const asked = await Promise.all([
    reasonAt('destination', run.destination, failed ? NOTICE_MS : 0),
    reasonAt('source', run.source, 0),
  ]);
  const reasons = asked.filter((reason) => reason !== undefined);
  const lost = reasons.find((reason) => reason.lost !== undefined)?.lost;
  // What a server refuses is its own word, unless its QEMU is gone and has taken the memory along, or never had it.
  if (error.code === 'DEVSTATE_E_REFUSED' && lost === undefined) {
    const differences = await differentRam(run);
    if (differences.length === 0) return error;
    const message = `${error.message}; ${tellReasons(differences)}`;
    return new DevstateError(error.code, message, { cause: error });
  }
  if (reasons.length === 0) return error;
  const isUnnamed = reasons.some(({ where, text }) => where === 'destination' && UNNAMED_RAM.test(text));
  const [missing, code] = [isUnnamed ? await differentRam(run) : [], lost?.code ?? error.code];
  const message = `QEMU's migration failed: ${tellReasons([...missing, ...reasons])}`;
  return new DevstateError(code, message, { cause: error });
}

/** Those that say what happened, each with its end; the others only when there is none. */
export function tellReasons(reasons: readonly Reason[]): string {
  const specific = reasons.filter(({ text, lost }) => lost !== undefined || !isUnspecific(text));
  const told = specific.length > 0 ? specific : reasons;
  return told.map(({ where, text }) => `at the ${where}: ${text}`).join('; ');
}

function isUnspecific(text: string): boolean {
  return UNSPECIFIC.some((pattern) => pattern.test(text));
}

/** What a QEMU says of the failure. @param ms how long it may take until it has noticed */
async function reasonAt(where: Reason['where'], vm: Vm, ms: number): Promise<Reason | undefined> {
  const deadline = performance.now() + ms;
  for (;;) {
    try {
      const { status, error } = await queryMigration(vm.qmp, { signal: AbortSignal.timeout(ALIVE_MS) });
      if (error !== undefined) return { where, text: await withOutput(vm, error) };
      if (status === 'failed' || performance.now() >= deadline) return undefined;
    } catch (failure) {
      if (!(failure instanceof DevstateError)) return undefined;
      const output = await withOutput(vm, undefined);
      const why = output === '' ? 'its stderr may say why' : `it said: ${output}`;
      const text = `its QEMU has ended, or does not answer: ${failure.message}; ${why}`;
      return { where, text, lost: failure };
    }
    await delay(ASK_AGAIN_MS);
  }
}

/** What QEMU says at QMP and, more precise but not always to be had, on stderr. */
async function withOutput({ output }: Vm, error: string | undefined): Promise<string> {
  const lines = (await output?.lines()) ?? [];
  const isTold = error === undefined || lines.some((line) => line.includes(error));
  return [...lines, ...(isTold ? [] : [error])].join('; ');
}

/** QEMU names the RAM that does not fit on stderr only, which may be out of reach: the two are compared. */
async function differentRam({
  source,
  destination,
}: Pick<Parties, 'source' | 'destination'>): Promise<Reason[]> {
  const where = 'destination';
  const blocks = (qmp: QmpClient) => ramBlocks(qmp, { signal: AbortSignal.timeout(ALIVE_MS) });
  try {
    const [here, there] = await Promise.all([blocks(source.qmp), blocks(destination.qmp)]);
    return here.flatMap(({ name, used }): Reason[] => {
      const other = there.find((block) => block.name === name);
      if (other === undefined) return [{ where, text: `Unknown ramblock "${name}", which the source has` }];
      // For a ROM it is the size that the guest has been shown, which is not fixed.
      if (other.used === used || name.startsWith('/rom@')) return [];
      const sizes = `${other.used} bytes, at the source ${used}`;
      return [{ where, text: `Size mismatch of ramblock "${name}": ${sizes}` }];
    });
  } catch {
    return [];
  }
}
