// SPDX-License-Identifier: Apache-2.0
/**
 * Lets every single thing that an upgrade of QEMU asks for go wrong, one in each run, and says what must hold afterwards:
 *
 *     always                      the VM never runs twice; no connection, no folder is left; QEMU was asked nothing that it
 *                                 does not know
 *     completed                   the VM runs in the new QEMU with its device, its memory, its settings; not in the old one
 *     failed                      the error names the phase; the VM runs in the old QEMU as before; the new one's process is gone
 *     DEVSTATE_E_ROLLBACK         `recover` has it run in the old QEMU, unless it runs in the new one, or the old one is lost;
 *                                 with cpr-exec in the new one, once the program was executed
 */
import { type RecoverOptions, recover } from '../../../src/operations/index.js';
import type { QemuStandIn } from '../../support/qemu-stand-in.js';
import { until } from '../../support/served.js';
import { ID } from './bed.js';
import { type GoodRun, nameOf, type Point } from './sweep.js';
import { type Mode, UpgradeBed } from './upgrade-bed.js';

/** An upgrade that goes well, and what was asked for in it: the old QEMU is the source, the new one the destination. */
export async function goodUpgrade(mode: Mode): Promise<GoodRun> {
  const bed = await UpgradeBed.make(mode);
  const asked: GoodRun['asked'][number][] = [];
  const requests: GoodRun['requests'][number][] = [];
  bed.old.before = (one) => void asked.push({ ...one, where: 'source', phase: bed.phase });
  bed.onNew = (qemu) => {
    qemu.before = (one) => void asked.push({ ...one, where: 'destination', phase: bed.phase });
  };
  bed.tap.before = (one) => void requests.push({ ...one, where: 'source', phase: bed.phase });
  await bed.upgrade();
  await bed.close();
  if (bed.error !== undefined) throw bed.error;
  return { asked, requests };
}

/** Lets it go wrong there. */
function arm(bed: UpgradeBed, point: Point): void {
  const { index, where } = point;
  // What waits for a new QEMU to end is a limit of its own, and it does not end.
  const hit = <Kind extends string>(kind: Kind): Kind => {
    bed.time.hurry();
    return kind;
  };
  if (point.at === 'server') {
    bed.tap.fault = (request) => (request.index === index ? hit(point.kind) : undefined);
    return;
  }
  const { kind } = point;
  const breakAt = (qemu: QemuStandIn): void => {
    qemu.fault = (asked) => (asked.index === index ? hit(kind) : undefined);
  };
  if (where === 'source') breakAt(bed.old);
  else bed.onNew = breakAt;
}

/** An upgrade for each point. @returns what does not hold after them */
export async function sweepUpgrade(mode: Mode, points: readonly Point[]): Promise<string[]> {
  const wrong: string[] = [];
  for (const point of points)
    wrong.push(...(await upgradeWith(mode, nameOf(point), (bed) => arm(bed, point))));
  return wrong;
}

/**
 * An upgrade in which something goes wrong.
 * @param more what else does not hold after it
 * @returns what does not hold after it
 */
export async function upgradeWith(
  mode: Mode,
  name: string,
  prepare: (bed: UpgradeBed) => void,
  more: (bed: UpgradeBed) => string[] = () => [],
): Promise<string[]> {
  const bed = await UpgradeBed.make(mode);
  try {
    prepare(bed);
    const stalled = bed.time.stalled.then(() => true);
    if (await Promise.race([bed.upgrade().then(() => false), stalled]))
      return [`${name}: it is waited for without a limit`];
    const wrong = [...(await judgeUpgrade(bed)), ...more(bed)];
    const outcome = bed.error === undefined ? 'completed' : `${bed.error.code}: ${bed.error.message}`;
    return wrong.map((what) => `${name}: ${what} (${outcome})`);
  } finally {
    await bed.close();
  }
}

/** What does not hold. */
export async function judgeUpgrade(bed: UpgradeBed): Promise<string[]> {
  const { old, next, error, outcome } = bed;
  const wrong = await whyConnected(bed);
  for (const qemu of [old, next])
    wrong.push(...(qemu?.model.unknown ?? []).map((name) => `the model does not know ${name}`));
  const left = bed.folders.filter((name) => error?.message.includes(name) !== true);
  if (left.length > 0) wrong.push(`folders are left: ${left.join(', ')}`);
  if (error === undefined) {
    if (outcome === undefined) wrong.push('there is no outcome');
    const warnings = outcome?.warnings.join('; ');
    wrong.push(...(await bed.whyNotReplaced()).filter((what) => !isTold(what, warnings)));
    if (!old.model.ended && warnings === '') wrong.push('the old QEMU is there still');
    return [...wrong, ...bed.hosts.twice];
  }
  if (!/^DEVSTATE_E_/.test(error.code ?? '')) wrong.push('the error has no code of ours');
  if (!error.message.startsWith(`${bed.phase}: `)) wrong.push(`it does not say ${bed.phase}`);
  if (old.hasExecuted && error.code !== 'DEVSTATE_E_ROLLBACK')
    wrong.push('it says that the old QEMU continues, which has executed the new program');
  if (error.code === 'DEVSTATE_E_ROLLBACK') wrong.push(...(await whyNotRecovered(bed)));
  else if (!old.model.ended)
    wrong.push(...(await bed.whyNotBack()).filter((what) => !isTold(what, error.message)));
  else if (bed.phases.length > 1 && !/QEMU has ended|QEMU was asked to quit/.test(error.message))
    wrong.push('it does not say that the old QEMU has ended');
  return [...wrong, ...bed.hosts.twice];
}

/** Settings that cannot be put back the operator is told of, and devices whose VMM was not confirmed. */
function isTold(what: string, message = ''): boolean {
  if (/^the (new )?settings/.test(what)) return message.includes('could not be put back');
  return what.startsWith('the next VMM') && message.includes('the old QEMU was not tidied up');
}

/** Until what was closed must have been noticed, ms: other threads close it. */
const NOTICE_MS = 5000;

async function whyConnected(bed: UpgradeBed): Promise<string[]> {
  const silent = [bed.old, bed.next].some((qemu) => qemu?.silent !== undefined);
  const deadline = Date.now() + NOTICE_MS;
  while (bed.clients > 0 && !silent && Date.now() < deadline)
    await new Promise((resolve) => setImmediate(resolve));
  return bed.clients === 0 || silent ? [] : [`${bed.clients} connections are left`];
}

/** As one told so does it: once more when the new program has come up. */
async function recoverAgain(bed: UpgradeBed, options: RecoverOptions): Promise<void> {
  try {
    await recover(options);
  } catch (error) {
    if (!/run devstate recover again/.test((error as Error).message)) throw error;
    await until(() => bed.next !== undefined);
    await recover(options);
  }
}

/** The operator has seen to what was wrong, and runs `recover`. */
async function whyNotRecovered(bed: UpgradeBed): Promise<string[]> {
  const { old, next, newQemu } = bed;
  bed.tap.fault = () => undefined;
  // One that offers no QMP yet is killed by hand: no manager can ask it to quit.
  if (next === undefined) await newQemu.kill();
  for (const qemu of [old, next]) {
    if (qemu === undefined) continue;
    qemu.fault = () => undefined;
    if (qemu.silent === 'hang') qemu.exit();
    qemu.free();
  }
  // A server that is gone has taken the device along, and a QEMU the VM.
  const holder = old.hasExecuted ? next : old;
  if (holder === undefined || holder.model.ended || bed.tap.hasEnded) return [];
  try {
    await recoverAgain(bed, {
      sourceQmp: old.path,
      ...(bed.mode === 'cpr-exec' ? {} : { destQmp: bed.newPath }),
      devices: [{ id: ID, source: bed.served.migrationPath }],
    });
  } catch (error) {
    const { code, message } = error as { code: string; message: string };
    if (code === 'DEVSTATE_E_INCOMPATIBLE' && next !== undefined && next.model.isRunning) return [];
    if (code === 'DEVSTATE_E_INCOMPATIBLE' && /may have run/.test(message)) return [];
    return [`recover: ${message}`];
  }
  const wrong = await (old.hasExecuted ? bed.whyNotReplaced() : bed.whyNotBack());
  return wrong.map((what) => `recover: ${what}`);
}
