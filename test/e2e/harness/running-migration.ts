// SPDX-License-Identifier: Apache-2.0
/** A `devstate migrate` in a process of its own: what it reports, and how it ends. */
import type { MigrateProgress, MigrateResult, Phase } from '../../../src/operations/index.js';
import { Devstate } from './devstate-process.js';

/** How a `devstate migrate` ended. */
export interface MigrateOutcome {
  /** Exit code. */
  readonly code: number;
  /** Its JSON output; undefined if it has none, or text. */
  readonly result: MigrateResult | undefined;
  readonly stdout: string;
  readonly stderr: string;
}

/** A `devstate migrate` under way. */
export class RunningMigration {
  readonly process: Devstate;
  readonly finished: Promise<MigrateOutcome>;
  readonly #standsAt: Phase | undefined;

  /** @param under a command that runs `devstate`, see `Devstate` */
  constructor(args: readonly string[], standsAt?: Phase, under: readonly string[] = []) {
    const process = new Devstate(args, under, standsAt);
    this.process = process;
    this.#standsAt = standsAt;
    this.finished = process.exited.then((code) => ({
      code,
      result: process.stdout.startsWith('{') ? (JSON.parse(process.stdout) as MigrateResult) : undefined,
      stdout: process.stdout,
      stderr: process.stderr,
    }));
  }

  /** Everything it has reported so far. */
  get progress(): MigrateProgress[] {
    const lines = this.process.stderr.split('\n').slice(0, -1);
    return lines.filter((line) => line.startsWith('{')).map((line) => JSON.parse(line) as MigrateProgress);
  }

  /** The first report, past ones included, that `matches`; rejects when the command ends without. */
  reports(matches: (progress: MigrateProgress) => boolean): Promise<MigrateProgress> {
    return new Promise((resolve, reject) => {
      const look = (): void => {
        const found = this.progress.find(matches);
        if (found !== undefined) resolve(found);
        else if (!this.process.hasEnded) return;
        else reject(new Error(`devstate migrate ended without that report: ${this.process.stderr}`));
        this.process.process.stderr?.off('data', look);
      };
      this.process.process.stderr?.on('data', look);
      void this.process.exited.then(look);
      look();
    });
  }

  /** Waits until the manager has entered `phase` and stopped itself before it does anything there; does `work`; lets it continue. */
  async at(phase: Phase, work: () => unknown): Promise<void> {
    if (phase !== this.#standsAt) throw new Error(`it does not stand at ${phase}`);
    await this.reaches(phase);
    await this.process.stands();
    await work();
    this.process.signal('SIGCONT');
  }

  /** Resolves when it enters `phase`, or has. */
  async reaches(phase: Phase): Promise<void> {
    await this.reports((progress) => progress.phase === phase);
  }
}
