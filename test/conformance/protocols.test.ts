// SPDX-License-Identifier: Apache-2.0
/** A device's state moved from v1 to v1, v1 to v2, v2 to v1 and v2 to v2, in chunks of any size: the same bytes arrive. */

import t from 'tap';
import { MigrationClient } from '../../src/client/index.js';
import { transferState } from '../../src/operations/state-stream.js';
import { MigrationState } from '../../src/wire/index.js';
import { sameBytes } from '../support/hex.js';
import { serveScratch } from '../support/served.js';

type Tap = Pick<typeof t, 'equal' | 'teardown'>;

const { STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY } = MigrationState;

const PROTOCOLS = ['v1 trapped', 'v1 mapped', 'v2'] as const;
type Way = (typeof PROTOCOLS)[number];
const LIMITS = [4, 4096, 2 ** 20];
const STATE_SIZE = 2048;

/** A client of v2 that reads and writes so much at a time. */
class LimitedClient extends MigrationClient {
  limit = 0;

  override get maxChunk(): number {
    return this.limit;
  }
}

async function serve(t: Tap, way: Way, limit: number, role: 'vmm' | 'manager') {
  const mapped = way === 'v1 mapped';
  const options = {
    stateSize: STATE_SIZE,
    chunk: 1024,
    migration: 'both',
    migrationRegion: { mapped, dataSize: limit },
  } as const;
  const served = serveScratch(t, options);
  const path = role === 'vmm' ? served.path : served.migrationPath;
  if (way !== 'v2') {
    const client = await served.region(path);
    t.equal(client.isMapped, mapped);
    return { scratch: served.scratch, client };
  }
  const client = new LimitedClient(role === 'vmm' ? await served.vmm() : (await served.manager()).client);
  client.limit = limit;
  return { scratch: served.scratch, client };
}

for (const from of PROTOCOLS) {
  for (const to of PROTOCOLS) {
    for (const limit of LIMITS) {
      // A section that is mapped is a page at least.
      if (limit < 4096 && [from, to].includes('v1 mapped')) continue;
      t.test(`${from} to ${to}, chunks of ${limit}`, async (t) => {
        const source = await serve(t, from, limit, 'manager');
        const destination = await serve(t, to, limit, 'vmm');
        for (let i = 0; i < STATE_SIZE; i++) source.scratch.state.memory[i] = (i * 31) & 0xff;
        await destination.client.setState(RESUMING);
        await source.client.setState(PRE_COPY);
        await transferState(source.client, destination.client);
        source.scratch.state.write(100, Uint8Array.of(1, 2, 3));
        await source.client.setState(STOP_COPY);
        const moved = await transferState(source.client, destination.client);
        t.ok(moved > 0);
        await destination.client.commitLoad();
        await destination.client.setState(RUNNING);
        t.equal(await destination.client.state(), RUNNING);
        t.ok(sameBytes(source.scratch.state.memory, destination.scratch.state.memory));
        t.ok(sameBytes(source.scratch.state.registers, destination.scratch.state.registers));
        await source.client.setState(STOP);
        await source.client.setState(RUNNING);
        t.equal(source.scratch.running, true);
      });
    }
  }
}
