// SPDX-License-Identifier: Apache-2.0
/**
 * Lets every single thing that a migration asks for go wrong, one in each run, and says what must hold afterwards:
 *
 *     always                      the VM never runs twice; no connection is left; QEMU was asked nothing that it does not know
 *     completed                   the VM runs at the destination with its device, its memory, its settings; not at the source
 *     failed in check             both QEMUs and devices are as they were
 *     failed later                the VM runs at the source as before, and the destination's QEMU is gone
 *     DEVSTATE_E_ROLLBACK         `recover` has it run at the source, unless it runs at the destination, or the source is lost
 */
import { recover } from '../../../src/operations/index.js';
import type { TapFault, TappedRequest } from '../../support/message-tap.js';
import type { Asked, FaultKind } from '../../support/qemu-stand-in.js';
import { Bed, type BedOptions, ID, type Where } from './bed.js';

/** One thing that goes wrong. */
export type Point = { readonly where: Where; readonly name: string; readonly index: number } & (
  | { readonly at: 'qemu'; readonly kind: FaultKind }
  | { readonly at: 'server'; readonly kind: TapFault }
);

/** Commands without an effect: it is the same whether they were carried out or not. */
const ASKS = /^(query-|qom-|qmp_capabilities$)/;
/** Every kind of fault at every point; else similar ones in turn, and fewer where nothing has changed yet, and of qtest's lines. */
const EVERY = process.env.DEVSTATE_EVERY_FAULT === '1';

/** A migration that goes well, and what was asked for in it. */
export interface GoodRun {
  readonly asked: readonly (Asked & { readonly where: Where; readonly phase: string })[];
  readonly requests: readonly (TappedRequest & { readonly where: Where; readonly phase: string })[];
}

export async function goodRun(options: BedOptions = {}): Promise<GoodRun> {
  const bed = await Bed.make(options);
  const asked: GoodRun['asked'][number][] = [];
  const requests: GoodRun['requests'][number][] = [];
  for (const where of ['source', 'destination'] as const) {
    bed[where].qemu.before = (one) => void asked.push({ ...one, where, phase: bed.phase });
    bed[where].tap.before = (one) => void requests.push({ ...one, where, phase: bed.phase });
  }
  await bed.migrate();
  await bed.close();
  if (bed.error !== undefined) throw bed.error;
  return { asked, requests };
}

/** All of them, or one, another one for the next index. */
function inTurn<Kind extends string>(index: number, ...kinds: readonly Kind[]): readonly Kind[] {
  return EVERY ? kinds : kinds.filter((_, i) => i === index % kinds.length);
}

/** All of them, but two as long as nothing has changed that would have to be undone: the first, and another one in turn. */
function thin<Kind extends string>(kinds: readonly Kind[], phase: string, index: number): readonly Kind[] {
  const [first, ...others] = kinds;
  if (phase !== 'check' || first === undefined) return kinds;
  return [first, ...inTurn(index, ...others)];
}

function at(good: GoodRun, where: Where): GoodRun['asked'][number][] {
  return good.asked.filter((one) => one.where === where).sort((a, b) => a.index - b.index);
}

/** All that can go wrong with what a QEMU is asked by QMP. */
export function qmpPoints(good: GoodRun, where: Where): Point[] {
  const commands = at(good, where).filter(({ by }) => by === 'qmp');
  return commands.flatMap(({ name, index, phase }, i) => {
    const kinds: FaultKind[] = ASKS.test(name)
      ? ['refuse', 'close', 'exit', 'stuck']
      : ['refuse', ...inTurn(i, 'close', 'lose'), 'exit', ...inTurn(i, 'stuck', 'hang')];
    return thin(kinds, phase, i).map((kind): Point => ({ at: 'qemu', where, name, index, kind }));
  });
}

/** The same of qtest. Reads that come together have no effect: one of them stands for all. */
export function qtestPoints(good: GoodRun, where: Where): Point[] {
  const isRead = ({ by, name }: Asked): boolean => by === 'qtest' && /^(in|read)/.test(name);
  return at(good, where).flatMap((asked, i, all) => {
    const before = all[i - 1];
    if (asked.by !== 'qtest' || (isRead(asked) && before !== undefined && isRead(before))) return [];
    const { name, index } = asked;
    const kinds: FaultKind[] = isRead(asked)
      ? ['refuse', 'close', 'exit', 'stuck']
      : ['refuse', 'lose', 'exit', 'hang'];
    return thin(kinds, 'check', index).map((kind): Point => ({ at: 'qemu', where, name, index, kind }));
  });
}

/** Commands of QMP; of those of the check the ones that have an effect. */
export function commandsOf({ asked }: GoodRun): GoodRun['asked'] {
  return asked.filter(({ by, phase, name }) => by === 'qmp' && (phase !== 'check' || !ASKS.test(name)));
}

export function serverPoints(good: GoodRun, where: Where): Point[] {
  return good.requests
    .filter((one) => one.where === where)
    .flatMap(({ name, index, phase }) => {
      const kinds: TapFault[] = ['refuse', ...inTurn(index, 'close', 'lose'), 'exit', 'hang'];
      return thin(kinds, phase, index).map((kind): Point => ({ at: 'server', where, name, index, kind }));
    });
}

/** Lets it go wrong there. */
export function arm(bed: Bed, point: Point): void {
  const { index, where } = point;
  if (point.at === 'qemu')
    bed[where].qemu.fault = (asked) => (asked.index === index ? point.kind : undefined);
  else bed[where].tap.fault = (request) => (request.index === index ? point.kind : undefined);
}

export function nameOf({ at, where, name, index, kind }: Point): string {
  return `${where}'s ${at}, ${name} (${index}): ${kind}`;
}

/** A migration for each point. @returns what does not hold after them */
export async function sweep(points: readonly Point[], options: BedOptions = {}): Promise<string[]> {
  const wrong: string[] = [];
  for (const point of points) wrong.push(...(await runWith(point, options)));
  return wrong;
}

/** A migration in which one thing goes wrong. @returns what does not hold after it */
export async function runWith(point: Point, options: BedOptions = {}): Promise<string[]> {
  const bed = await Bed.make(options);
  try {
    arm(bed, point);
    const stalled = bed.time.stalled.then(() => true);
    if (await Promise.race([bed.migrate().then(() => false), stalled]))
      return [`${nameOf(point)}: it is waited for without a limit`];
    const wrong = await judge(bed);
    const outcome = bed.error === undefined ? 'completed' : `${bed.error.code}: ${bed.error.message}`;
    return wrong.map((what) => `${nameOf(point)}: ${what} (${outcome})`);
  } finally {
    await bed.close();
  }
}

/** What does not hold. */
export async function judge(bed: Bed): Promise<string[]> {
  const { source, destination, error, outcome } = bed;
  const wrong = [...(await whyConnected(bed))];
  for (const { qemu } of [source, destination])
    wrong.push(...qemu.model.unknown.map((name) => `the model does not know ${name}`));
  if (error === undefined) {
    wrong.push(...(await bed.whyNotMoved()).filter((what) => !isTold(what, outcome?.warnings.join('; '))));
    if (source.qemu.model.isRunning) wrong.push('the VM runs at the source');
    if (outcome === undefined) wrong.push('there is no outcome');
  } else if (!/^DEVSTATE_E_/.test(error.code ?? '')) wrong.push('the error has no code of ours');
  else if (error.code === 'DEVSTATE_E_ROLLBACK') wrong.push(...(await whyNotRecovered(bed)));
  else if (!source.qemu.model.ended) wrong.push(...(await whyNotUndone(bed)));
  else if (!/QEMU has ended|QEMU was asked to quit|check:/.test(error.message))
    wrong.push("it does not say that the source's QEMU has ended");
  return [...wrong, ...bed.hosts.twice];
}

/** Until what was closed must have been noticed, ms: other threads close it. */
const NOTICE_MS = 5000;

async function whyConnected(bed: Bed): Promise<string[]> {
  const silent = [bed.source, bed.destination].some(({ qemu }) => qemu.silent !== undefined);
  const deadline = Date.now() + NOTICE_MS;
  while (bed.clients > 0 && !silent && Date.now() < deadline)
    await new Promise((resolve) => setImmediate(resolve));
  return bed.clients === 0 || silent ? [] : [`${bed.clients} connections are left`];
}

async function whyNotUndone(bed: Bed): Promise<string[]> {
  const wrong = await bed.whyNotBack();
  const { model } = bed.destination.qemu;
  const message = bed.error?.message ?? '';
  if (bed.phases.length > 1) {
    if (!model.ended && !message.includes('does not quit'))
      wrong.push("the destination's QEMU is there still");
  } else if (!model.ended && (model.status !== 'inmigrate' || model.migration.status !== 'none'))
    wrong.push(`the destination is ${model.status}, its migration ${model.migration.status}`);
  return wrong.filter((what) => !isTold(what, message));
}

/** Settings that cannot be put back the operator is told of. */
function isTold(what: string, message = ''): boolean {
  return what.startsWith('the settings') && message.includes('could not be put back');
}

/** The operator has seen to what was wrong, and runs `recover`. */
export async function whyNotRecovered(bed: Bed): Promise<string[]> {
  const { source, destination } = bed;
  for (const { qemu } of [source, destination]) {
    qemu.fault = () => undefined;
    if (qemu.silent === 'hang') qemu.exit();
    qemu.free();
  }
  // A server that is gone has taken the device along, and a QEMU the VM.
  if (source.qemu.model.ended || source.tap.hasEnded) return [];
  try {
    await recover({
      sourceQmp: source.qemu.path,
      destQmp: destination.qemu.path,
      devices: [{ id: ID, source: source.served.migrationPath }],
    });
  } catch (error) {
    const { code, message } = error as { code: string; message: string };
    if (code === 'DEVSTATE_E_INCOMPATIBLE' && destination.qemu.model.isRunning) return [];
    if (code === 'DEVSTATE_E_INCOMPATIBLE' && /may have run/.test(message)) return [];
    return [`recover: ${message}`];
  }
  const wrong = await bed.whyNotBack();
  if (!destination.qemu.model.ended) wrong.push("the destination's QEMU is there still");
  return wrong.map((what) => `recover: ${what}`);
}
