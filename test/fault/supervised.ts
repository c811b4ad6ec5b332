// SPDX-License-Identifier: Apache-2.0
/** A device server under `devstate run`, whose supervisor is this process. */

import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Test } from 'tap';
import { type RunEvent, type RunResult, run } from '../../src/operations/index.js';

export class Supervised {
  readonly directory = mkdtempSync('/tmp/devstate-run-test-');
  readonly socket = join(this.directory, 'device');
  readonly migrationSocket = join(this.directory, 'migration');
  readonly events: RunEvent[] = [];
  readonly #stop = new AbortController();
  /** Kills the server, as SIGHUP to `devstate run` does. */
  restart = (): void => {};
  #waiters: (() => void)[] = [];
  ended: Promise<RunResult> = Promise.resolve({ exitCode: 0, restarts: 0 });

  constructor(t: Test) {
    t.teardown(async () => {
      this.#stop.abort();
      await this.ended.catch(() => {});
      rmSync(this.directory, { recursive: true });
    });
  }

  start(command: readonly string[], maxCrashes = 1000): void {
    const progress = (event: RunEvent): void => {
      this.events.push(event);
      for (const wake of this.#waiters.splice(0)) wake();
    };
    const settled = (): void => {
      for (const wake of this.#waiters.splice(0)) wake();
    };
    this.ended = run({
      command: [process.execPath, ...command],
      restart: 'on-crash',
      maxCrashes,
      maxFds: 100,
      stop: this.#stop.signal,
      progress,
      onStarted: (restart) => {
        this.restart = restart;
      },
    });
    this.ended.then(settled, settled);
  }

  stop(): Promise<RunResult> {
    this.#stop.abort();
    return this.ended;
  }

  #of<Kind extends RunEvent['event']>(kind: Kind): Extract<RunEvent, { event: Kind }>[] {
    return this.events.filter((event): event is Extract<RunEvent, { event: Kind }> => event.event === kind);
  }

  get crashes(): number {
    return this.#of('crashed').length;
  }

  /** Restart to serving, ms. */
  get restartTimes(): number[] {
    return this.#of('serving')
      .slice(1)
      .map(({ ms }) => ms);
  }

  /** The pid of the server, once it serves for the `times`-th time. */
  async serving(times = 1): Promise<number> {
    for (;;) {
      const event = this.#of('serving')[times - 1];
      if (event !== undefined) return event.pid;
      await new Promise<void>((resolve) => this.#waiters.push(resolve));
    }
  }
}
