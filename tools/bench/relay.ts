// SPDX-License-Identifier: Apache-2.0
/** REGION_READ of 4 bytes, straight to the server and through a relay: what the relay adds to each register access. */

import { join } from 'node:path';
import { buildBaseline, measure, ourRelay, ourServer, type Program, Running } from './processes.js';
import { type Bound, type Result, type Section, summarise } from './report.js';

const READS = 20_000;
/** Twice the messages, and a process more to wake up twice. */
const P50_BOUND: Bound = { of: 'ratio', at: 'most', limit: 4 };

interface Percentiles {
  readonly p50: number;
  readonly p99: number;
}

export const relay: Section = {
  name: 'relay',
  title: `REGION_READ, 4 bytes, C client, ${READS.toLocaleString('en-US')} reads a round; the baseline is without the relay`,
  async run({ rounds, folder }) {
    const c = await buildBaseline(folder);
    const paths = (name: string) =>
      [join(folder, `relay-${name}`), join(folder, `relay-${name}-server`)] as const;
    const servers: [string, Program, readonly string[]][] = [
      ['C server', c.server, []],
      ['devstate server', ourServer, ['.migration', '0']],
    ];
    const results: Result[] = [];
    for (const [index, [name, program, [migration, ...rest]]] of servers.entries()) {
      const [listen, socket] = paths(String(index));
      const args = migration === undefined ? [] : [`${socket}${migration}`, ...rest];
      const running = [
        await Running.start(program, [socket, ...args]),
        await Running.start(ourRelay, [listen, socket]),
      ];
      const read = (path: string) => measure<Percentiles>(c.client, [path, 'region-read', String(READS)]);
      const direct: Percentiles[] = [];
      const relayed: Percentiles[] = [];
      try {
        for (let round = 0; round < rounds; round++) {
          direct.push(await read(socket));
          relayed.push(await read(listen));
        }
      } finally {
        for (const process of running.reverse()) await process.end();
      }
      for (const of of ['p50', 'p99'] as const) {
        const microseconds = (values: readonly Percentiles[]) => values.map((value) => value[of] / 1000);
        results.push(
          summarise(`${name} behind a relay, ${of}`, 'µs', microseconds(relayed), {
            baseline: microseconds(direct),
            ...(of === 'p50' ? { bound: P50_BOUND } : {}),
          }),
        );
      }
    }
    return results;
  },
};
