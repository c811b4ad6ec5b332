// SPDX-License-Identifier: Apache-2.0
/** The migration region of protocol v1, trapped and mapped, beside v2, the plain C ends and what memory allows. */

import { existsSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buildBaseline, CHUNK, measure, ourClient, ourServer, Running, STATE_BYTES } from './processes.js';
import { type Bound, median, type Result, type Section, summarise } from './report.js';

interface Rate {
  readonly bytesPerSecond: number;
}

/** MB/s of a mapped region, or as much of what memory allows, if that is less. */
const MAPPED_RATE = 3000;
const MAPPED_PART = 0.8;

const ways = [
  { name: 'v1, trapped', protocol: 'trap', socket: 'plain' },
  { name: 'v1, mapped', protocol: 'map', socket: 'mapped' },
  { name: 'v2', protocol: 'mig', socket: 'plain' },
] as const;

export const region: Section = {
  name: 'region',
  title: '1 GiB of device state by v1 and by v2, in chunks of 1 MiB; the baseline is the C pair by v2',
  async run({ rounds, folder }) {
    const c = await buildBaseline(folder);
    const size = String(STATE_BYTES);
    const path = (name: string) => join(folder, `region-${name}`);
    const stateFolder = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'devstate-bench-'));
    const state = join(stateFolder, 'state');
    const start = (name: string, mapped: string) =>
      Running.start(ourServer, [path(`${name}-vmm`), path(name), size, mapped]);
    const servers = [
      await Running.start(c.server, [path('c'), size]),
      await start('plain', 'trapped'),
      await start('mapped', 'mapped'),
    ];
    try {
      await measure(ourClient, [path('plain'), 'mig-read', size, String(CHUNK), state]);
      const bytes = String(statSync(state).size);
      const results: Result[] = [];
      for (const direction of ['read', 'write'] as const) {
        const amount = direction === 'read' ? size : bytes;
        const file = direction === 'read' ? [] : [state];
        const rate = async (program: readonly string[], args: readonly string[]) =>
          (await measure<Rate>(program, args)).bytesPerSecond / 1e6;
        const copies: number[] = [];
        const baseline: number[] = [];
        const measured = ways.map((): number[] => []);
        for (let round = 0; round < rounds; round++) {
          copies.push(await rate(c.copy, [String(CHUNK), size]));
          baseline.push(
            await rate(c.client, [path('c'), `mig-${direction}`, amount, String(CHUNK), ...file]),
          );
          for (const [index, { protocol, socket }] of ways.entries()) {
            const args = [path(socket), `${protocol}-${direction}`, amount, String(CHUNK), ...file];
            measured[index]!.push(await rate(ourClient, args));
          }
        }
        const what = direction === 'read' ? 'save' : 'load';
        const limit = Math.round(Math.min(MAPPED_RATE, MAPPED_PART * median(copies)));
        const bound: Bound = { of: 'value', at: 'least', limit };
        results.push(summarise(`${what}: memcpy in and out of a mapping (C)`, 'MB/s', copies));
        for (const [index, { name, protocol }] of ways.entries()) {
          const rest = protocol === 'map' ? { baseline, bound } : { baseline };
          results.push(summarise(`${what}: ${name}`, 'MB/s', measured[index]!, rest));
        }
      }
      return results;
    } finally {
      for (const server of servers) await server.end();
      rmSync(stateFolder, { recursive: true });
    }
  },
};
