// SPDX-License-Identifier: Apache-2.0
/** Successors that fail in each phase and in each way: what is the same whether a server or a relay is to be replaced. */

import { readFileSync } from 'node:fs';
import type { Test } from 'tap';
import type { DevstateError } from '../../src/errors.js';
import type { UpgradeOptions } from '../../src/operations/index.js';
import { Devstate } from '../e2e/harness/devstate-process.js';
import { kill } from '../support/kill.js';

/** Limits that give a successor that works all the time that it needs. */
export const LIMITS = { startMs: 60_000, freezeMs: 20_000, adoptMs: 20_000 };
/** How long one that hangs when it has started is waited for, ms: on a machine at load one needs five seconds to start. */
export const HANG_MS = 15_000;
export type Limits = Partial<Pick<UpgradeOptions, keyof typeof LIMITS>>;

/** What is to be replaced. */
export interface Replaced {
  /** As errors call it. */
  readonly what: 'server' | 'relay';
  /** What successors say. */
  readonly log: string;
  /** Has it replaced by what `command` starts. */
  upgrade(command: readonly string[], limits?: Limits): Promise<unknown>;
  /** The command of a successor that does `action` (see `failAs`) in `step`. */
  faulty(step: string, action: string): readonly string[];
  /** Has it stop by `stop`, which is passed its own way to; undefined: by that. */
  stopBy(stop: ((own: () => Promise<void>) => Promise<void>) | undefined): void;
  /** Fails unless it serves as if no one had been to replace it. */
  goesOn(t: Test): Promise<void>;
}

/** A successor that does not get to its handoff. */
export interface Start extends Limits {
  readonly name: string;
  readonly command: readonly string[];
  readonly message: RegExp;
  readonly code: string;
}

/** The error of an upgrade that fails. */
export async function failure(upgrade: Promise<unknown>): Promise<DevstateError> {
  try {
    await upgrade;
  } catch (error) {
    return error as DevstateError;
  }
  throw new Error('the upgrade did not fail');
}

/** Of the last faulty successor: it says it first of all. */
export function successorPid(log: string): number {
  return Number([...readFileSync(log, 'utf8').matchAll(/^pid (\d+)$/gm)].at(-1)?.[1]);
}

const STARTS: readonly Start[] = [
  {
    name: 'it cannot be started',
    command: ['/no/such/program'],
    message: /phase start: the successor cannot be started: .*ENOENT/,
    code: 'DEVSTATE_E_HANDOFF',
  },
  {
    name: 'it ends at once',
    command: [process.execPath, '-e', 'process.exit(3)'],
    message: /phase start: the successor ended with exit code 3/,
    code: 'DEVSTATE_E_HANDOFF',
  },
  {
    name: 'it never listens',
    command: [process.execPath, '-e', 'setInterval(() => {}, 1000)'],
    startMs: 300,
    message: /phase start: the successor was not ready within 300 ms/,
    code: 'DEVSTATE_E_TIMEOUT',
  },
];

/** @param more those that only the one or the other can have */
export async function failToStart(t: Test, replaced: Replaced, more: readonly Start[]): Promise<void> {
  for (const { name, command, message, code, ...limits } of [...STARTS, ...more]) {
    await t.test(name, async (t) => {
      const error = await failure(replaced.upgrade(command, limits));
      t.match(error.message, message);
      t.match(error.message, new RegExp(`the old ${replaced.what} continues`));
      t.equal(error.code, code);
      await replaced.goesOn(t);
    });
  }
}

/** Each step of a handoff and each way to fail in it. */
export async function failInHandoff(t: Test, replaced: Replaced): Promise<void> {
  const { what } = replaced;
  for (const step of ['prepare', 'adopt', 'commit']) {
    for (const action of ['refuse', 'crash', 'kill', 'hang']) {
      await t.test(`${action} in ${step}`, async (t) => {
        // One that fails otherwise has all the time that it needs.
        const short = step === 'prepare' ? { startMs: HANG_MS } : { adoptMs: 300 };
        const limits = action === 'hang' ? short : {};
        const error = await failure(replaced.upgrade(replaced.faulty(step, action), limits));
        // The giver sees what is adopted and not committed as not adopted yet.
        const phase = step === 'prepare' ? 'prepare' : 'adopt';
        t.match(error.message, new RegExp(`handoff failed in phase ${phase}: .*; the old ${what} continues`));
        const why = { refuse: /does not want to/, hang: /not done within/ }[action] ?? /went away/;
        t.match(error.message, why);
        await replaced.goesOn(t);
      });
    }
  }
}

/** The successor fails while the old one stops, or that takes too long. */
export async function failInFreeze(t: Test, replaced: Replaced): Promise<void> {
  const { what } = replaced;
  const sound = replaced.faulty('none', 'nothing');
  for (const action of ['kill', 'hang'] as const) {
    await t.test(`${action} in freeze`, async (t) => {
      let child: number | undefined;
      replaced.stopBy(async (own) => {
        await own();
        child = successorPid(replaced.log);
        if (action === 'kill') await kill(child);
        else process.kill(child, 'SIGSTOP');
      });
      const error = await failure(replaced.upgrade(sound, action === 'hang' ? { adoptMs: 300 } : {}));
      replaced.stopBy(undefined);
      t.ok(child);
      // That it hangs shows when it should answer.
      const phase = action === 'kill' ? 'freeze' : 'adopt';
      t.match(error.message, new RegExp(`handoff failed in phase ${phase}: .*; the old ${what} continues`));
      await replaced.goesOn(t);
    });
  }

  await t.test(`the old ${what} does not get to a stop in time`, async (t) => {
    let stop: () => void = () => {};
    replaced.stopBy(async (own) => {
      await new Promise<void>((resolve) => {
        stop = resolve;
      });
      return own();
    });
    const error = await failure(replaced.upgrade(sound, { freezeMs: 100 }));
    t.match(
      error.message,
      new RegExp(`handoff failed in phase freeze: not done within 100 ms; the old ${what} continues`),
    );
    replaced.stopBy(undefined);
    stop();
    await replaced.goesOn(t);
  });
}

/** Who is killed by the successor when that has adopted. */
export const VICTIMS = ['old one', 'manager'] as const;

/**
 * The successor continues, and the one that lives on says so.
 * @param options of `devstate upgrade`, for a successor that does `murder`, and says so in `log`
 */
export async function murder(
  t: Test,
  victim: (typeof VICTIMS)[number],
  old: Devstate,
  { what, options, log }: { what: string; options: readonly string[]; log: string },
): Promise<void> {
  if (victim === 'old one') process.env.VICTIM = String(old.process.pid);
  else delete process.env.VICTIM;
  const run = new Devstate(['upgrade', '-o', 'json', '--log', log, ...options]);
  const code = await run.exited;
  t.teardown(() => process.kill(successorPid(log)));
  t.equal(await old.exited, victim === 'manager' ? 0 : 128 + 9);
  if (victim === 'manager') t.equal(code, 128 + 9);
  else {
    t.equal(code, 0, run.stderr);
    const { warnings } = JSON.parse(run.stdout) as { warnings: string[] };
    t.match(warnings, [new RegExp(`the old ${what} ended before it could report; its successor serves`)]);
  }
}
