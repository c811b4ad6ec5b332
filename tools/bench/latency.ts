// SPDX-License-Identifier: Apache-2.0
/** REGION_READ of 4 bytes: the time of one register access, as a vCPU waits for it. */

import { join } from 'node:path';
import { buildBaseline, measure, ourClient, ourServer, type Program, Running } from './processes.js';
import { type Bound, type Result, type Section, summarise } from './report.js';

const READS = 20_000;
const P50_BOUND: Bound = { of: 'ratio', at: 'most', limit: 1.5 };

interface Percentiles {
  readonly p50: number;
  readonly p99: number;
}

export const latency: Section = {
  name: 'latency',
  title: `REGION_READ, 4 bytes, ${READS.toLocaleString('en-US')} reads a round`,
  async run({ rounds, folder }) {
    const c = await buildBaseline(folder);
    const [cSocket, ours] = [join(folder, 'latency-c'), join(folder, 'latency-devstate')];
    const servers = [
      await Running.start(c.server, [cSocket]),
      await Running.start(ourServer, [ours, `${ours}.migration`, '0']),
    ];
    const pairs: [string, Program, string, boolean][] = [
      ['C client, devstate server', c.client, ours, true],
      ['devstate client, C server', ourClient, cSocket, false],
      ['devstate client, devstate server', ourClient, ours, false],
    ];
    const baseline: Percentiles[] = [];
    const measured = pairs.map((): Percentiles[] => []);
    try {
      for (let round = 0; round < rounds; round++) {
        baseline.push(await measure(c.client, [cSocket, 'region-read', String(READS)]));
        for (const [i, [, client, socket]] of pairs.entries())
          measured[i]!.push(await measure(client, [socket, 'region-read', String(READS)]));
      }
    } finally {
      for (const server of servers) await server.end();
    }
    const microseconds = (values: readonly Percentiles[], of: 'p50' | 'p99') =>
      values.map((v) => v[of] / 1000);
    return pairs.flatMap(([name, , , bounded], i): Result[] =>
      (['p50', 'p99'] as const).map((of) =>
        summarise(`${name}, ${of}`, 'µs', microseconds(measured[i]!, of), {
          baseline: microseconds(baseline, of),
          ...(bounded && of === 'p50' ? { bound: P50_BOUND } : {}),
        }),
      ),
    );
  },
};
