// SPDX-License-Identifier: Apache-2.0
/** What a move of 1 GiB of device state costs in memory: the peak of each process that takes part. */

import { join } from 'node:path';
import { measure, ourManager, ourServer, Running, STATE_BYTES } from './processes.js';
import { type Bound, type Section, summarise } from './report.js';

const MIB = 1024 * 1024;
const BOUND: Bound = { of: 'value', at: 'most', limit: 200 };

interface Moved {
  readonly milliseconds: number;
  readonly bytes: number;
  readonly peakRss: number;
}

export const memory: Section = {
  name: 'memory',
  title: '1 GiB of device state from one server to another: peak of resident memory, and rate',
  async run({ rounds, folder }) {
    const peaks = { source: [] as number[], manager: [] as number[], destination: [] as number[] };
    const rates: number[] = [];
    // New processes each time: a peak is never forgotten.
    for (let round = 0; round < Math.min(rounds, 3); round++) {
      const paths = ['source', 'destination'].map((name) => join(folder, `memory-${name}-${round}`));
      const servers = [];
      for (const path of paths)
        servers.push(await Running.start(ourServer, [path, `${path}.migration`, String(STATE_BYTES)]));
      try {
        const moved = await measure<Moved>(
          ourManager,
          paths.map((path) => `${path}.migration`),
        );
        const [source, destination] = servers.map((server) => server.peakRss / MIB) as [number, number];
        peaks.source.push(source);
        peaks.destination.push(destination);
        peaks.manager.push(moved.peakRss / MIB);
        rates.push(moved.bytes / 1000 / moved.milliseconds);
      } finally {
        for (const server of servers) await server.end();
      }
    }
    return [
      summarise('source server', 'MiB', peaks.source, { bound: BOUND }),
      summarise('manager', 'MiB', peaks.manager, { bound: BOUND }),
      summarise('destination server', 'MiB', peaks.destination, { bound: BOUND }),
      summarise('rate of the whole move', 'MB/s', rates),
    ];
  },
};
