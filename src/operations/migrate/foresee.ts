// SPDX-License-Identifier: Apache-2.0
/**
 * What the pause of a migration would be, measured at the source before there is one. The device is left as it was: its
 * DMA log is on for a moment, and goes with the connection if this process does; its state is not asked for, because that
 * takes PRE_COPY, which keeps others from migrating the device, and whose effect on a foreign server is not known.
 *
 *     source's memory     ── copied ──▶ scratch memory      rate of copying, as in pre-copy
 *     source's DMA log    read twice                        pages, and rate of writing
 *     what was asked for  less these                        QEMU's own part
 */

import { MigrationClient } from '../../client/index.js';
import { DevstateError } from '../../errors.js';
import { type MigrationEnd, PageBitmap } from '../../migration/index.js';
import { type DmaMapEntry, DmaMapFlag, Errno, MigrationState, migrationStateName } from '../../wire/index.js';
import { Stopwatch } from '../stopwatch.js';
import { delay } from '../waiting.js';
import { startLog } from './dirty-pages.js';
import { expectedPause, loadOf } from './expected-pause.js';
import { PageCopier } from './page-copy.js';
import { LOOK_MS } from './pause.js';
import { planPause } from './pause-plan.js';
import { scratchPages } from './scratch-pages.js';
import type { ExpectedPause } from './types.js';
import { WriteRate } from './write-rate.js';

/** Says why there is no expectation. */
class Unforeseen extends Error {}

export type Foresight = { readonly expected: ExpectedPause } | { readonly why: string };

/** The pause to expect for one device, `id` in its report. @throws DEVSTATE_E_CONNECTION_CLOSED and others that are no refusal */
export async function foreseePause(
  id: string,
  source: MigrationEnd,
  destination: MigrationEnd,
  downtimeMs: number,
): Promise<Foresight> {
  try {
    if (!(source instanceof MigrationClient) || !(destination instanceof MigrationClient))
      throw new Unforeseen("a device of the kernel's VFIO is not moved while its VM runs");
    const range = await largestRange(source);
    const way = await unlessRefused(
      wayTo(destination),
      ({ message }) => `the destination does not say how its memory is reached: ${message}`,
    );
    const measured = measure(id, source, { range, way, downtimeMs });
    return {
      expected: await unlessRefused(measured, ({ message }) => `the source broke it off: ${message}`),
    };
  } catch (error) {
    if (error instanceof Unforeseen) return { why: error.message };
    throw error;
  }
}

/** The largest range of the memory that the source reads and writes. @throws Unforeseen */
async function largestRange(source: MigrationClient): Promise<DmaMapEntry> {
  const maps = await unlessRefused(
    source.dmaMaps(),
    () => 'the source does not tell which memory its VMM has: it is no migration socket of devstate',
  );
  const both = maps.filter(({ flags }) => flags === (DmaMapFlag.READ | DmaMapFlag.WRITE));
  const [largest] = both.sort((a, b) => b.size - a.size);
  if (largest !== undefined) return largest;
  throw new Unforeseen(
    maps.length === 0
      ? 'no VMM is connected to the source'
      : "the source's VMM has no memory that its device both reads and writes",
  );
}

/** How pages would get to the destination, if the source gives its memory away. */
async function wayTo(destination: MigrationClient): Promise<PageCopier['way']> {
  const answer = await destination.dmaFiles();
  for (const fd of answer?.fds ?? []) fd.close();
  if (answer === undefined) return 'messages';
  // One without a VMM has none yet, and one behind a tunnel loses them on the way.
  return answer.entries.length === 0 || answer.fds.length > 0 ? 'mapped' : 'messages';
}

async function measure(
  id: string,
  source: MigrationClient,
  { range, way, downtimeMs }: { range: DmaMapEntry; way: PageCopier['way']; downtimeMs: number },
): Promise<ExpectedPause> {
  const state = await source.state();
  if (state !== MigrationState.RUNNING)
    throw new Unforeseen(`the source's device is ${migrationStateName(state)}, not running`);
  const canSwitch = await source.canWriteByMessage();
  const copier = new PageCopier(source, scratchPages(source, range, way));
  try {
    const writes = new WriteRate(source, new PageBitmap());
    const logMs = await withLog(source, async () => {
      const watch = new Stopwatch();
      await writes.look();
      await copier.rehearse();
      await delay(Math.max(0, LOOK_MS - watch.elapsed));
      const last = new Stopwatch();
      await writes.look();
      return last.elapsed;
    });
    const measured = { id, writes, copier, byMessage: false, canSwitch };
    const plan = planPause({
      downtimeMs,
      fixedMs: logMs,
      lookMs: LOOK_MS,
      devices: [loadOf(measured)],
    });
    return expectedPause(plan, [measured]);
  } finally {
    copier.close();
  }
}

/** @throws Unforeseen when the log is on for an operation that is under way: it must not lose what that will ask for */
async function withLog<T>(source: MigrationClient, work: () => Promise<T>): Promise<T> {
  await unlessRefused(startLog(source), ({ errno, message }) =>
    errno === Errno.EBUSY
      ? 'another operation is logging what the device writes: ask again when it has ended'
      : `the source cannot log what the device writes: ${message}`,
  );
  try {
    return await work();
  } finally {
    await source.stopLogging();
  }
}

/** @throws Unforeseen when the server refuses */
async function unlessRefused<T>(work: Promise<T>, why: (error: DevstateError) => string): Promise<T> {
  try {
    return await work;
  } catch (error) {
    if (!(error instanceof DevstateError) || error.code !== 'DEVSTATE_E_REFUSED') throw error;
    throw new Unforeseen(why(error));
  }
}
