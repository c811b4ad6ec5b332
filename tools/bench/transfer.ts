// SPDX-License-Identifier: Apache-2.0
/** MIG_DATA_READ and MIG_DATA_WRITE: how fast a large device state is saved and loaded, 1 MiB at a time. */

import { existsSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  buildBaseline,
  CHUNK,
  measure,
  ourClient,
  ourServer,
  type Program,
  Running,
  STATE_BYTES,
} from './processes.js';
import { type Bound, type Section, summarise } from './report.js';

const BOUND: Bound = { of: 'ratio', at: 'least', limit: 0.8 };

interface Rate {
  readonly bytesPerSecond: number;
}

export const transfer: Section = {
  name: 'transfer',
  title: '1 GiB of device state over the migration socket, 1 MiB at a time',
  async run({ rounds, folder }) {
    const c = await buildBaseline(folder);
    const [cSocket, ours] = [join(folder, 'transfer-c'), join(folder, 'transfer-devstate')];
    const ourMigration = `${ours}.migration`;
    // The state to load is 1 GiB: in memory, if possible, so that no disk is measured.
    const stateFolder = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'devstate-bench-'));
    const state = join(stateFolder, 'state');
    const size = String(STATE_BYTES);
    const servers = [
      await Running.start(c.server, [cSocket, size]),
      await Running.start(ourServer, [ours, ourMigration, size]),
    ];
    const pairs: [string, Program, string, boolean][] = [
      ['C client, devstate server', c.client, ourMigration, true],
      ['devstate client, C server', ourClient, cSocket, false],
      ['devstate client, devstate server', ourClient, ourMigration, false],
    ];
    try {
      await measure(ourClient, [ourMigration, 'mig-read', size, String(CHUNK), state]);
      const stateBytes = String(statSync(state).size);
      const tests = [
        ['save', ['mig-read', size, String(CHUNK)]],
        ['load', ['mig-write', stateBytes, String(CHUNK), state]],
      ] as const;
      const results = [];
      for (const [name, args] of tests) {
        const rate = async (client: Program, socket: string) =>
          (await measure<Rate>(client, [socket, ...args])).bytesPerSecond / 1e6;
        const baseline: number[] = [];
        const measured = pairs.map((): number[] => []);
        for (let round = 0; round < rounds; round++) {
          baseline.push(await rate(c.client, cSocket));
          for (const [i, [, client, socket]] of pairs.entries())
            measured[i]!.push(await rate(client, socket));
        }
        for (const [i, [pair, , , bounded]] of pairs.entries()) {
          const rest = bounded ? { baseline, bound: BOUND } : { baseline };
          results.push(summarise(`${name}: ${pair}`, 'MB/s', measured[i]!, rest));
        }
      }
      return results;
    } finally {
      for (const server of servers) await server.end();
      rmSync(stateFolder, { recursive: true });
    }
  },
};
